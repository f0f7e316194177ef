// A sequence's gate, held shared for a scope unless the deadline comes first.
#ifndef TERRACE_SERVICES_ENGINE_SEQUENCE_GATE_H_
#define TERRACE_SERVICES_ENGINE_SEQUENCE_GATE_H_

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "services/engine/sequence.h"

namespace terrace::engine {

class SharedGate {
 public:
  SharedGate(Sequence& sequence, absl::Time deadline) ABSL_NO_THREAD_SAFETY_ANALYSIS
      : sequence_(sequence),
        held_(sequence.gate.ReaderLockWhenWithDeadline(absl::Condition::kTrue, deadline)) {
    // Mutex takes the lock in either case.
    if (!held_) sequence_.gate.ReaderUnlock();
  }
  ~SharedGate() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (held_) sequence_.gate.ReaderUnlock();
  }
  SharedGate(const SharedGate&) = delete;
  SharedGate& operator=(const SharedGate&) = delete;

  bool held() const { return held_; }

 private:
  Sequence& sequence_;
  const bool held_;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_SEQUENCE_GATE_H_
