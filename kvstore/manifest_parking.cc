// Manifests that nobody reads for a while, and how what they name leaves memory.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvstore/manifest_table.h"

namespace terrace::kvstore {

absl::StatusOr<ParkedBytes> ManifestTable::Park(std::string_view name) {
  if (core_.disk == nullptr) return absl::FailedPreconditionError("the store has no disk");
  // Go after the mutex: they may have become the last references.
  Ranges ranges;
  std::vector<uint32_t> kept_ends;
  {
    MutexLock lock(core_.mu);
    const auto it = manifests_.find(name);
    if (it == manifests_.end()) {
      return absl::NotFoundError(absl::StrCat("no manifest is named ", std::string(name)));
    }
    Entry& entry = it->second;
    ranges = entry.ranges;
    UncountRanges(ranges, entry.parked);
    entry.parked = true;
    CountRanges(ranges, entry.parked);
    for (const SegmentRange& range : ranges) {
      const auto& active = range.segment->active_ends;
      kept_ends.push_back(active.empty() ? 0 : *active.rbegin());
    }
  }
  ParkedBytes parked;
  for (size_t i = 0; i < ranges.size(); ++i) {
    for (size_t lane = 0; lane < ranges[i].segment->lanes.size(); ++lane) {
      // Lane by lane, so that others get on in between.
      MutexLock lock(core_.mu);
      ParkLane(ranges[i], static_cast<uint16_t>(lane), kept_ends[i], parked);
    }
  }
  MutexLock lock(core_.mu);
  core_.room.NotifyAll();
  return parked;
}

void ManifestTable::Unpark(std::string_view name) {
  MutexLock lock(core_.mu);
  const auto it = manifests_.find(name);
  if (it == manifests_.end()) return;
  Entry& entry = it->second;
  UncountRanges(entry.ranges, entry.parked);
  entry.parked = false;
  CountRanges(entry.ranges, entry.parked);
}

void ManifestTable::ParkLane(const SegmentRange& range, uint16_t lane_index, uint32_t kept_end,
                             ParkedBytes& parked) {
  Segment& segment = *range.segment;
  if (range.end_block == kOpenEnd) ForgetOpenRows(segment, lane_index, parked);
  const auto leave = [&](ExtentKind kind, uint32_t index, uint32_t block,
                         uint64_t& freed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu) {
    if (segment.ExtentAt(lane_index, kind, index).data == nullptr) return;
    const ExtentRef ref{&segment, index, lane_index, kind};
    const uint64_t bytes = ExtentPool::RoundUp(segment.ExtentBytes(kind));
    const bool stays = block < kept_end || segment.Dirty(lane_index, kind, index);
    (!stays && core_.host.Evict(ref) ? freed : parked.kept) += bytes;
  };
  const Lane& lane = segment.lanes[lane_index];
  const auto row_end = static_cast<uint32_t>(
      std::min(lane.rows.size(), size_t{range.end_block - segment.first_block}));
  for (uint32_t row = range.first_block - segment.first_block; row < row_end; ++row) {
    leave(ExtentKind::kRows, row, segment.first_block + row, parked.freed_rows);
  }
  for (uint32_t stripe = segment.StripeIndex(range.first_block);
       stripe < lane.stripes.size() && segment.StripeBlock(stripe) < range.end_block; ++stripe) {
    leave(ExtentKind::kStripe, stripe, segment.StripeBlock(stripe), parked.freed_index);
  }
}

void ManifestTable::ForgetOpenRows(Segment& segment, uint16_t lane_index, ParkedBytes& parked) {
  Lane& lane = segment.lanes[lane_index];
  for (auto row = static_cast<uint32_t>(lane.rows.size());
       row > lane.sealed_end - segment.first_block;) {
    const ExtentRef open{&segment, --row, lane_index, ExtentKind::kRows};
    if (lane.rows[row].data == nullptr) continue;
    // Somebody reads them: then they stay open.
    if (!core_.host.Evict(open)) return;
    parked.freed_rows += ExtentPool::RoundUp(segment.layout.rows_bytes());
  }
  // No room is held for their pieces any more.
  const uint32_t pieces_end = std::exchange(lane.pieces_end, lane.sealed_end);
  lane.reserved_end = lane.sealed_end;
  const auto end = static_cast<uint32_t>(lane.stripes.size());
  for (uint32_t stripe = segment.StripeIndex(lane.sealed_end);
       stripe < end && segment.StripeBlock(stripe) < pieces_end; ++stripe) {
    core_.host.Recount({&segment, stripe, lane_index, ExtentKind::kStripe});
  }
}

}  // namespace terrace::kvstore
