#include "kvstore/manifest_table.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/tail_log.h"

namespace terrace::kvstore {
namespace {

constexpr size_t kNameBytesMax = 255;

ManifestRecord ToRecord(const Manifest& manifest) {
  ManifestRecord record{.attributes = manifest.attributes, .ranges = {}};
  for (const SegmentRange& range : manifest.ranges) {
    record.ranges.push_back({.segment = range.segment->id,
                             .segment_first_block = range.segment->first_block,
                             .first_block = range.first_block,
                             .end_block = range.end_block,
                             .layout = range.segment->layout});
  }
  return record;
}

// Highest end by which manifests name a segment. Requires: one does.
uint32_t NamedEnd(const std::multiset<uint32_t>& ends) { return *ends.rbegin(); }

}  // namespace

absl::Status ManifestTable::Check(const Manifest& manifest) const {
  if (manifest.name.empty() || manifest.name.size() > kNameBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("manifest name has ", manifest.name.size(),
                                                   " bytes, allowed: 1 to ", kNameBytesMax));
  }
  uint32_t next = 0;
  for (const SegmentRange& range : manifest.ranges) {
    if (range.segment == nullptr || range.segment->owner != &core_) {
      return absl::InvalidArgumentError("manifest names a segment of no or another store");
    }
    const Segment& segment = *range.segment;
    const auto id = static_cast<uint64_t>(segment.id);
    if (range.first_block != next || range.end_block < range.first_block) {
      return absl::InvalidArgumentError(absl::StrCat(
          "manifest range of segment ", id, " is [", range.first_block, ", ", range.end_block,
          "), expected to start at ", next, " (only the last may be open-ended)"));
    }
    next = range.end_block;
    if (range.first_block < segment.first_block) {
      return absl::InvalidArgumentError(absl::StrCat("manifest range starts at ", range.first_block,
                                                     ", segment ", id, " at ",
                                                     segment.first_block));
    }
    if (segment.dead)
      return absl::FailedPreconditionError(absl::StrCat("segment ", id, " is freed"));
    if (range.end_block > segment.trim_end) {
      return absl::FailedPreconditionError(absl::StrCat("segment ", id, " is freed from block ",
                                                        segment.trim_end, " on, range ends at ",
                                                        range.end_block));
    }
  }
  return absl::OkStatus();
}

std::vector<ManifestTable::Cut> ManifestTable::Plan(const Ranges& before,
                                                    const Ranges& after) const {
  std::map<Segment*, std::multiset<uint32_t>> ends;
  for (const SegmentRange& range : before) {
    ends.try_emplace(range.segment.get(), range.segment->named_ends);
  }
  for (const SegmentRange& range : before) {
    auto& named = ends[range.segment.get()];
    named.erase(named.find(range.end_block));
  }
  for (const SegmentRange& range : after) {
    const auto it = ends.find(range.segment.get());
    if (it != ends.end()) it->second.insert(range.end_block);
  }
  std::vector<Cut> cuts;
  for (const auto& [segment, named] : ends) {
    if (named.empty()) {
      cuts.push_back({.segment = segment, .dies = true});
    } else if (NamedEnd(named) < NamedEnd(segment->named_ends)) {
      cuts.push_back({.segment = segment, .keep_end = NamedEnd(named)});
    }
  }
  return cuts;
}

void ManifestTable::Put(const Cut& cut, DiskBatch& batch) const {
  const Segment& segment = *cut.segment;
  if (!segment.stored) return;
  const BlockLayout& layout = segment.layout;
  if (cut.dies) {
    // Nothing lies beyond the durable end of an only lane, unless its watermark was damaged. Small
    // segments come and go often, and every read looks at all range tombstones.
    const uint32_t end = segment.lanes[0].durable_end;
    if (segment.lanes.size() > 1 || end == segment.first_block) {
      batch.DeleteSegment(segment.id);
      return;
    }
    batch.DeleteBlocks(segment.Key(0, segment.first_block), end, layout.granules());
    TailLog::Delete(segment, 0, batch);
    batch.DeleteWatermark(segment.id);
    return;
  }
  // Left as it is: nobody knows what there is to cut.
  if (segment.unreadable) return;
  std::vector<DurableExtent> watermark;
  for (uint16_t layer = 0; layer < layout.layers; ++layer) {
    const uint32_t end = segment.DurableEnd(layer);
    const bool cuts_tail = segment.tail_rows[layer] != 0 && end >= cut.keep_end;
    if (cuts_tail) TailLog::Delete(segment, layer, batch);
    for (uint16_t head = 0; head < layout.heads; ++head) {
      const uint16_t lane = segment.LaneIndex(layer, head);
      if (segment.lanes[lane].durable_end <= cut.keep_end) continue;
      batch.DeleteBlocks(segment.Key(lane, cut.keep_end), segment.lanes[lane].durable_end,
                         layout.granules());
    }
    watermark.push_back({.end_block = std::min(end, cut.keep_end),
                         .tail_rows = cuts_tail ? 0 : segment.tail_rows[layer]});
  }
  batch.PutWatermark(segment.id, watermark);
}

