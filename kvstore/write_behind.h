// WriteBehind: the thread that brings sealed blocks to disk, and deletes what was abandoned.
//
// Blocks of a lane go in order, and lanes of a segment advance alike, so that what is durable is
// always a prefix, and a fair one. The thread survives every failure: it counts, backs off and
// tries again; blocks stay in memory meanwhile.
#ifndef TERRACE_KVSTORE_WRITE_BEHIND_H_
#define TERRACE_KVSTORE_WRITE_BEHIND_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kvstore/reclaimer.h"
#include "kvstore/store_core.h"

namespace terrace::kvstore {

class WriteBehind {
 public:
  WriteBehind(StoreCore& core, Reclaimer& reclaimer);
  // Finishes the batch that is being written; stops the reclaimer, which it may wait for.
  ~WriteBehind();
  WriteBehind(const WriteBehind&) = delete;
  WriteBehind& operator=(const WriteBehind&) = delete;

  // The segment has blocks to write.
  void Enqueue(Segment& segment) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  // Records of a segment that no longer exists are to be deleted.
  void Forget(SegmentId segment) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  // Tries now what failed before: something has changed.
  void Retry() ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);

  // Writes all blocks of the segment that are sealed by now, in any mode of durability, and waits
  // for them. The error of the first attempt that fails; DeadlineExceeded; FailedPrecondition
  // when the segment is freed meanwhile.
  absl::Status WriteSealed(Segment& segment, absl::Time deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);

  // Whether room may come of what it is doing.
  bool busy() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu) {
    return !failing_ && (writing_ || !queue_.empty());
  }
  // Why the last attempt failed; OK when it did not.
  absl::Status status() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu) {
    return failing_ ? last_failure_ : absl::OkStatus();
  }

 private:
  struct Item {
    uint16_t lane = 0;
    uint32_t block = 0;
    const std::byte* rows = nullptr;
    const std::byte* stripe = nullptr;
  };
  // What a batch takes of one segment.
  struct Portion {
    // Keeps the extents while they are written, without the mutex.
    SegmentRef segment;
    std::vector<Item> items;
    // By lane, and by layer, once the batch is written.
    std::vector<uint32_t> durable_end;
    std::vector<DurableExtent> watermark;
  };

  void Run();
  // One batch. Never fails: see status().
  void Step();
  absl::Status WriteBatch();
  absl::Status WriteForgotten(const std::vector<SegmentId>& forgotten);
  absl::Status WritePortions(const std::vector<Portion>& portions);

  std::vector<Portion> Collect() ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  void CollectItems(Portion& portion, size_t bytes_max) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  uint32_t WritableEnd(const Lane& lane) const;
  bool HasWork(const Segment& segment) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  void Finish(Portion& portion, bool written) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  void NoteAttempt(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);

  StoreCore& core_;
  Reclaimer& reclaimer_;
  const size_t batch_bytes_;

  // Guarded by the mutex of the core.
  std::deque<std::weak_ptr<Segment>> queue_;
  std::vector<SegmentId> forgotten_;
  bool writing_ = false;
  bool failing_ = false;
  uint64_t failures_ = 0;
  absl::Status last_failure_;
  absl::Duration backoff_;
  absl::Time retry_at_ = absl::InfinitePast();
  bool stopping_ = false;

  // Last: it uses the rest.
  std::thread thread_;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_WRITE_BEHIND_H_
