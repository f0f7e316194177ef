// ManifestTable: which manifests there are, and so which segments live and up to which block.
//
// A change is written before it is made, in one batch with the deletion of what nobody refers to
// any more; when writing fails nothing has changed. Cost follows the ranges, and the blocks that
// are in memory of what is freed.
#ifndef TERRACE_KVSTORE_MANIFEST_TABLE_H_
#define TERRACE_KVSTORE_MANIFEST_TABLE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvstore/block_store.h"
#include "kvstore/disk_tier.h"
#include "kvstore/store_core.h"
#include "kvstore/write_behind.h"

namespace terrace::kvstore {

class ManifestTable {
 public:
  // `writer` is told when room on disk may have come; null without a disk.
  ManifestTable(StoreCore& core, WriteBehind* writer) : core_(core), writer_(writer) {}

  using MakeSegment =
      std::function<SegmentRef(SegmentId id, const BlockLayout& layout, uint32_t first_block)>;
  // Brings back manifests and segments, and deletes on disk what no manifest names. Call it once,
  // first. DataLoss when the records contradict each other.
  absl::Status Recover(const MakeSegment& make_segment);
  std::vector<Manifest> TakeRecovered();

  absl::Status Commit(absl::Span<const Manifest> manifests, absl::Time deadline);
  absl::Status Delete(absl::Span<const std::string> names, absl::Time deadline);

  // As BlockStore.
  absl::StatusOr<ParkedBytes> Park(std::string_view name);
  void Unpark(std::string_view name);

  // As BlockStore.
  absl::StatusOr<std::vector<bool>> Unseal(Segment& segment, uint32_t block, uint32_t rows,
                                           absl::Time deadline);

  // Frees what a segment still has; to be called before it is destroyed.
  void Abandon(Segment& segment);

 private:
  // What changes for one segment: it ends at keep_end, or dies.
  struct Cut {
    Segment* segment = nullptr;
    bool dies = false;
    uint32_t keep_end = kOpenEnd;
  };
  using Ranges = std::vector<SegmentRange>;
  // What is kept of a manifest: its attributes are its owner's.
  struct Entry {
    Ranges ranges;
    bool parked = false;
    // On disk, about.
    size_t stored_bytes = 0;
  };

  // Counts the ranges of a manifest among those that name their segments, or no longer.
  static void CountRanges(const Ranges& ranges, bool parked);
  static void UncountRanges(const Ranges& ranges, bool parked);

  absl::Status Check(const Manifest& manifest) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  std::vector<Cut> Plan(const Ranges& before, const Ranges& after) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  // Adds what a cut deletes on disk.
  void Put(const Cut& cut, DiskBatch& batch) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  void Apply(const Cut& cut) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  // Frees the memory of rows of blocks [first_block, end_block) of a lane, and of all stripes from
  // there on, and forgets what of it is quarantined.
  void FreeExtents(Segment& segment, uint16_t lane_index, uint32_t first_block, uint32_t end_block)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  void FreeRows(Segment& segment, uint16_t lane_index, uint32_t first_block, uint32_t end_block)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  void FreePieces(Segment& segment, uint16_t lane_index, uint32_t first_block)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  // The lane ends at `keep_end` if it got further; counts what of it was on disk as deleted.
  void LowerEnds(const Segment& segment, Lane& lane, uint32_t keep_end)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  void ForgetBad(Extent& extent, uint64_t kept_cells) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  // What becomes of the layers of a segment whose blocks from `block` on are unsealed.
  struct Unsealing {
    Segment* segment = nullptr;
    uint32_t block = 0;
    // Rows of it that stay.
    uint32_t rows = 0;
    // By layer: what is durable then, and whether the rows that stay are on disk only.
    std::vector<DurableExtent> watermark;
    std::vector<bool> on_disk;
    // Rows that stay where they are, pinned meanwhile.
    std::vector<ExtentRef> kept;
  };
  // FailedPrecondition when somebody else may read what is to be unsealed.
  static absl::Status CheckUnsealing(const Segment& segment, uint32_t block);
  absl::Status PlanUnsealing(Unsealing& unsealing) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  // Adds what it changes on disk: nothing, where nothing of it is there.
  void PutUnsealing(const Unsealing& unsealing, DiskBatch& batch) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  void ApplyUnsealing(const Unsealing& unsealing) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  // Takes extents of one lane in a range out of memory, but those of blocks below `kept_end`.
  void ParkLane(const SegmentRange& range, uint16_t lane_index, uint32_t kept_end,
                ParkedBytes& parked) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  void ForgetOpenRows(Segment& segment, uint16_t lane_index, ParkedBytes& parked)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  // Adds or replaces `changed`, and takes away `gone`. Requires the disk turn.
  absl::Status Change(absl::Span<const Manifest> changed, absl::Span<const std::string> gone);
  // Adds the ranges of the manifest of that name, if there is one; its bytes on disk.
  size_t Collect(std::string_view name, Ranges& ranges) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);

  // FailedPrecondition when the host tier is too small for an extent of some segment.
  absl::Status CheckExtents(const DiskIndex& index) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  absl::Status RecoverManifest(const std::string& name, ManifestRecord record,
                               const MakeSegment& make_segment)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  void MarkUnreadable(const DiskIndex& index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  // Deletes what no manifest came to name only if it `may_cut`: all manifests are known.
  void RecoverWatermark(Segment& segment, const std::vector<DurableExtent>& layers, bool may_cut,
                        DiskBatch& batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);

  StoreCore& core_;
  WriteBehind* const writer_;
  std::map<std::string, Entry, std::less<>> manifests_ ABSL_GUARDED_BY(core_.mu);
  std::vector<Manifest> recovered_ ABSL_GUARDED_BY(core_.mu);
  // While recovering.
  std::map<SegmentId, SegmentRef> recovering_ ABSL_GUARDED_BY(core_.mu);
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_MANIFEST_TABLE_H_
