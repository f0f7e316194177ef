// Whether the process is about to stop, and who wants to hear of it.
#ifndef TERRACE_SERVICES_RUNTIME_DRAIN_H_
#define TERRACE_SERVICES_RUNTIME_DRAIN_H_

#include <cstdint>
#include <functional>
#include <map>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "kvstore/mutex.h"

namespace terrace::runtime {

// Thread-safe.
class Drain {
 public:
  // Calls `listener` when draining starts, at once if it has; never after Remove returned.
  uint64_t Add(std::function<void()> listener);
  void Remove(uint64_t id);

  void Start();
  bool started() const;
  // Waits until no listener is left.
  void AwaitNone(absl::Time deadline) const;

 private:
  mutable kvstore::Mutex mu_;
  mutable kvstore::CondVar removed_;
  bool started_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t next_id_ ABSL_GUARDED_BY(mu_) = 1;
  std::map<uint64_t, std::function<void()>> listeners_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_DRAIN_H_
