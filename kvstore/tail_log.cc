#include "kvstore/tail_log.h"

#include <cstring>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace terrace::kvstore {
namespace {

// Open rows of one lane on their way to disk.
struct Tail {
  ExtentRef ref;
  BlockKey block;
  const std::byte* rows = nullptr;
  size_t bytes = 0;
};

}  // namespace

absl::Status TailLog::Write(Segment& segment, absl::Span<const uint32_t> tail_rows,
                            absl::Time deadline) {
  DiskTurn turn(core_);
  {
    MutexLock lock(core_.mu);
    if (!turn.Take(deadline)) return absl::DeadlineExceededError("waiting for the disk");
    if (segment.dead) return absl::FailedPreconditionError("the segment is freed");
  }
  return WriteInTurn(segment, tail_rows, /*sync=*/true);
}

absl::Status TailLog::Drop(Segment& segment) {
  DiskTurn turn(core_);
  {
    MutexLock lock(core_.mu);
    turn.Take(absl::InfiniteFuture());
    bool any = false;
    for (const uint32_t rows : segment.tail_rows) any = any || rows != 0;
    if (segment.dead || !any) return absl::OkStatus();
  }
  return WriteInTurn(segment, std::vector<uint32_t>(segment.layout.layers, 0),
                     core_.options.durability == Durability::kSync);
}

absl::Status TailLog::WriteInTurn(Segment& segment, absl::Span<const uint32_t> tail_rows,
                                  bool sync) {
  const BlockLayout& layout = segment.layout;
  DiskBatch batch;
  std::vector<Tail> tails;
  std::vector<DurableExtent> watermark;
  bool grows = false;
  {
    MutexLock lock(core_.mu);
    for (uint16_t layer = 0; layer < layout.layers; ++layer) {
      const uint32_t end = segment.DurableEnd(layer);
      uint32_t rows = tail_rows[layer];
      for (uint16_t head = 0; head < layout.heads; ++head) {
        const uint16_t lane = segment.LaneIndex(layer, head);
        const ExtentRef ref{&segment, end - segment.first_block, lane, ExtentKind::kRows};
        const Extent* extent = segment.FindExtent(lane, ref.kind, ref.index);
        // Sealed meanwhile: then the writer has it.
        if (extent == nullptr || extent->data == nullptr) rows = 0;
      }
      watermark.push_back({.end_block = end, .tail_rows = rows});
      for (uint16_t head = 0; head < layout.heads; ++head) {
        const uint16_t lane = segment.LaneIndex(layer, head);
        const BlockKey block = segment.Key(lane, end);
        if (rows == 0) {
          if (segment.tail_rows[layer] != 0) batch.DeleteTail(block);
          continue;
        }
        const ExtentRef ref{&segment, end - segment.first_block, lane, ExtentKind::kRows};
        core_.host.Pin(ref);
        tails.push_back({.ref = ref,
                         .block = block,
                         .rows = segment.ExtentAt(lane, ref.kind, ref.index).data,
                         .bytes = size_t{rows} * layout.row_bytes});
        grows = true;
      }
    }
    segment.stored = true;
  }
  for (const Tail& tail : tails) batch.PutTail(tail.block, {tail.rows, tail.bytes});
  batch.PutWatermark(segment.id, watermark);
  const absl::Status status =
      core_.disk->Write(batch, sync, grows ? DiskTier::Growth::kBounded : DiskTier::Growth::kFrees);
  MutexLock lock(core_.mu);
  for (const Tail& tail : tails) core_.host.Unpin(tail.ref);
  if (!status.ok()) {
    core_.CountDiskError(status);
    return status;
  }
  for (uint16_t layer = 0; layer < layout.layers; ++layer) {
    segment.tail_rows[layer] = watermark[layer].tail_rows;
  }
  return absl::OkStatus();
}

absl::Status TailLog::Restore(Segment& segment) {
  const BlockLayout& layout = segment.layout;
  for (uint16_t layer = 0; layer < layout.layers; ++layer) {
    uint32_t rows = 0;
    uint32_t block = 0;
    {
      MutexLock lock(core_.mu);
      rows = segment.tail_rows[layer];
      block = segment.DurableEnd(layer);
    }
    if (rows == 0) continue;
    for (uint16_t head = 0; head < layout.heads; ++head) {
      const uint16_t lane = segment.LaneIndex(layer, head);
      const absl::StatusOr<std::string> tail = core_.disk->ReadTail(segment.Key(lane, block));
      const size_t expected = size_t{rows} * layout.row_bytes;
      MutexLock lock(core_.mu);
      // A tail that the watermark promises and that is not there is lost.
      if (!tail.ok() && !absl::IsUnavailable(tail.status())) {
        ++core_.disk_stats.corrupt_granules;
        core_.CountDiskError(tail.status());
        return absl::DataLossError(tail.status().message());
      }
      if (!tail.ok()) return tail.status();
      if (tail->size() != expected) {
        return absl::DataLossError(
            absl::StrCat("tail: ", tail->size(), " bytes stored, ", expected, " expected"));
      }
      core_.disk_stats.read_bytes += tail->size();
      std::memcpy(segment.ExtentAt(lane, ExtentKind::kRows, block - segment.first_block).data,
                  tail->data(), tail->size());
    }
  }
  return absl::OkStatus();
}

}  // namespace terrace::kvstore
