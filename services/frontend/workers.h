// A few threads that share one loop.
#ifndef TERRACE_SERVICES_FRONTEND_WORKERS_H_
#define TERRACE_SERVICES_FRONTEND_WORKERS_H_

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace terrace::frontend {

// Workers splits index ranges over the calling thread and `threads - 1` helpers. Run must not be
// called from two threads at a time.
class Workers {
 public:
  // Requires: threads >= 1.
  explicit Workers(int threads);
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  int threads() const { return static_cast<int>(helpers_.size()) + 1; }

  // Calls task(begin, end) for equal parts of [0, count), one per thread, and returns when all
  // are done. Parts may be empty.
  void Run(int64_t count, absl::FunctionRef<void(int64_t, int64_t)> task);

 private:
  struct Job {
    int64_t count = 0;
    const absl::FunctionRef<void(int64_t, int64_t)>* task = nullptr;
  };

  void Help(int part);
  void DoPart(const Job& job, int part) const;

  // Guards the next four; the standard's, because ThreadSanitizer sees what it orders.
  std::mutex mu_;
  std::condition_variable changed_;
  Job job_;
  // Counts jobs, so that a helper knows a new one from the last.
  uint64_t generation_ = 0;
  int unfinished_ = 0;
  bool stopping_ = false;
  // Constant after construction.
  std::vector<std::thread> helpers_;
  int parts_ = 1;
};

}  // namespace terrace::frontend

#endif  // TERRACE_SERVICES_FRONTEND_WORKERS_H_
