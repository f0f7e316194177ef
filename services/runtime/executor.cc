#include "services/runtime/executor.h"

#include <utility>

namespace terrace::runtime {

Executor::Executor(int threads, size_t queue_max, uint64_t bytes_max)
    : queue_max_(queue_max), bytes_(bytes_max) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
}

Executor::~Executor() {
  {
    const kvstore::MutexLock lock(mu_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

void Executor::Refuse(const absl::Status& why) {
  const kvstore::MutexLock lock(mu_);
  refusal_ = why;
}

absl::Status Executor::refusal() const {
  const kvstore::MutexLock lock(mu_);
  return refusal_;
}

bool Executor::Submit(std::function<void()> task) {
  {
    const kvstore::MutexLock lock(mu_);
    if (queue_.size() >= queue_max_) return false;
    queue_.push_back(std::move(task));
  }
  // Not under the mutex, which who wakes up takes first.
  changed_.NotifyOne();
  return true;
}

void Executor::Continue(std::function<void()> task) {
  const kvstore::MutexLock lock(mu_);
  queue_.push_back(std::move(task));
  changed_.NotifyOne();
}

void Executor::Work() {
  while (true) {
    std::function<void()> task;
    {
      const kvstore::MutexLock lock(mu_);
      while (!stopping_ && queue_.empty()) changed_.Wait(mu_);
      if (queue_.empty()) return;
      task = std::move(queue_.front());
      queue_.pop_front();
    }
    task();
  }
}

}  // namespace terrace::runtime
