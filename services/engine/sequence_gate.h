// SequenceGate: a lock that is held shared or alone, and whose every wait ends at a deadline.
//
// Who waits to hold it alone keeps newcomers out, so that those who share it cannot starve it; when
// its deadline comes first, it lets them go on. A deadline that has passed gets nothing, even
// where nobody is in the way: what a late caller is told does not depend on who else is there.
//
// Thread-safe; not recursive, in either way of holding it.
#ifndef TERRACE_SERVICES_ENGINE_SEQUENCE_GATE_H_
#define TERRACE_SERVICES_ENGINE_SEQUENCE_GATE_H_

#include <mutex>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "kvstore/mutex.h"

namespace terrace::engine {

class ABSL_LOCKABLE SequenceGate {
 public:
  SequenceGate() = default;
  SequenceGate(const SequenceGate&) = delete;
  SequenceGate& operator=(const SequenceGate&) = delete;

  // False when `deadline` came first; then nothing is held.
  bool LockShared(absl::Time deadline) ABSL_SHARED_TRYLOCK_FUNCTION(true);
  bool Lock(absl::Time deadline) ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true);
  // The same without waiting: false when somebody holds it, or waits to hold it alone.
  bool TryLock() ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true);

  void UnlockShared() ABSL_UNLOCK_FUNCTION();
  void Unlock() ABSL_UNLOCK_FUNCTION();

 private:
  // Until others let go, or for ever if need be; false when `deadline` has passed.
  bool Wait(absl::Time deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Held for a moment only; kvstore::Mutex, because ThreadSanitizer sees what it orders.
  kvstore::Mutex mu_;
  kvstore::CondVar changed_;
  int sharing_ ABSL_GUARDED_BY(mu_) = 0;
  bool alone_ ABSL_GUARDED_BY(mu_) = false;
  // Who waits to hold it alone.
  int waiting_ ABSL_GUARDED_BY(mu_) = 0;
};

// Holds a gate for a scope, unless the deadline comes first. Clang's analysis takes the gate for
// held: whoever goes on without having asked held() is wrong.
class ABSL_SCOPED_LOCKABLE SharedHold {
 public:
  SharedHold(SequenceGate& gate, absl::Time deadline) ABSL_SHARED_LOCK_FUNCTION(gate);
  ~SharedHold() ABSL_UNLOCK_FUNCTION();
  SharedHold(const SharedHold&) = delete;
  SharedHold& operator=(const SharedHold&) = delete;

  bool held() const { return held_; }

 private:
  SequenceGate& gate_;
  const bool held_;
};

class ABSL_SCOPED_LOCKABLE SoleHold {
 public:
  SoleHold(SequenceGate& gate, absl::Time deadline) ABSL_EXCLUSIVE_LOCK_FUNCTION(gate);
  SoleHold(SequenceGate& gate, std::try_to_lock_t /*now*/) ABSL_EXCLUSIVE_LOCK_FUNCTION(gate);
  ~SoleHold() ABSL_UNLOCK_FUNCTION();
  SoleHold(const SoleHold&) = delete;
  SoleHold& operator=(const SoleHold&) = delete;

  bool held() const { return held_; }

 private:
  SequenceGate& gate_;
  const bool held_;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_SEQUENCE_GATE_H_
