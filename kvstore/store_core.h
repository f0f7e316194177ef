// StoreCore: what the parts of a store share. One mutex guards all metadata; copying, encoding and
// I/O happen outside it.
//
// Lock order: `mu` before anything in the tiers. References to segments (SegmentRef) are never
// dropped under `mu`: the last one takes it.
#ifndef TERRACE_KVSTORE_STORE_CORE_H_
#define TERRACE_KVSTORE_STORE_CORE_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "kvstore/block_store.h"
#include "kvstore/disk_tier.h"
#include "kvstore/host_tier.h"
#include "kvstore/mutex.h"
#include "kvstore/segment.h"
#include "kvstore/tier_stats.h"

namespace terrace::kvstore {

struct StoreCore {
  StoreCore(StoreOptions store_options, std::unique_ptr<ExtentPool> pool,
            std::unique_ptr<DiskTier> disk_tier)
      : options(std::move(store_options)),
        disk(std::move(disk_tier)),
        host(std::move(pool), disk != nullptr, options.placement) {}

  const StoreOptions options;
  // Null for a store without disk.
  const std::unique_ptr<DiskTier> disk;

  Mutex mu;
  // Extents became free or evictable.
  CondVar room;
  // Cells arrived from disk, or failed to.
  CondVar loaded;
  // Host memory is above its high watermark.
  CondVar crowded;
  // The writer has work.
  CondVar work;
  // The writer got on, failed, or the disk turn is free.
  CondVar progress;

  HostTier host ABSL_GUARDED_BY(mu);
  // Blocks are counted here, when they become durable; used_bytes is filled in when asked for.
  TierStats disk_stats ABSL_GUARDED_BY(mu);
  // Somebody writes to disk.
  bool disk_turn ABSL_GUARDED_BY(mu) = false;

  void CountDiskError(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    ++disk_stats.error_count;
    disk_stats.last_error = status.ToString();
  }
};

// The right to decide what is written next and to write it: one at a time, so that a batch of
// blocks and the deletion of their segment cannot overtake each other. Held across I/O, without
// the mutex.
class DiskTurn {
 public:
  explicit DiskTurn(StoreCore& core) : core_(core) {}
  DiskTurn(const DiskTurn&) = delete;
  DiskTurn& operator=(const DiskTurn&) = delete;
  ~DiskTurn() { Release(); }

  // False when it was not to be had until `deadline`.
  bool Take(absl::Time deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu) {
    while (core_.disk_turn) {
      if (!core_.progress.WaitUntil(core_.mu, deadline) && core_.disk_turn) return false;
    }
    core_.disk_turn = true;
    taken_ = true;
    return true;
  }

  void Release() ABSL_LOCKS_EXCLUDED(core_.mu) {
    if (!taken_) return;
    MutexLock lock(core_.mu);
    core_.disk_turn = false;
    taken_ = false;
    core_.progress.NotifyAll();
  }

 private:
  StoreCore& core_;
  bool taken_ = false;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_STORE_CORE_H_
