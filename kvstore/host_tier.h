// HostTier: which extents are in memory, and which leave when there is no room.
//
// An extent leaves only if it is on disk as a whole and nobody pins it (I3). Rows sink before
// stripes, and reading rows never evicts a stripe; only stripes that have been idle for long go
// before rows, lest those of parked sequences fill the memory. Which rows go is the placement
// policy's choice among a sample; of stripes, whichever was touched longest ago.
//
// Watermarks say how much room for rows there is to be. Reads leave the last of it to who reserves
// and to what is read ahead: below the larger one they take only the place of what the policy finds
// less worth keeping. Below the smaller one the tier is crowded, and Demote() brings it back.
//
// Not thread-safe: guarded by the mutex of the store.
#ifndef TERRACE_KVSTORE_HOST_TIER_H_
#define TERRACE_KVSTORE_HOST_TIER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "kvstore/extent_pool.h"
#include "kvstore/extent_ranking.h"
#include "kvstore/heat.h"
#include "kvstore/placement_policy.h"
#include "kvstore/segment.h"
#include "kvstore/tier_stats.h"

namespace terrace::kvstore {

// What memory is asked for, and so what may be evicted for it.
enum class Demand { kReadRows, kReadStripe, kReadAhead, kReserve };

class HostTier {
 public:
  // Without `can_evict` (no disk below) nothing ever leaves on its own.
  HostTier(std::unique_ptr<ExtentPool> pool, bool can_evict, PolicyKind policy);

  // A reference to the extent, in memory or not, that captured `mass`.
  void Touch(const ExtentRef& ref, float mass);

  // Gives the extent memory; its cells are as they were, none valid. False when there is no room,
  // or for a read, none that it is worth. Requires: it has none.
  bool Take(const ExtentRef& ref, Demand demand);
  // Takes the memory of a freed extent back unless it is pinned; then Unpin will.
  void Free(const ExtentRef& ref);
  // Takes the memory of an extent that has some back; false when it is pinned (I3).
  // Requires: what it holds is on disk, or nobody wants it.
  bool Evict(const ExtentRef& ref);

  void Pin(const ExtentRef& ref);
  // True when the extent may now leave or has left: somebody who waits for room should look.
  bool Unpin(const ExtentRef& ref);

  // Whether there is less room than the smaller watermark for rows as they were last asked for.
  bool crowded() const { return RowsRoom() < crowded_room_; }
  // Evicts idle stripes, else some cold rows. False when there is as much room as the larger
  // watermark, or nothing may leave.
  bool Demote();

  // Cells that were read ahead: useful, late or wasted by what of them is there now that some are
  // asked for.
  void NoteAhead(const ExtentRef& ref, uint64_t cells);
  void SettleAhead(const ExtentRef& ref, uint64_t wanted);

  // Says which cells of the extent are in memory.
  void SetValid(const ExtentRef& ref, uint64_t cells);

  // To be called after anything that Segment::Dirty depends on has changed.
  void Recount(const ExtentRef& ref);

  // Cells served from memory, and published by a seal.
  void CountRead(uint64_t bytes) { stats_.read_bytes += bytes; }
  void CountWrite(uint64_t bytes) { stats_.written_bytes += bytes; }

  TierStats stats() const;
  size_t largest_extent() const { return pool_->slab_bytes(); }

 private:
  static Extent& At(const ExtentRef& ref) {
    return ref.segment->ExtentAt(ref.lane, ref.kind, ref.index);
  }
  // How to look for victims.
  struct Search {
    // Slots, or slabs, to look at.
    size_t visits = SIZE_MAX;
    // Touched so long ago, in touches.
    uint64_t age = 0;
    // Rows to be read, which must be worth it; null for who must have room.
    const Standing* newcomer = nullptr;
    // Nobody has asked for them yet.
    bool ahead = false;
  };

  bool Evictable(const ExtentRef& ref) const;
  // Whether any of that kind is: who looks for one in vain looks at all of them.
  bool HasEvictable(ExtentKind kind) const {
    const KindCount& count = counts_[static_cast<size_t>(kind)];
    return can_evict_ && count.held < count.extents;
  }
  ExtentRanking& RankingOf(ExtentKind kind) {
    return kind == ExtentKind::kRows ? rows_ranking_ : stripes_ranking_;
  }
  uint64_t RowsRoom() const {
    return can_evict_ && rows_bytes_ != 0 ? pool_->Room(rows_bytes_, ExtentKind::kRows)
                                          : UINT64_MAX;
  }
  bool Worth(const Search& search, const Standing& victim) const;
  // Evicts cold extents of that class: one for a newcomer, else some.
  bool EvictFrom(size_t bytes, ExtentKind kind, const Search& search);
  // Empties a slab of another class of that kind for `taker`.
  bool EvictSlab(size_t bytes, ExtentKind kind, ExtentKind taker, Search search);
  bool MakeRoom(const ExtentRef& ref, Demand demand);
  // What has not been touched while each extent could have been several times.
  uint64_t idle_age() const { return kIdleTouches * (counts_[0].extents + counts_[1].extents); }
  enum class Departure { kEvicted, kDeleted };
  void Drop(const ExtentRef& ref, Departure departure);

  static constexpr uint64_t kIdleTouches = 4;

  const std::unique_ptr<ExtentPool> pool_;
  const bool can_evict_;
  // Watermarks.
  const uint64_t kept_room_;
  const uint64_t crowded_room_;
  // Counts touches of rows and stripes.
  HeatClock clock_;
  ExtentRanking rows_ranking_;
  ExtentRanking stripes_ranking_;
  // In memory, and those that count as held.
  struct KindCount {
    uint64_t extents = 0;
    uint64_t held = 0;
  };
  KindCount& CountOf(const ExtentRef& ref) { return counts_[static_cast<size_t>(ref.kind)]; }
  std::array<KindCount, 2> counts_;
  // Rows that were asked for last.
  size_t rows_bytes_ = 0;
  TierStats stats_;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_HOST_TIER_H_
