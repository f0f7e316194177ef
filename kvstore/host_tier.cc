#include "kvstore/host_tier.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>
#include <vector>

#include "absl/base/internal/raw_logging.h"

namespace terrace::kvstore {
namespace {

// Extents ranked at a time, and evicted of them: 16 looks for each. A read looks for one.
constexpr size_t kSampleCount = 64;
constexpr size_t kEvictCount = 4;
constexpr size_t kReadSampleCount = 16;
constexpr size_t kSlabSampleCount = 16;
// A read that finds nothing to evict soon has its scratch; who reserves looks everywhere.
constexpr size_t kReadVisits = 1024;
// Watermarks, as parts of the capacity.
constexpr uint64_t kKeptPart = 16;
constexpr uint64_t kCrowdedPart = 32;

uint64_t AllCells(uint32_t cells) {
  return cells == 64 ? ~uint64_t{0} : (uint64_t{1} << cells) - 1;
}

}  // namespace

HostTier::HostTier(std::unique_ptr<ExtentPool> pool, bool can_evict, PolicyKind policy)
    : pool_(std::move(pool)),
      can_evict_(can_evict),
      kept_room_(pool_->capacity_bytes() / kKeptPart),
      crowded_room_(pool_->capacity_bytes() / kCrowdedPart),
      clock_(HeatOptions{}),
      rows_ranking_(policy, PlacementOptions{}, clock_),
      stripes_ranking_(PolicyKind::kLru, PlacementOptions{}, clock_) {
  stats_.capacity_bytes = pool_->capacity_bytes();
}

void HostTier::Touch(const ExtentRef& ref, float mass) {
  RankingOf(ref.kind).Touch(mass, At(ref).standing);
}

bool HostTier::Take(const ExtentRef& ref, Demand demand) {
  const size_t bytes = ref.segment->ExtentBytes(ref.kind);
  if (demand == Demand::kReserve) Touch(ref, kUntoldMass);
  if (ref.kind == ExtentKind::kRows) rows_bytes_ = bytes;
  uint64_t kept = 0;
  if (demand == Demand::kReadRows) kept = kept_room_;
  if (demand == Demand::kReadAhead) kept = crowded_room_;
  std::byte* data = kept == 0 || RowsRoom() > kept ? pool_->Allocate(bytes, ref) : nullptr;
  while (data == nullptr) {
    if (!MakeRoom(ref, demand)) {
      if (demand == Demand::kReadRows) ++stats_.bypassed_blocks;
      return false;
    }
    data = pool_->Allocate(bytes, ref);
  }
  Extent& extent = At(ref);
  ABSL_RAW_CHECK(extent.data == nullptr, "extent is in memory already");
  extent.data = data;
  RankingOf(ref.kind).Insert(extent.standing);
  ++CountOf(ref).extents;
  if (ref.kind == ExtentKind::kRows) {
    ++stats_.admitted_blocks;
    ++stats_.resident_blocks;
    stats_.admitted_bytes += bytes;
    stats_.resident_bytes += bytes;
    if (demand == Demand::kReserve) SetValid(ref, AllCells(ref.segment->layout.granules()));
  } else {
    stats_.index_bytes += bytes;
  }
  Recount(ref);
  return true;
}

void HostTier::Free(const ExtentRef& ref) {
  const Extent& extent = At(ref);
  if (extent.data != nullptr && extent.pins == 0) Drop(ref, Departure::kDeleted);
}

bool HostTier::Evict(const ExtentRef& ref) {
  if (At(ref).pins > 0) return false;
  Drop(ref, Departure::kEvicted);
  return true;
}

void HostTier::Pin(const ExtentRef& ref) {
  Extent& extent = At(ref);
  ++extent.pins;
  Recount(ref);
}

bool HostTier::Unpin(const ExtentRef& ref) {
  Extent& extent = At(ref);
  ABSL_RAW_CHECK(extent.pins > 0, "extent is not pinned");
  if (--extent.pins > 0 || extent.data == nullptr) return false;
  if (ref.segment->Freed(ref.kind, ref.index)) {
    Drop(ref, Departure::kDeleted);
    return true;
  }
  Recount(ref);
  return !extent.held;
}

void HostTier::SetValid(const ExtentRef& ref, uint64_t cells) {
  Extent& extent = At(ref);
  HostCells& in_host = ref.segment->in_host[ref.lane / ref.segment->layout.heads];
  // Unsigned, so that what goes wraps around to less.
  const uint64_t change = static_cast<uint64_t>(std::popcount(cells)) -
                          static_cast<uint64_t>(std::popcount(extent.valid));
  if (ref.kind == ExtentKind::kRows) {
    in_host.blocks += uint64_t{cells != 0} - uint64_t{extent.valid != 0};
    in_host.granules += change;
  } else {
    in_host.pieces += change;
  }
  extent.valid = cells;
}

void HostTier::Recount(const ExtentRef& ref) {
  Extent& extent = At(ref);
  const bool held = extent.data != nullptr &&
                    (extent.pins > 0 || ref.segment->Dirty(ref.lane, ref.kind, ref.index));
  if (held == extent.held) return;
  extent.held = held;
  CountOf(ref).held += held ? 1 : -1;
  const uint64_t bytes = ExtentPool::RoundUp(ref.segment->ExtentBytes(ref.kind));
  stats_.pinned_bytes += held ? bytes : -bytes;
}

TierStats HostTier::stats() const {
  TierStats stats = stats_;
  stats.used_bytes = pool_->used_bytes();
  return stats;
}

bool HostTier::Evictable(const ExtentRef& ref) const {
  // Keeps I3, and never the only copy: both count as held.
  return can_evict_ && !At(ref).held;
}

bool HostTier::Worth(const Search& search, const Standing& victim) const {
  if (clock_.accesses() - victim.heat.last_access < search.age) return false;
  if (search.newcomer == nullptr) return true;
  return search.ahead ? rows_ranking_.AdmitsAhead(*search.newcomer, victim)
                      : rows_ranking_.Admits(*search.newcomer, victim);
}

bool HostTier::EvictFrom(size_t bytes, ExtentKind kind, const Search& search) {
  if (!HasEvictable(kind)) return false;
  std::array<ExtentRef, kSampleCount> refs;
  const bool is_read = search.newcomer != nullptr;
  const size_t sample_count = is_read ? kReadSampleCount : kSampleCount;
  size_t visits = std::min(search.visits, pool_->SlotCount(bytes, kind));
  while (visits > 0) {
    const size_t found =
        pool_->Sample(bytes, kind, &visits, absl::MakeSpan(refs).first(sample_count));
    std::vector<ExtentRef> candidates;
    std::vector<Standing*> standings;
    bool refused = false;
    for (const ExtentRef& ref : absl::MakeConstSpan(refs).first(found)) {
      if (!Evictable(ref)) continue;
      if (!Worth(search, At(ref).standing)) {
        refused = true;
        continue;
      }
      candidates.push_back(ref);
      standings.push_back(&At(ref).standing);
    }
    const std::vector<size_t> victims =
        RankingOf(kind).Coldest(standings, is_read ? 1 : kEvictCount);
    for (const size_t victim : victims) Drop(candidates[victim], Departure::kEvicted);
    if (!victims.empty()) return true;
    if (is_read && refused) return false;
  }
  return false;
}

bool HostTier::EvictSlab(size_t bytes, ExtentKind kind, ExtentKind taker, Search search) {
  if (!HasEvictable(kind) || (kind != taker && !pool_->MayTakeSlab(taker))) return false;
  // Slabs of the taker's own class have been looked at.
  const size_t other_than = kind == taker ? bytes : 0;
  ExtentRanking& ranking = RankingOf(kind);
  search.visits = std::min(search.visits, pool_->slab_count());
  while (search.visits > 0) {
    std::vector<uint32_t> candidates;
    // A slab is as worthy as the best of its extents.
    std::vector<const Standing*> best;
    for (const uint32_t slab :
         pool_->SampleSlabs(kind, other_than, kSlabSampleCount, &search.visits)) {
      const std::vector<ExtentRef> owners = pool_->Owners(slab);
      const bool may_leave = std::all_of(owners.begin(), owners.end(), [&](const ExtentRef& ref) {
        return Evictable(ref) && Worth(search, At(ref).standing);
      });
      if (!may_leave) continue;
      const ExtentRef& warmest = *std::max_element(
          owners.begin(), owners.end(), [&](const ExtentRef& a, const ExtentRef& b) {
            return ranking.Colder(At(a).standing, At(b).standing);
          });
      candidates.push_back(slab);
      best.push_back(&At(warmest).standing);
    }
    if (candidates.empty()) continue;
    const auto victim = std::min_element(
        best.begin(), best.end(),
        [&](const Standing* a, const Standing* b) { return ranking.Colder(*a, *b); });
    for (const ExtentRef& ref : pool_->Owners(candidates[victim - best.begin()])) {
      Drop(ref, Departure::kEvicted);
    }
    return true;
  }
  return false;
}

bool HostTier::MakeRoom(const ExtentRef& ref, Demand demand) {
  if (!can_evict_) return false;
  const size_t bytes = ref.segment->ExtentBytes(ref.kind);
  const Search idle = {.visits = kReadVisits, .age = idle_age()};
  switch (demand) {
    case Demand::kReadRows:
    case Demand::kReadAhead: {
      const bool ahead = demand == Demand::kReadAhead;
      Search search = {.visits = kReadVisits, .newcomer = &At(ref).standing, .ahead = ahead};
      if (EvictFrom(bytes, ref.kind, search)) return true;
      search.visits = kSlabSampleCount;
      return EvictSlab(bytes, ExtentKind::kRows, ref.kind, search);
    }
    case Demand::kReadStripe:
      return EvictFrom(bytes, ref.kind, idle) ||
             EvictSlab(bytes, ExtentKind::kRows, ref.kind, {}) || EvictFrom(bytes, ref.kind, {});
    case Demand::kReserve:
      // Rows before stripes, whoever asks.
      if (ref.kind == ExtentKind::kRows && EvictFrom(bytes, ref.kind, {})) return true;
      return (ref.kind == ExtentKind::kStripe && EvictFrom(bytes, ref.kind, idle)) ||
             EvictSlab(bytes, ExtentKind::kRows, ref.kind, {}) ||
             (ref.kind == ExtentKind::kStripe && EvictFrom(bytes, ref.kind, {})) ||
             EvictSlab(bytes, ExtentKind::kStripe, ref.kind, {});
  }
  return false;
}

bool HostTier::Demote() {
  if (RowsRoom() >= kept_room_) return false;
  const uint64_t before = stats_.evicted_blocks;
  const Search idle = {.visits = kSlabSampleCount, .age = idle_age()};
  const bool evicted = EvictSlab(rows_bytes_, ExtentKind::kStripe, ExtentKind::kRows, idle) ||
                       EvictFrom(rows_bytes_, ExtentKind::kRows, {}) ||
                       EvictSlab(rows_bytes_, ExtentKind::kRows, ExtentKind::kRows, {});
  stats_.demoted_blocks += stats_.evicted_blocks - before;
  return evicted;
}

void HostTier::NoteAhead(const ExtentRef& ref, uint64_t cells) {
  Extent& extent = At(ref);
  if (extent.ahead == 0) ++stats_.ahead_blocks;
  extent.ahead |= cells;
}

void HostTier::SettleAhead(const ExtentRef& ref, uint64_t wanted) {
  Extent& extent = At(ref);
  if (extent.ahead == 0) return;
  const uint64_t met = extent.ahead & wanted;
  if ((met & extent.valid) != 0) {
    ++stats_.ahead_useful_blocks;
  } else if ((met & extent.loading) != 0) {
    ++stats_.ahead_late_blocks;
  } else {
    ++stats_.ahead_wasted_blocks;
  }
  extent.ahead = 0;
}

void HostTier::Drop(const ExtentRef& ref, Departure departure) {
  Extent& extent = At(ref);
  ABSL_RAW_CHECK(extent.pins == 0 && extent.loading == 0, "a pinned extent must stay (I3)");
  const size_t bytes = ref.segment->ExtentBytes(ref.kind);
  SettleAhead(ref, 0);
  pool_->Release(extent.data);
  extent.data = nullptr;
  SetValid(ref, 0);
  departure == Departure::kEvicted ? RankingOf(ref.kind).Evict(extent.standing)
                                   : RankingOf(ref.kind).Forget(extent.standing);
  --CountOf(ref).extents;
  Recount(ref);
  if (ref.kind == ExtentKind::kStripe) {
    stats_.index_bytes -= bytes;
    return;
  }
  --stats_.resident_blocks;
  stats_.resident_bytes -= bytes;
  if (departure == Departure::kEvicted) {
    ++stats_.evicted_blocks;
    stats_.evicted_bytes += bytes;
  } else {
    ++stats_.deleted_blocks;
    stats_.deleted_bytes += bytes;
  }
}

}  // namespace terrace::kvstore