void ManifestTable::LowerEnds(const Segment& segment, Lane& lane, uint32_t keep_end) {
  const BlockLayout& layout = segment.layout;
  TierStats& stats = core_.disk_stats;
  const uint64_t blocks = lane.durable_end - std::min(lane.durable_end, keep_end);
  stats.resident_blocks -= blocks;
  stats.deleted_blocks += blocks;
  stats.resident_bytes -= blocks * layout.rows_bytes();
  stats.deleted_bytes += blocks * layout.rows_bytes();
  stats.index_bytes -= blocks * layout.piece_bytes();
  for (uint32_t* end : {&lane.durable_end, &lane.sealed_end, &lane.reserved_end, &lane.pieces_end,
                        &lane.flush_end}) {
    *end = std::min(*end, keep_end);
  }
}

void ManifestTable::Apply(const Cut& cut) {
  Segment& segment = *cut.segment;
  const BlockLayout& layout = segment.layout;
  const uint32_t keep_end = cut.dies ? segment.first_block : cut.keep_end;
  segment.trim_end = segment.deleted_end = keep_end;
  segment.dead = cut.dies;
  for (uint16_t layer = 0; layer < layout.layers; ++layer) {
    if (segment.DurableEnd(layer) >= keep_end) segment.tail_rows[layer] = 0;
  }
  for (size_t i = 0; i < segment.lanes.size(); ++i) {
    Lane& lane = segment.lanes[i];
    // Whoever still fills the open rows of a segment that dies may go on until it lets go of it.
    const uint32_t free_end = cut.dies ? lane.sealed_end : kOpenEnd;
    LowerEnds(segment, lane, keep_end);
    FreeExtents(segment, static_cast<uint16_t>(i), keep_end, free_end);
  }
}

void ManifestTable::ForgetBad(Extent& extent, uint64_t kept_cells) {
  core_.disk_stats.quarantined_cells -=
      static_cast<uint64_t>(std::popcount(extent.bad & ~kept_cells));
  extent.bad &= kept_cells;
}

void ManifestTable::FreeExtents(Segment& segment, uint16_t lane_index, uint32_t first_block,
                                uint32_t end_block) {
  FreeRows(segment, lane_index, first_block, end_block);
  FreePieces(segment, lane_index, first_block);
}

void ManifestTable::FreeRows(Segment& segment, uint16_t lane_index, uint32_t first_block,
                             uint32_t end_block) {
  Lane& lane = segment.lanes[lane_index];
  const size_t end_row = std::min(lane.rows.size(), size_t{end_block - segment.first_block});
  for (uint32_t row = first_block - segment.first_block; row < end_row; ++row) {
    ForgetBad(lane.rows[row], 0);
    core_.host.Free({&segment, row, lane_index, ExtentKind::kRows});
  }
}

void ManifestTable::FreePieces(Segment& segment, uint16_t lane_index, uint32_t first_block) {
  Lane& lane = segment.lanes[lane_index];
  const uint32_t first_cell = segment.dead ? 0 : segment.StripeCell(first_block);
  uint32_t stripe = segment.StripeIndex(first_block);
  if (first_cell != 0 && stripe < lane.stripes.size()) {
    // The stripe stays, without the cells of the blocks that go.
    const ExtentRef kept{&segment, stripe, lane_index, ExtentKind::kStripe};
    const uint64_t kept_cells = (uint64_t{1} << first_cell) - 1;
    ForgetBad(lane.stripes[stripe], kept_cells);
    core_.host.SetValid(kept, lane.stripes[stripe].valid & kept_cells);
    core_.host.Recount(kept);
    ++stripe;
  }
  for (; stripe < lane.stripes.size(); ++stripe) {
    ForgetBad(lane.stripes[stripe], 0);
    core_.host.Free({&segment, stripe, lane_index, ExtentKind::kStripe});
  }
}

void ManifestTable::CountRanges(const Ranges& ranges, bool parked) {
  for (const SegmentRange& range : ranges) {
    range.segment->named_ends.insert(range.end_block);
    if (!parked) range.segment->active_ends.insert(range.end_block);
  }
}

void ManifestTable::UncountRanges(const Ranges& ranges, bool parked) {
  for (const SegmentRange& range : ranges) {
    auto& named = range.segment->named_ends;
    named.erase(named.find(range.end_block));
    auto& active = range.segment->active_ends;
    if (!parked) active.erase(active.find(range.end_block));
  }
}

