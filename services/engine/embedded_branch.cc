// How sequences of an EmbeddedEngine part: forks and truncates.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/engine/cell_mask.h"
#include "services/engine/embedded_engine.h"
#include "services/engine/error.h"

namespace terrace::engine {
namespace {

// Rows that a branch pins at a time: less than the store grants to reads that find no room.
constexpr size_t kTailPinBytes = size_t{16} << 20;

}  // namespace

absl::Status EmbeddedEngine::CopyTail(Sequence& sequence, kvstore::Segment& to, int64_t length,
                                      absl::Time deadline) {
  const kvstore::BlockLayout& layout = sequence.layout.block;
  const auto block = static_cast<uint32_t>(length / layout.block_tokens);
  const auto rows = static_cast<uint32_t>(length % layout.block_tokens);
  if (rows == 0) return absl::OkStatus();
  // As many layers together as bounds what is pinned: lane by lane, a disk would be waited for as
  // often as there are lanes.
  const size_t layer_bytes = layout.heads * layout.rows_bytes();
  const auto step =
      static_cast<uint16_t>(std::clamp<size_t>(kTailPinBytes / layer_bytes, 1, layout.layers));
  for (uint16_t first = 0; first < layout.layers; first += step) {
    const auto end = static_cast<uint16_t>(std::min(first + step, int{layout.layers}));
    std::vector<kvstore::ReadRequest> requests;
    for (uint16_t layer = first; layer < end; ++layer) {
      absl::Status status =
          WithRoom({.tenant = sequence.tenant, .memory_bytes = layer_bytes, .deadline = deadline},
                   [&] { return store_->ReserveRows(to, layer, block, block + 1, deadline); });
      if (absl::IsResourceExhausted(status)) return NoRoom(status.message());
      if (!status.ok()) return status;
      for (uint16_t head = 0; head < layout.heads; ++head) {
        requests.push_back({.segment = sequence.RangeOf(block).segment.get(),
                            .layer = layer,
                            .head = head,
                            .index = block,
                            .cells = GranulesOf(layout, rows)});
      }
    }
    const kvstore::Pins pins = store_->PinRows(requests, deadline);
    for (size_t i = 0; i < requests.size(); ++i) {
      const kvstore::PinnedExtent& extent = pins.extents()[i];
      if (extent.missing != 0) return extent.status;
      std::copy_n(extent.data, size_t{rows} * layout.row_bytes,
                  store_->OpenRows(to, requests[i].layer, requests[i].head, block));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<kvstore::SegmentRange>> EmbeddedEngine::Branch(Sequence& sequence,
                                                                          int64_t length,
                                                                          absl::Time deadline) {
  const auto block = static_cast<uint32_t>(length / sequence.block_tokens());
  for (int layer = 0; layer < sequence.spec.geometry.layers; ++layer) {
    absl::Status status = RestoreTail(sequence, layer, length, deadline);
    if (!status.ok()) return status;
  }
  absl::StatusOr<kvstore::SegmentRef> segment = NewSegment(sequence.layout, block, false);
  if (!segment.ok()) return segment.status();
  if (absl::Status status = CopyTail(sequence, **segment, length, deadline); !status.ok()) {
    return status;
  }
  std::vector<kvstore::SegmentRange> ranges = sequence.CutRanges(block);
  ranges.push_back({*segment, block, kvstore::kOpenEnd});
  return ranges;
}

absl::StatusOr<SequenceInfo> EmbeddedEngine::Fork(const Caller& caller, absl::string_view handle,
                                                  int64_t position, absl::string_view fingerprint) {
  absl::StatusOr<std::shared_ptr<Sequence>> found = Find(caller, handle);
  if (!found.ok()) return found.status();
  Sequence& parent = **found;
  const SharedHold gate(parent.gate, caller.wait_end());
  if (!gate.held()) return NotBegun("fork");
  if (parent.closed) return SequenceNotFound(handle);
  if (absl::Status status = parent.CheckFingerprint(fingerprint); !status.ok()) {
    return status;
  }
  if (position < 0 || position > parent.length()) {
    return absl::OutOfRangeError(absl::StrCat("fork position: got ", position,
                                              ", expected at most the length ", parent.length()));
  }
  const SequenceRecord record = {
      .tenant = parent.tenant, .spec = parent.spec, .writer_epoch = 1, .created = options_.clock()};
  return ForkLocked(parent, position, record, caller.wait_end());
}

absl::StatusOr<SequenceInfo> EmbeddedEngine::ForkLocked(Sequence& parent, int64_t position,
                                                        const SequenceRecord& record,
                                                        absl::Time deadline) {
  absl::StatusOr<std::vector<kvstore::SegmentRange>> ranges = Branch(parent, position, deadline);
  if (!ranges.ok()) return ranges.status();
  const std::shared_ptr<Sequence> child = NewSequence(parent.layout, record);
  const SharedHold gate(child->gate, absl::InfiniteFuture());
  child->ranges = *std::move(ranges);
  for (std::atomic<int64_t>& length : child->layer_length) length = position;
  child->InheritTokens(parent, position);
  return Publish(child, deadline);
}

absl::Status EmbeddedEngine::KeepDurable(Sequence& sequence, kvstore::Segment& to, int64_t length,
                                         absl::Time deadline) {
  const int64_t copied = length / sequence.block_tokens() * sequence.block_tokens();
  std::vector<uint32_t> tail_rows;
  bool any = false;
  for (int layer = 0; layer < sequence.spec.geometry.layers; ++layer) {
    const int64_t durable = std::min(length, sequence.DurableLayerLength(*store_, layer));
    tail_rows.push_back(static_cast<uint32_t>(std::max<int64_t>(0, durable - copied)));
    any = any || tail_rows.back() != 0;
  }
  return any ? store_->WriteTail(to, tail_rows, deadline) : absl::OkStatus();
}

absl::Status EmbeddedEngine::CutInPlace(Sequence& sequence, int64_t length, absl::Time deadline) {
  const auto block = static_cast<uint32_t>(length / sequence.block_tokens());
  const auto rows = static_cast<uint32_t>(length % sequence.block_tokens());
  const auto is_cut = [&](const std::atomic<int64_t>& held) {
    return held / sequence.block_tokens() > block;
  };
  // Other tokens may follow, and a crash must not take these for theirs.
  if (length < sequence.recorded_tokens) {
    if (absl::Status status = Commit(sequence, length, deadline); !status.ok()) return status;
  }
  kvstore::Segment& segment = sequence.open_segment();
  if (std::none_of(sequence.layer_length.begin(), sequence.layer_length.end(), is_cut)) {
    return store_->CutTail(segment, block, rows, deadline);
  }
  const absl::StatusOr<std::vector<bool>> on_disk = store_->Unseal(segment, block, rows, deadline);
  if (!on_disk.ok()) return on_disk.status();
  for (size_t layer = 0; layer < on_disk->size(); ++layer) {
    if (is_cut(sequence.layer_length[layer])) sequence.tail_on_disk[layer] = (*on_disk)[layer];
  }
  return absl::OkStatus();
}

absl::Status EmbeddedEngine::CutAway(Sequence& sequence, int64_t length, absl::Time deadline) {
  absl::StatusOr<std::vector<kvstore::SegmentRange>> ranges = Branch(sequence, length, deadline);
  if (!ranges.ok()) return ranges.status();
  absl::Status status = KeepDurable(sequence, *ranges->back().segment, length, deadline);
  if (!status.ok()) return status;
  std::swap(sequence.ranges, *ranges);
  status = Commit(sequence, length, deadline);
  if (!status.ok()) {
    std::swap(sequence.ranges, *ranges);
    return status;
  }
  for (std::atomic<bool>& on_disk : sequence.tail_on_disk) on_disk = false;
  return absl::OkStatus();
}

absl::Status EmbeddedEngine::TruncateLocked(Sequence& sequence, int64_t length,
                                            absl::Time deadline) {
  const auto end_block = static_cast<uint32_t>(length / sequence.block_tokens());
  int64_t longest = 0;
  for (const std::atomic<int64_t>& held : sequence.layer_length) {
    longest = std::max(longest, held.load());
  }
  // After a restart the open segment may begin beyond what was found of an earlier one.
  const bool is_before = sequence.ranges.back().first_block > end_block;
  if (longest == length && !is_before && length >= sequence.recorded_tokens) {
    return absl::OkStatus();
  }
  Unpark(sequence);
  absl::Status status = is_before ? absl::FailedPreconditionError("sealed in another segment")
                                  : CutInPlace(sequence, length, deadline);
  // Sealed blocks that others may read are immutable (I2): writing goes on in a new segment, which
  // is this sequence's alone.
  if (absl::IsFailedPrecondition(status)) status = CutAway(sequence, length, deadline);
  if (!status.ok()) return status;
  prefixes_.Remove(sequence, sequence.CutTokens(length));
  for (std::atomic<int64_t>& held : sequence.layer_length) held = length;
  ++sequence.generation;
  const kvstore::MutexLock sums(sequence.sums_mu);
  for (PrefixSum& prefix : sequence.prefix_sums) {
    if (prefix.blocks > end_block) prefix = PrefixSum();
  }
  return absl::OkStatus();
}

absl::StatusOr<SequenceInfo> EmbeddedEngine::Truncate(const Caller& caller,
                                                      absl::string_view handle,
                                                      uint64_t writer_epoch, int64_t length) {
  absl::StatusOr<std::shared_ptr<Sequence>> found = Find(caller, handle);
  if (!found.ok()) return found.status();
  Sequence& sequence = **found;
  const SoleHold gate(sequence.gate, caller.wait_end());
  if (!gate.held()) return NotBegun("truncate");
  if (sequence.closed) return SequenceNotFound(handle);
  if (writer_epoch != sequence.epoch) return EpochStale(writer_epoch, sequence.epoch);
  if (length < 0 || length > sequence.length()) {
    return absl::OutOfRangeError(absl::StrCat("truncate length: got ", length,
                                              ", expected at most the length ", sequence.length()));
  }
  if (absl::Status status = TruncateLocked(sequence, length, caller.wait_end()); !status.ok()) {
    return status;
  }
  sequence.Touch(options_.clock());
  return sequence.Info(*store_);
}

}  // namespace terrace::engine
