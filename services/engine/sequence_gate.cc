#include "services/engine/sequence_gate.h"

#include "absl/time/clock.h"

namespace terrace::engine {

bool SequenceGate::Wait(absl::Time deadline) {
  if (absl::Now() >= deadline) return false;
  changed_.WaitUntil(mu_, deadline);
  return true;
}

bool SequenceGate::LockShared(absl::Time deadline) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  kvstore::MutexLock lock(mu_);
  if (absl::Now() >= deadline) return false;
  while (alone_ || waiting_ > 0) {
    if (!Wait(deadline)) return false;
  }
  ++sharing_;
  return true;
}

bool SequenceGate::Lock(absl::Time deadline) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  kvstore::MutexLock lock(mu_);
  if (absl::Now() >= deadline) return false;
  ++waiting_;
  bool in_time = true;
  while (in_time && (alone_ || sharing_ > 0)) in_time = Wait(deadline);
  --waiting_;
  alone_ = alone_ || in_time;
  if (!in_time) changed_.NotifyAll();
  return in_time;
}

bool SequenceGate::TryLock() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  const kvstore::MutexLock lock(mu_);
  if (alone_ || sharing_ > 0 || waiting_ > 0) return false;
  alone_ = true;
  return true;
}

void SequenceGate::UnlockShared() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  kvstore::MutexLock lock(mu_);
  if (--sharing_ == 0) changed_.NotifyAll();
}

void SequenceGate::Unlock() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  kvstore::MutexLock lock(mu_);
  alone_ = false;
  changed_.NotifyAll();
}

SharedHold::SharedHold(SequenceGate& gate, absl::Time deadline) ABSL_NO_THREAD_SAFETY_ANALYSIS
    : gate_(gate),
      held_(gate.LockShared(deadline)) {}

SharedHold::~SharedHold() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  if (held_) gate_.UnlockShared();
}

SoleHold::SoleHold(SequenceGate& gate, absl::Time deadline) ABSL_NO_THREAD_SAFETY_ANALYSIS
    : gate_(gate),
      held_(gate.Lock(deadline)) {}

SoleHold::SoleHold(SequenceGate& gate, std::try_to_lock_t /*now*/) ABSL_NO_THREAD_SAFETY_ANALYSIS
    : gate_(gate),
      held_(gate.TryLock()) {}

SoleHold::~SoleHold() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  if (held_) gate_.Unlock();
}

}  // namespace terrace::engine
