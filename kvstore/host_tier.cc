#include "kvstore/host_tier.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>
#include <vector>

#include "absl/base/internal/raw_logging.h"
#include "kvstore/eviction.h"

namespace terrace::kvstore {
namespace {

// Extents ranked at a time, and evicted of them: 16 looks for each.
constexpr size_t kSampleCount = 64;
constexpr size_t kEvictCount = 4;
constexpr size_t kSlabSampleCount = 16;
// A read that finds nothing to evict soon has its scratch; who reserves looks everywhere.
constexpr size_t kReadVisits = 1024;

uint64_t AllCells(uint32_t cells) {
  return cells == 64 ? ~uint64_t{0} : (uint64_t{1} << cells) - 1;
}

}  // namespace

HostTier::HostTier(std::unique_ptr<ExtentPool> pool, bool can_evict)
    : pool_(std::move(pool)), can_evict_(can_evict) {
  stats_.capacity_bytes = pool_->capacity_bytes();
}

bool HostTier::Take(const ExtentRef& ref, Demand demand) {
  const size_t bytes = ref.segment->ExtentBytes(ref.kind);
  std::byte* data = pool_->Allocate(bytes, ref);
  while (data == nullptr) {
    if (!MakeRoom(bytes, ref.kind, demand)) return false;
    data = pool_->Allocate(bytes, ref);
  }
  Extent& extent = At(ref);
  ABSL_RAW_CHECK(extent.data == nullptr, "extent is in memory already");
  extent.data = data;
  extent.last_touch = ++tick_;
  ++extent_count_;
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

void HostTier::Pin(const ExtentRef& ref) {
  Extent& extent = At(ref);
  ++extent.pins;
  extent.last_touch = ++tick_;
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

bool HostTier::EvictFrom(size_t bytes, ExtentKind kind, size_t visits, uint64_t age) {
  std::array<ExtentRef, kSampleCount> refs;
  std::array<EvictionCandidate, kSampleCount> candidates;
  visits = std::min(visits, pool_->SlotCount(bytes, kind));
  while (visits > 0) {
    const size_t found = pool_->Sample(bytes, kind, &visits, absl::MakeSpan(refs));
    for (size_t i = 0; i < found; ++i) {
      const uint32_t candidate_age = tick_ - At(refs[i]).last_touch;
      candidates[i] = {.age = candidate_age,
                       .evictable = candidate_age >= age && Evictable(refs[i])};
    }
    const std::vector<size_t> victims =
        ChooseLru(absl::MakeConstSpan(candidates.data(), found), kEvictCount);
    for (const size_t victim : victims) Drop(refs[victim], Departure::kEvicted);
    if (!victims.empty()) return true;
  }
  return false;
}

bool HostTier::EvictSlab(size_t bytes, ExtentKind kind, ExtentKind taker, size_t visits) {
  if (kind != taker && !pool_->MayTakeSlab(taker)) return false;
  visits = std::min(visits, pool_->slab_count());
  while (visits > 0) {
    const std::vector<uint32_t> slabs = pool_->SampleSlabs(kind, bytes, kSlabSampleCount, &visits);
    std::vector<EvictionCandidate> candidates;
    for (const uint32_t slab : slabs) {
      // A slab is as young as its youngest extent.
      EvictionCandidate candidate{.age = UINT32_MAX, .evictable = true};
      for (const ExtentRef& ref : pool_->Owners(slab)) {
        candidate.age = std::min<uint64_t>(candidate.age, tick_ - At(ref).last_touch);
        candidate.evictable = candidate.evictable && Evictable(ref);
      }
      candidates.push_back(candidate);
    }
    const std::vector<size_t> victim = ChooseLru(candidates, 1);
    if (victim.empty()) continue;
    for (const ExtentRef& ref : pool_->Owners(slabs[victim[0]])) Drop(ref, Departure::kEvicted);
    return true;
  }
  return false;
}

bool HostTier::MakeRoom(size_t bytes, ExtentKind kind, Demand demand) {
  if (!can_evict_) return false;
  switch (demand) {
    case Demand::kReadRows:
      return EvictFrom(bytes, kind, kReadVisits) ||
             EvictSlab(bytes, ExtentKind::kRows, kind, kSlabSampleCount);
    case Demand::kReadStripe:
      return EvictFrom(bytes, kind, kReadVisits, idle_age()) ||
             EvictSlab(bytes, ExtentKind::kRows, kind, SIZE_MAX) ||
             EvictFrom(bytes, kind, SIZE_MAX);
    case Demand::kReserve:
      // Rows before stripes, whoever asks.
      if (kind == ExtentKind::kRows && EvictFrom(bytes, kind, SIZE_MAX)) return true;
      return (kind == ExtentKind::kStripe && EvictFrom(bytes, kind, kReadVisits, idle_age())) ||
             EvictSlab(bytes, ExtentKind::kRows, kind, SIZE_MAX) ||
             (kind == ExtentKind::kStripe && EvictFrom(bytes, kind, SIZE_MAX)) ||
             EvictSlab(bytes, ExtentKind::kStripe, kind, SIZE_MAX);
  }
  return false;
}

void HostTier::Drop(const ExtentRef& ref, Departure departure) {
  Extent& extent = At(ref);
  ABSL_RAW_CHECK(extent.pins == 0 && extent.loading == 0, "a pinned extent must stay (I3)");
  const size_t bytes = ref.segment->ExtentBytes(ref.kind);
  pool_->Release(extent.data);
  extent.data = nullptr;
  SetValid(ref, 0);
  --extent_count_;
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
