// HostTier: which extents are in memory, and which leave when there is no room.
//
// An extent leaves only if it is on disk as a whole and nobody pins it (I3). Rows sink before
// stripes, and reading rows never evicts a stripe; only stripes that have been idle for long go
// before rows, lest those of parked sequences fill the memory.
//
// Not thread-safe: guarded by the mutex of the store.
#ifndef TERRACE_KVSTORE_HOST_TIER_H_
#define TERRACE_KVSTORE_HOST_TIER_H_

#include <cstdint>
#include <memory>

#include "kvstore/extent_pool.h"
#include "kvstore/segment.h"
#include "kvstore/tier_stats.h"

namespace terrace::kvstore {

// What memory is asked for, and so what may be evicted for it.
enum class Demand { kReadRows, kReadStripe, kReserve };

class HostTier {
 public:
  // Without `can_evict` (no disk below) nothing ever leaves on its own.
  HostTier(std::unique_ptr<ExtentPool> pool, bool can_evict);

  // Gives the extent memory; its cells are as they were, none valid. False when there is no room.
  // Requires: it has none.
  bool Take(const ExtentRef& ref, Demand demand);
  // Takes the memory of a freed extent back unless it is pinned; then Unpin will.
  void Free(const ExtentRef& ref);

  void Pin(const ExtentRef& ref);
  // True when the extent may now leave or has left: somebody who waits for room should look.
  bool Unpin(const ExtentRef& ref);

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
  bool Evictable(const ExtentRef& ref) const;
  // Evicts cold extents of that class that are at least `age` old, after looking at no more than
  // `visits` slots.
  bool EvictFrom(size_t bytes, ExtentKind kind, size_t visits, uint64_t age = 0);
  // Empties a slab of another class of that kind for `taker`, after looking at no more than
  // `visits` slabs.
  bool EvictSlab(size_t bytes, ExtentKind kind, ExtentKind taker, size_t visits);
  bool MakeRoom(size_t bytes, ExtentKind kind, Demand demand);
  // What has not been touched while each extent could have been several times.
  uint64_t idle_age() const { return kIdleTouches * extent_count_; }
  enum class Departure { kEvicted, kDeleted };
  void Drop(const ExtentRef& ref, Departure departure);

  static constexpr uint64_t kIdleTouches = 4;

  const std::unique_ptr<ExtentPool> pool_;
  const bool can_evict_;
  // Counts takes and pins; wraps.
  uint32_t tick_ = 0;
  uint64_t extent_count_ = 0;
  TierStats stats_;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_HOST_TIER_H_
