#include "services/runtime/drain.h"

#include <utility>

namespace terrace::runtime {

// Listeners run under the lock, so that Remove can promise that none runs afterwards; they must
// not call back.
uint64_t Drain::Add(std::function<void()> listener) {
  const kvstore::MutexLock lock(mu_);
  if (started_) listener();
  listeners_.emplace(next_id_, std::move(listener));
  return next_id_++;
}

void Drain::Remove(uint64_t id) {
  const kvstore::MutexLock lock(mu_);
  listeners_.erase(id);
  if (listeners_.empty()) removed_.NotifyAll();
}

void Drain::Start() {
  const kvstore::MutexLock lock(mu_);
  if (started_) return;
  started_ = true;
  for (const auto& [id, listener] : listeners_) listener();
}

void Drain::AwaitNone(absl::Time deadline) const {
  const kvstore::MutexLock lock(mu_);
  while (!listeners_.empty() && removed_.WaitUntil(mu_, deadline)) continue;
}

bool Drain::started() const {
  const kvstore::MutexLock lock(mu_);
  return started_;
}

}  // namespace terrace::runtime
