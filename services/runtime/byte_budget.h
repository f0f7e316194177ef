// Bytes that the requests in flight hold: what a process gives to messages has a bound.
#ifndef TERRACE_SERVICES_RUNTIME_BYTE_BUDGET_H_
#define TERRACE_SERVICES_RUNTIME_BYTE_BUDGET_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "kvstore/mutex.h"

namespace terrace::runtime {

// Thread-safe. What is taken has to be given back.
class ByteBudget {
 public:
  explicit ByteBudget(uint64_t max) : max_(max) {}

  // False when they do not fit beside what is taken; alone they always do.
  [[nodiscard]] bool TryTake(uint64_t bytes) {
    const kvstore::MutexLock lock(mu_);
    if (taken_ != 0 && (taken_ >= max_ || bytes > max_ - taken_)) return false;
    taken_ += bytes;
    return true;
  }
  // Takes them whatever is taken: of what was let in and has to go on.
  void Take(uint64_t bytes) {
    const kvstore::MutexLock lock(mu_);
    taken_ += bytes;
  }
  void Give(uint64_t bytes) {
    const kvstore::MutexLock lock(mu_);
    taken_ -= bytes;
  }
  // Whether a stream may read more.
  bool HasRoom() const {
    const kvstore::MutexLock lock(mu_);
    return taken_ < max_;
  }

 private:
  const uint64_t max_;
  mutable kvstore::Mutex mu_;
  uint64_t taken_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_BYTE_BUDGET_H_
