#include "kvstore/tail_log.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

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

absl::Status TailLog::Write(Segment& segment, absl::Span<const uint32_t> tail_rows, Purpose purpose,
                            absl::Time deadline) {
  DiskTurn turn(core_);
  {
    MutexLock lock(core_.mu);
    if (!turn.Take(deadline)) return absl::DeadlineExceededError("waiting for the disk");
    if (segment.dead) return absl::FailedPreconditionError("the segment is freed");
  }
  return WriteInTurn(segment, tail_rows, purpose);
}

void TailLog::Delete(const Segment& segment, uint16_t layer, DiskBatch& batch) {
  const uint32_t end = segment.DurableEnd(layer);
  for (uint16_t head = 0; head < segment.layout.heads; ++head) {
    const BlockKey block = segment.Key(segment.LaneIndex(layer, head), end);
    batch.DeleteTail(block);
    // Heads that got further have the block itself there, and heads without a tail nothing.
    if (segment.tail_rows[layer] == 0 || segment.lane(layer, head).durable_end > end) continue;
    batch.DeleteBlocks(block, end + 1, segment.layout.granules());
  }
}

absl::Status TailLog::Cut(Segment& segment, uint32_t block, uint32_t rows, absl::Time deadline) {
  const BlockLayout& layout = segment.layout;
  const auto kept = [&](uint16_t layer) {
    const uint32_t end = segment.DurableEnd(layer);
    const uint32_t standing = end < block ? layout.block_tokens : end == block ? rows : 0;
    return std::min(segment.tail_rows[layer], standing);
  };
  DiskTurn turn(core_);
  DiskBatch batch;
  std::vector<DurableExtent> watermark;
  {
    MutexLock lock(core_.mu);
    // Tails that a write left behind when it failed are known to nobody.
    bool any = core_.disk != nullptr && segment.stored && core_.disk->in_doubt();
    for (uint16_t layer = 0; layer < layout.layers; ++layer) {
      any = any || kept(layer) != segment.tail_rows[layer];
    }
    // Without the turn, for who speculates cuts often: all that the writer may do meanwhile is to
    // remove tails.
    if (segment.dead || !any) return absl::OkStatus();
    if (!turn.Take(deadline)) return absl::DeadlineExceededError("waiting for the disk");
    for (uint16_t layer = 0; layer < layout.layers; ++layer) {
      const uint32_t end = segment.DurableEnd(layer);
      watermark.push_back({.end_block = end, .tail_rows = kept(layer)});
      if (segment.tail_rows[layer] == 0 || watermark.back().tail_rows != 0) continue;
      Delete(segment, layer, batch);
    }
  }
  batch.PutWatermark(segment.id, watermark);
  absl::Status status = core_.disk->Write(batch, core_.options.durability == Durability::kSync,
                                          DiskTier::Growth::kReplaces);
  MutexLock lock(core_.mu);
  if (!status.ok()) {
    core_.CountDiskError(status);
    return status;
  }
  for (uint16_t layer = 0; layer < layout.layers; ++layer) {
    segment.tail_rows[layer] = watermark[layer].tail_rows;
  }
  return absl::OkStatus();
}

absl::Status TailLog::WriteInTurn(Segment& segment, absl::Span<const uint32_t> tail_rows,
                                  Purpose purpose) {
  const BlockLayout& layout = segment.layout;
  DiskBatch batch;
  std::vector<Tail> tails;
  std::vector<DurableExtent> watermark;
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
      if (rows == 0) {
        if (segment.tail_rows[layer] != 0) Delete(segment, layer, batch);
        continue;
      }
      for (uint16_t head = 0; head < layout.heads; ++head) {
        const uint16_t lane = segment.LaneIndex(layer, head);
        const BlockKey block = segment.Key(lane, end);
        const ExtentRef ref{&segment, end - segment.first_block, lane, ExtentKind::kRows};
        core_.host.Pin(ref);
        tails.push_back({.ref = ref,
                         .block = block,
                         .rows = segment.ExtentAt(lane, ref.kind, ref.index).data,
                         .bytes = size_t{rows} * layout.row_bytes});
      }
    }
    segment.stored = true;
  }
  for (const Tail& tail : tails) batch.PutTail(tail.block, {tail.rows, tail.bytes});
  batch.PutWatermark(segment.id, watermark);
  const bool flush = purpose == Purpose::kFlush;
  const bool bounded = flush && !tails.empty();
  absl::Status status = core_.disk->Write(
      batch, flush, bounded ? DiskTier::Growth::kBounded : DiskTier::Growth::kReplaces);
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

absl::Status TailLog::Restore(Segment& segment, uint16_t layer, absl::Time deadline) {
  const BlockLayout& layout = segment.layout;
  uint32_t rows = 0;
  uint32_t block = 0;
  std::vector<BlockKey> keys;
  {
    MutexLock lock(core_.mu);
    rows = segment.tail_rows[layer];
    block = segment.DurableEnd(layer);
    for (uint16_t head = 0; head < layout.heads; ++head) {
      keys.push_back(segment.Key(segment.LaneIndex(layer, head), block));
    }
  }
  const auto tails = reader_.ReadTails(std::move(keys), layout, rows, deadline);
  if (!tails.ok()) return tails.status();
  const size_t wanted = size_t{rows} * layout.row_bytes;
  MutexLock lock(core_.mu);
  for (uint16_t head = 0; head < layout.heads; ++head) {
    const absl::StatusOr<std::string>& tail = (*tails)[head];
    // A tail that the watermark promises and that is not there is lost.
    if (!tail.ok() && !absl::IsUnavailable(tail.status())) {
      ++core_.disk_stats.corrupt_granules;
      core_.CountDiskError(tail.status());
      return absl::DataLossError(tail.status().message());
    }
    if (!tail.ok()) return tail.status();
    // Longer than the watermark says when it was cut.
    if (tail->size() < wanted) {
      return absl::DataLossError(
          absl::StrCat("tail: ", tail->size(), " bytes stored, ", wanted, " expected"));
    }
    core_.disk_stats.read_bytes += tail->size();
    const uint16_t lane = segment.LaneIndex(layer, head);
    std::memcpy(segment.ExtentAt(lane, ExtentKind::kRows, block - segment.first_block).data,
                tail->data(), wanted);
  }
  return absl::OkStatus();
}

}  // namespace terrace::kvstore
