// Who may wait for one store: a store that hangs must leave threads for the others.
#ifndef TERRACE_SERVICES_KV_STORE_CALL_SLOTS_H_
#define TERRACE_SERVICES_KV_STORE_CALL_SLOTS_H_

#include <algorithm>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kvstore/mutex.h"

namespace terrace::kv_store {

// Thread-safe. Must outlive its slots.
class CallSlots {
 public:
  struct GiveBack {
    void operator()(CallSlots* slots) const { slots->Give(); }
  };
  // One of them, given back when it goes out of scope.
  using Slot = std::unique_ptr<CallSlots, GiveBack>;

  explicit CallSlots(int max) : max_(max) {}

  int max() const { return max_; }
  // Waits until one is free: not beyond the deadline, and not for a store that hangs: calls wait,
  // and it has let none end for kPatience. Null then.
  Slot Take(absl::Time deadline) {
    const kvstore::MutexLock lock(mu_);
    while (true) {
      const absl::Time now = absl::Now();
      silent_since_ = std::min(silent_since_, now);
      if (taken_ < max_) break;
      const absl::Time give_up = std::min(deadline, silent_since_ + kPatience);
      if (now >= give_up) return nullptr;
      changed_.WaitUntil(mu_, give_up);
    }
    ++taken_;
    return Slot(this);
  }
  // The store has let a call end: it does not hang.
  void Answered() {
    const kvstore::MutexLock lock(mu_);
    silent_since_ = absl::InfiniteFuture();
  }

 private:
  static constexpr absl::Duration kPatience = absl::Seconds(1);

  void Give() {
    const kvstore::MutexLock lock(mu_);
    --taken_;
    changed_.NotifyOne();
  }

  const int max_;
  kvstore::Mutex mu_;
  kvstore::CondVar changed_;
  int taken_ ABSL_GUARDED_BY(mu_) = 0;
  // When a call first wanted something of it after it was last heard.
  absl::Time silent_since_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_CALL_SLOTS_H_
