// Which of ROWS and PARTIAL is faster, by measured time per query: batches differ in size.
#ifndef TERRACE_SERVICES_KV_STORE_MODE_CHOOSER_H_
#define TERRACE_SERVICES_KV_STORE_MODE_CHOOSER_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "kvstore/mutex.h"
#include "services/engine/step.h"

namespace terrace::kv_store {

// Keeps the faster mode and probes the other now and then; one that nobody has observed yet counts
// as the slower, PARTIAL being the first. Thread-safe.
class ModeChooser {
 public:
  engine::RemoteMode Choose();
  // What a step of `queries` queries in the mode that Choose gave took. A step that could run in
  // one mode only says nothing about the other and is not to be observed.
  void Observe(engine::RemoteMode mode, absl::Duration took, uint64_t queries);

 private:
  // One step in this many runs in the slower mode, the first among them.
  static constexpr uint64_t kProbeEvery = 64;
  // Weight of the newest measurement.
  static constexpr double kNewest = 0.1;

  struct Track {
    bool known = false;
    // Per query.
    double seconds = 0;
  };

  kvstore::Mutex mu_;
  Track rows_ ABSL_GUARDED_BY(mu_);
  Track partial_ ABSL_GUARDED_BY(mu_);
  uint64_t choices_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_MODE_CHOOSER_H_
