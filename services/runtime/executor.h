// Threads that run what gRPC's own threads must not: anything that may wait.
#ifndef TERRACE_SERVICES_RUNTIME_EXECUTOR_H_
#define TERRACE_SERVICES_RUNTIME_EXECUTOR_H_

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "kvstore/mutex.h"

namespace terrace::runtime {

// Thread-safe. Tasks start in the order of their submission.
class Executor {
 public:
  // `queue_max` bounds the tasks that wait for a thread: admission control.
  Executor(int threads, size_t queue_max);
  // Runs what was submitted, then stops.
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // False when the queue is full; the task is then dropped.
  [[nodiscard]] bool Submit(std::function<void()> task);

 private:
  void Work();

  const size_t queue_max_;
  kvstore::Mutex mu_;
  kvstore::CondVar changed_;
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_EXECUTOR_H_
