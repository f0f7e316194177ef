// Which calls come in, and the threads that run what gRPC's own threads must not: anything that may
// wait.
#ifndef TERRACE_SERVICES_RUNTIME_EXECUTOR_H_
#define TERRACE_SERVICES_RUNTIME_EXECUTOR_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "kvstore/mutex.h"
#include "services/runtime/byte_budget.h"

namespace terrace::runtime {

// Thread-safe. Tasks start in the order of their submission.
class Executor {
 public:
  // `queue_max` bounds the tasks that wait for a thread, `bytes_max` what requests in flight hold:
  // admission control.
  Executor(int threads, size_t queue_max,
           uint64_t bytes_max = std::numeric_limits<uint64_t>::max());
  // Runs what was submitted, then stops.
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // Refuses new calls with `why` from now on; OK lets them in, as at first.
  void Refuse(const absl::Status& why);
  // Why a new call is refused. What has come in goes on.
  absl::Status refusal() const;

  // False when the queue is full; the task is then dropped.
  [[nodiscard]] bool Submit(std::function<void()> task);
  // The next task of a call that is under way: it finds its place however full the queue is, so
  // that what was let in ends. A call has one such task at a time.
  void Continue(std::function<void()> task);

  // What requests in flight take; it is for those who run them to take and to give back.
  ByteBudget& bytes() { return bytes_; }

 private:
  void Work();

  const size_t queue_max_;
  ByteBudget bytes_;
  mutable kvstore::Mutex mu_;
  kvstore::CondVar changed_;
  absl::Status refusal_ ABSL_GUARDED_BY(mu_);
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_EXECUTOR_H_
