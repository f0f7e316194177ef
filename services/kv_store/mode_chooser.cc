#include "services/kv_store/mode_chooser.h"

namespace terrace::kv_store {

engine::RemoteMode ModeChooser::Choose() {
  const kvstore::MutexLock lock(mu_);
  if (!partial_.known) return engine::RemoteMode::kPartial;
  const bool probe = choices_++ % kProbeEvery == 0;
  const bool rows_faster = rows_.known && rows_.seconds < partial_.seconds;
  return rows_faster != probe ? engine::RemoteMode::kRows : engine::RemoteMode::kPartial;
}

void ModeChooser::Observe(engine::RemoteMode mode, absl::Duration took, uint64_t queries) {
  if (queries == 0) return;
  const kvstore::MutexLock lock(mu_);
  Track& track = mode == engine::RemoteMode::kRows ? rows_ : partial_;
  const double seconds = absl::ToDoubleSeconds(took) / static_cast<double>(queries);
  track.seconds = track.known ? track.seconds + kNewest * (seconds - track.seconds) : seconds;
  track.known = true;
}

}  // namespace terrace::kv_store
