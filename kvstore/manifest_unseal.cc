// How the manifest table takes the seals off blocks that only their owner names.
#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "kvstore/manifest_table.h"
#include "kvstore/tail_log.h"

namespace terrace::kvstore {
namespace {

// Granules that hold the first `rows` rows of a block.
uint64_t GranulesOf(const BlockLayout& layout, uint32_t rows) {
  const uint32_t count = (rows + layout.granule_tokens - 1) / layout.granule_tokens;
  return count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

bool IsPinned(const std::vector<Extent>& extents, size_t first) {
  return std::any_of(extents.begin() + static_cast<int64_t>(std::min(first, extents.size())),
                     extents.end(), [](const Extent& extent) { return extent.pins > 0; });
}

absl::Status Refused(const Segment& segment, uint32_t block, absl::string_view why) {
  return absl::FailedPreconditionError(absl::StrCat(
      "unseal segment ", static_cast<uint64_t>(segment.id), " from block ", block, " on: ", why));
}

}  // namespace

absl::StatusOr<std::vector<bool>> ManifestTable::Unseal(Segment& segment, uint32_t block,
                                                        uint32_t rows, absl::Time deadline) {
  Unsealing unsealing;
  unsealing.segment = &segment;
  unsealing.block = block;
  unsealing.rows = rows;
  DiskTurn turn(core_);
  DiskBatch batch;
  {
    MutexLock lock(core_.mu);
    // With it, nobody writes these blocks, and no manifest comes to name them.
    if (!turn.Take(deadline)) return absl::DeadlineExceededError("waiting for the disk");
    if (absl::Status status = CheckUnsealing(segment, block); !status.ok()) return status;
    if (absl::Status status = PlanUnsealing(unsealing); !status.ok()) return status;
    PutUnsealing(unsealing, batch);
    for (const ExtentRef& ref : unsealing.kept) core_.host.Pin(ref);
    segment.unsealing_from = block;
  }
  const absl::Status status =
      batch.empty() ? absl::OkStatus()
                    : core_.disk->Write(batch, core_.options.durability == Durability::kSync,
                                        DiskTier::Growth::kReplaces);
  MutexLock lock(core_.mu);
  segment.unsealing_from = kOpenEnd;
  if (status.ok()) ApplyUnsealing(unsealing);
  for (const ExtentRef& ref : unsealing.kept) core_.host.Unpin(ref);
  core_.room.NotifyAll();
  if (status.ok()) return unsealing.on_disk;
  core_.CountDiskError(status);
  return status;
}

absl::Status ManifestTable::CheckUnsealing(const Segment& segment, uint32_t block) {
  if (segment.dead || segment.unreadable || segment.trim_end != kOpenEnd ||
      block < segment.first_block) {
    return Refused(segment, block, "not all of it is there");
  }
  const auto beyond = segment.named_ends.upper_bound(block);
  if (std::distance(beyond, segment.named_ends.end()) > 1) {
    return Refused(segment, block, "another manifest names it");
  }
  const bool is_pinned =
      std::any_of(segment.lanes.begin(), segment.lanes.end(), [&](const Lane& lane) {
        return IsPinned(lane.rows, block - segment.first_block) ||
               IsPinned(lane.stripes, segment.StripeIndex(block));
      });
  return is_pinned ? Refused(segment, block, "it is being read") : absl::OkStatus();
}

absl::Status ManifestTable::PlanUnsealing(Unsealing& unsealing) {
  Segment& segment = *unsealing.segment;
  const uint32_t block = unsealing.block;
  const uint32_t rows = unsealing.rows;
  const uint64_t cells = GranulesOf(segment.layout, rows);
  for (uint16_t layer = 0; layer < segment.layout.layers; ++layer) {
    const uint32_t end = segment.DurableEnd(layer);
    const uint32_t tail = segment.tail_rows[layer];
    unsealing.watermark.push_back({.end_block = std::min(end, block),
                                   .tail_rows = end < block    ? tail
                                                : end == block ? std::min(tail, rows)
                                                               : rows});
    std::vector<ExtentRef> open;
    bool in_memory = true;
    for (uint16_t head = 0; head < segment.layout.heads; ++head) {
      const uint16_t lane = segment.LaneIndex(layer, head);
      // Nothing stays, or it is open already, and the owner knows where it is.
      if (rows == 0 || segment.lanes[lane].sealed_end <= block) continue;
      const ExtentRef ref{&segment, block - segment.first_block, lane, ExtentKind::kRows};
      const Extent* extent = segment.FindExtent(lane, ref.kind, ref.index);
      in_memory = in_memory && extent != nullptr && (extent->valid & cells) == cells;
      open.push_back(ref);
    }
    if (!in_memory && end <= block) {
      return Refused(segment, block, "its rows are partly on disk only");
    }
    unsealing.on_disk.push_back(!in_memory);
    if (in_memory) unsealing.kept.insert(unsealing.kept.end(), open.begin(), open.end());
  }
  return absl::OkStatus();
}

void ManifestTable::PutUnsealing(const Unsealing& unsealing, DiskBatch& batch) const {
  const Segment& segment = *unsealing.segment;
  if (core_.disk == nullptr || !segment.stored) return;
  // Tails that a write left behind when it failed are known to nobody.
  bool any = core_.disk->in_doubt();
  for (uint16_t layer = 0; layer < segment.layout.layers; ++layer) {
    const DurableExtent& after = unsealing.watermark[layer];
    const uint32_t end = segment.DurableEnd(layer);
    // Rows that stay durable do so in the records of the block, unless they have their own.
    const bool keeps_block = end >= unsealing.block && after.tail_rows != 0;
    const uint32_t first = unsealing.block + (keeps_block ? 1 : 0);
    if (segment.tail_rows[layer] != 0 && end >= first) TailLog::Delete(segment, layer, batch);
    any = any || after.end_block != end || after.tail_rows != segment.tail_rows[layer];
    for (uint16_t head = 0; head < segment.layout.heads; ++head) {
      const uint16_t lane = segment.LaneIndex(layer, head);
      const uint32_t durable_end = segment.lanes[lane].durable_end;
      if (durable_end <= first) continue;
      batch.DeleteBlocks(segment.Key(lane, first), durable_end, segment.layout.granules());
    }
  }
  if (any || !batch.empty()) batch.PutWatermark(segment.id, unsealing.watermark);
}

void ManifestTable::ApplyUnsealing(const Unsealing& unsealing) {
  Segment& segment = *unsealing.segment;
  const uint32_t block = unsealing.block;
  ++segment.unseals;
  segment.unsealed_from = std::min(segment.unsealed_from, block);
  for (uint16_t layer = 0; layer < segment.layout.layers; ++layer) {
    segment.tail_rows[layer] = unsealing.watermark[layer].tail_rows;
    const bool stays = unsealing.rows != 0 && !unsealing.on_disk[layer];
    const uint32_t open_end = block + (stays ? 1 : 0);
    for (uint16_t head = 0; head < segment.layout.heads; ++head) {
      const uint16_t lane_index = segment.LaneIndex(layer, head);
      Lane& lane = segment.lanes[lane_index];
      const uint32_t reserved_end = std::min(lane.reserved_end, open_end);
      LowerEnds(segment, lane, block);
      lane.reserved_end = reserved_end;
      FreeRows(segment, lane_index, open_end, kOpenEnd);
      FreePieces(segment, lane_index, block);
    }
  }
  for (const ExtentRef& ref : unsealing.kept) {
    // Those beyond the rows that stay are there to be written.
    ForgetBad(segment.ExtentAt(ref.lane, ref.kind, ref.index), 0);
    core_.host.SetValid(ref, GranulesOf(segment.layout, segment.layout.block_tokens));
    core_.host.Recount(ref);
  }
}

}  // namespace terrace::kvstore
