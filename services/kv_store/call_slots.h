// Who may wait for one store: a store that hangs must leave threads for the others.
#ifndef TERRACE_SERVICES_KV_STORE_CALL_SLOTS_H_
#define TERRACE_SERVICES_KV_STORE_CALL_SLOTS_H_

#include <memory>

#include "absl/base/thread_annotations.h"
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
  // Null when all are taken.
  Slot Take() {
    const kvstore::MutexLock lock(mu_);
    if (taken_ >= max_) return nullptr;
    ++taken_;
    return Slot(this);
  }

 private:
  void Give() {
    const kvstore::MutexLock lock(mu_);
    --taken_;
  }

  const int max_;
  kvstore::Mutex mu_;
  int taken_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_CALL_SLOTS_H_