size_t ManifestTable::Collect(std::string_view name, Ranges& ranges) const {
  const auto it = manifests_.find(name);
  if (it == manifests_.end()) return 0;
  ranges.insert(ranges.end(), it->second.ranges.begin(), it->second.ranges.end());
  return it->second.stored_bytes;
}

absl::Status ManifestTable::Change(absl::Span<const Manifest> changed,
                                   absl::Span<const std::string> gone) {
  std::vector<Cut> cuts;
  DiskBatch batch;
  Ranges before;
  Ranges after;
  // Of the manifests that change, as they are written, and of those that they replace.
  std::vector<size_t> bytes;
  size_t bytes_before = 0;
  {
    MutexLock lock(core_.mu);
    for (const Manifest& manifest : changed) {
      bytes_before += Collect(manifest.name, before);
      after.insert(after.end(), manifest.ranges.begin(), manifest.ranges.end());
    }
    for (const std::string& name : gone) Collect(name, before);
    cuts = Plan(before, after);
    for (const Cut& cut : cuts) {
      Put(cut, batch);
      cut.segment->deleted_end = cut.dies ? 0 : cut.keep_end;
    }
  }
  if (core_.disk != nullptr) {
    for (const Manifest& manifest : changed) {
      const size_t others = batch.bytes();
      batch.PutManifest(manifest.name, ToRecord(manifest));
      bytes.push_back(batch.bytes() - others);
    }
    for (const std::string& name : gone) batch.DeleteManifest(name);
    const bool gives_up =
        !cuts.empty() || std::accumulate(bytes.begin(), bytes.end(), size_t{0}) <= bytes_before;
    const auto growth = changed.empty() ? DiskTier::Growth::kFrees
                        : gives_up      ? DiskTier::Growth::kReplaces
                                        : DiskTier::Growth::kBounded;
    absl::Status status =
        core_.disk->Write(batch, core_.options.durability == Durability::kSync, growth);
    if (!status.ok()) {
      MutexLock lock(core_.mu);
      for (const Cut& cut : cuts) cut.segment->deleted_end = cut.segment->trim_end;
      core_.CountDiskError(status);
      return status;
    }
  }
  // The old ranges may hold the last references; `before` drops them after the mutex.
  MutexLock lock(core_.mu);
  for (size_t i = 0; i < changed.size(); ++i) {
    Entry& entry = manifests_[changed[i].name];
    UncountRanges(entry.ranges, entry.parked);
    CountRanges(changed[i].ranges, entry.parked);
    entry.ranges = changed[i].ranges;
    if (!bytes.empty()) entry.stored_bytes = bytes[i];
  }
  for (const std::string& name : gone) {
    const auto it = manifests_.find(name);
    if (it == manifests_.end()) continue;
    UncountRanges(it->second.ranges, it->second.parked);
    manifests_.erase(it);
  }
  for (const Cut& cut : cuts) Apply(cut);
  core_.room.NotifyAll();
  if (writer_ != nullptr && !cuts.empty()) writer_->Retry();
  return absl::OkStatus();
}

absl::Status ManifestTable::Commit(absl::Span<const Manifest> manifests, absl::Time deadline) {
  DiskTurn turn(core_);
  {
    MutexLock lock(core_.mu);
    if (!turn.Take(deadline)) return absl::DeadlineExceededError("waiting for the disk");
    for (const Manifest& manifest : manifests) {
      if (absl::Status status = Check(manifest); !status.ok()) return status;
    }
  }
  return Change(manifests, {});
}

absl::Status ManifestTable::Delete(absl::Span<const std::string> names, absl::Time deadline) {
  DiskTurn turn(core_);
  {
    MutexLock lock(core_.mu);
    if (!turn.Take(deadline)) return absl::DeadlineExceededError("waiting for the disk");
    for (const std::string& name : names) {
      if (manifests_.contains(name)) continue;
      return absl::NotFoundError(absl::StrCat("no manifest is named ", name));
    }
  }
  return Change({}, names);
}

void ManifestTable::Abandon(Segment& segment) {
  MutexLock lock(core_.mu);
  if (!segment.dead) {
    if (segment.stored && writer_ != nullptr) writer_->Forget(segment.id);
    Apply({.segment = &segment, .dies = true});
  }
  for (size_t i = 0; i < segment.lanes.size(); ++i) {
    FreeExtents(segment, static_cast<uint16_t>(i), segment.first_block, kOpenEnd);
  }
  core_.room.NotifyAll();
}

std::vector<Manifest> ManifestTable::TakeRecovered() {
  MutexLock lock(core_.mu);
  return std::exchange(recovered_, {});
}

}  // namespace terrace::kvstore
