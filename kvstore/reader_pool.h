// ReaderPool: threads that run reads. A job runs in steps, and jobs take turns step by step, so
// that a short one does not wait for all of a long one.
#ifndef TERRACE_KVSTORE_READER_POOL_H_
#define TERRACE_KVSTORE_READER_POOL_H_

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "kvstore/mutex.h"

namespace terrace::kvstore {

class ReaderPool {
 public:
  // Does one step; false when there is none left. Called by several threads at once.
  using Job = std::function<bool()>;

  explicit ReaderPool(int threads);
  // Waits for the steps that run; queued jobs are dropped.
  ~ReaderPool();
  ReaderPool(const ReaderPool&) = delete;
  ReaderPool& operator=(const ReaderPool&) = delete;

  // At most `width` threads work on it.
  void Submit(const Job& job, size_t width);
  size_t threads() const { return threads_.size(); }

 private:
  void Run();

  Mutex mu_;
  CondVar queued_;
  std::deque<Job> jobs_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_READER_POOL_H_
