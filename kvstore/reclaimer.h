// Reclaimer: the thread that turns garbage on disk into room. Garbage is what lies in files and
// lives no more: blocks that were deleted, tails and manifests that were written anew.
//
// It works when a write was refused for want of room, and on its own when there is much garbage
// and nobody has written for a while. Nobody holds the disk turn meanwhile: deletions never wait
// for it.
//
// Thread-safe. Its mutex is never held together with the one of the store.
#ifndef TERRACE_KVSTORE_RECLAIMER_H_
#define TERRACE_KVSTORE_RECLAIMER_H_

#include <atomic>
#include <cstdint>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kvstore/mutex.h"
#include "kvstore/store_core.h"

namespace terrace::kvstore {

class Reclaimer {
 public:
  // Requires: the store has a disk.
  explicit Reclaimer(StoreCore& core);
  ~Reclaimer();
  Reclaimer(const Reclaimer&) = delete;
  Reclaimer& operator=(const Reclaimer&) = delete;

  // Runs `write`. When that is ResourceExhausted, and there is garbage, waits for a pass until
  // `deadline` and runs it again: what the last run returned. A pass that is at work already may
  // miss the garbage in question, so there may be a third run after one of its own.
  // Requires: `write` gives the disk turn back.
  absl::Status WithRoom(absl::Time deadline, absl::FunctionRef<absl::Status()> write)
      ABSL_LOCKS_EXCLUDED(mu_);

  // From now on it works on its own too: what lives on disk is known.
  void Watch() ABSL_LOCKS_EXCLUDED(mu_);
  // Gives up the pass at work; nobody waits for one any more.
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // Bytes on disk, and those beyond what lives.
  struct Usage {
    uint64_t used_bytes = 0;
    uint64_t excess_bytes = 0;
    // Excess that a pass may free.
    uint64_t garbage_bytes = 0;
  };

  Usage Measure() const ABSL_LOCKS_EXCLUDED(mu_);
  // Waits for the pass at work, or else for one of its own. False when none is worth it, or none
  // ended until `deadline`.
  bool AwaitPass(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);

  void Run();
  // Whether to work without being asked.
  bool ShouldWork() ABSL_LOCKS_EXCLUDED(mu_);
  void Pass() ABSL_LOCKS_EXCLUDED(mu_);
  // Gets records that are corrupt out of the way of a pass; false when there is none to be found.
  bool MoveCorrupt() ABSL_LOCKS_EXCLUDED(mu_);

  // Garbage that is worth a pass though nobody waits for room.
  uint64_t watermark_bytes() const { return budget_bytes_ / 8; }

  StoreCore& core_;
  const uint64_t budget_bytes_;
  std::atomic<bool> stopping_ = false;
  // The pass at work is to be given up: for good, or to be begun again.
  std::atomic<bool> cancelled_ = false;
  // Excess that the last complete pass has left: keys, checksums, tables.
  std::atomic<uint64_t> overhead_bytes_ = 0;

  // Only the thread uses these: writes when it last woke, and when it last looked for garbage.
  uint64_t woken_at_write_ = UINT64_MAX;
  uint64_t looked_at_write_ = UINT64_MAX;

  Mutex mu_;
  CondVar changed_;
  bool watching_ ABSL_GUARDED_BY(mu_) = false;
  bool wanted_ ABSL_GUARDED_BY(mu_) = false;
  bool working_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t passes_ ABSL_GUARDED_BY(mu_) = 0;

  // Last: it uses the rest.
  std::thread thread_;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_RECLAIMER_H_
