// ExtentPool: one region of memory, reserved at start, handed out in extents of few sizes.
//
// The region is cut into slabs. A slab serves one class (an extent size and what is kept in it)
// until its last extent comes back. The budget is the region: it cannot be exceeded (I5). Taking
// and returning an extent is O(1).
//
// Not thread-safe.
#ifndef TERRACE_KVSTORE_EXTENT_POOL_H_
#define TERRACE_KVSTORE_EXTENT_POOL_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvstore/region.h"

namespace terrace::kvstore {

class Segment;

enum class ExtentKind : uint8_t { kRows, kStripe };

// Which extent of which segment: the owner of a slot.
struct ExtentRef {
  Segment* segment = nullptr;
  // Block or stripe, counted from the segment's first.
  uint32_t index = 0;
  // layer * heads + head.
  uint16_t lane = 0;
  ExtentKind kind = ExtentKind::kRows;
};

class ExtentPool {
 public:
  // ResourceExhausted when the system has no such region. Requires: at least 1 MiB.
  static absl::StatusOr<std::unique_ptr<ExtentPool>> Create(uint64_t bytes);
  ~ExtentPool();
  ExtentPool(const ExtentPool&) = delete;
  ExtentPool& operator=(const ExtentPool&) = delete;

  // An extent of `bytes` for `owner`, or null when neither its class has a free slot nor the
  // region a free slab that its kind may take. Requires: 0 < bytes <= slab_bytes().
  std::byte* Allocate(size_t bytes, const ExtentRef& owner);
  void Release(std::byte* extent);

  // Slots of that class that a sweep visits.
  size_t SlotCount(size_t bytes, ExtentKind kind);
  // Owners of extents of that class from where the last call stopped: one of each slab in turn,
  // since what lies together was often taken together; at most out.size(), and each once. Takes the
  // slots it looked at off `visits`, and stops at 0.
  size_t Sample(size_t bytes, ExtentKind kind, size_t* visits, absl::Span<ExtentRef> out);
  // Slabs that serve a class of that kind other than `bytes` (0: any), in clock order; at most
  // `count`, and each once. Takes the slabs it looked at off `visits`, and stops at 0.
  std::vector<uint32_t> SampleSlabs(ExtentKind kind, size_t bytes, size_t count, size_t* visits);
  // Owners of all extents of a slab.
  std::vector<ExtentRef> Owners(uint32_t slab) const;

  // Whether slabs for that kind may be taken: neither rows nor stripes get more than three quarters
  // of them, because a slab is bound by its least movable extent, and open rows are spread thinly.
  bool MayTakeSlab(ExtentKind kind) const { return KindSlabs(kind) < kind_slabs_max_; }

  // Bytes that extents of that class can still get before something must leave.
  uint64_t Room(size_t bytes, ExtentKind kind);

  size_t slab_bytes() const { return slab_bytes_; }
  uint64_t capacity_bytes() const { return uint64_t{slab_bytes_} * slabs_.size(); }
  // Extents handed out, each with its rounding.
  uint64_t used_bytes() const { return used_bytes_; }
  size_t slab_count() const { return slabs_.size(); }
  size_t free_slab_count() const { return free_slabs_.size(); }

  // What an extent of that many bytes takes from the budget.
  static size_t RoundUp(size_t bytes) { return (bytes + 63) & ~size_t{63}; }

 private:
  struct Slab {
    uint32_t size_class = 0;
    uint32_t used = 0;
    // Slots that were handed out once; a free one keeps the next free slot in `index`.
    std::vector<ExtentRef> slots;
    uint32_t first_free = 0;
    // Positions in the lists of the class.
    uint32_t place = 0;
    uint32_t open_place = 0;
  };
  struct SizeClass {
    size_t bytes = 0;
    ExtentKind kind = ExtentKind::kRows;
    uint32_t slots_per_slab = 0;
    std::vector<uint32_t> slabs;
    // Slots in them, the never used ones left out, and those handed out.
    size_t slot_count = 0;
    size_t used_count = 0;
    // Those with a free slot.
    std::vector<uint32_t> open_slabs;
    // Clock hand: position in `slabs`, and slot.
    uint32_t hand = 0;
    uint32_t hand_slot = 0;
  };

  ExtentPool(std::unique_ptr<Region> region, size_t slab_bytes, size_t slab_count);

  uint32_t& KindSlabs(ExtentKind kind) { return kind_slabs_[static_cast<size_t>(kind)]; }
  uint32_t KindSlabs(ExtentKind kind) const { return kind_slabs_[static_cast<size_t>(kind)]; }
  uint32_t ClassOf(size_t rounded_bytes, ExtentKind kind);
  void OpenSlab(uint32_t class_index);
  void CloseSlab(uint32_t slab_index);
  void ListAsOpen(uint32_t slab_index);
  void UnlistAsOpen(uint32_t slab_index);

  const std::unique_ptr<Region> region_;
  const size_t slab_bytes_;
  std::vector<Slab> slabs_;
  std::vector<uint32_t> free_slabs_;
  const size_t kind_slabs_max_;
  // Slabs that serve each kind.
  std::array<uint32_t, 2> kind_slabs_{};
  std::vector<SizeClass> classes_;
  absl::flat_hash_map<uint64_t, uint32_t> class_index_;
  uint32_t slab_hand_ = 0;
  uint64_t used_bytes_ = 0;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_EXTENT_POOL_H_
