#include "kvstore/extent_pool.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/base/internal/raw_logging.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(start, size) static_cast<void>(0)
#define ASAN_UNPOISON_MEMORY_REGION(start, size) static_cast<void>(0)
#endif

namespace terrace::kvstore {
namespace {

// Small slabs, so that one extent that must stay holds little else in place; large enough that
// stripes of ordinary heads fill them well.
constexpr size_t kSlabBytesMin = size_t{256} << 10;
constexpr size_t kSlabBytesMax = size_t{1} << 20;
constexpr uint64_t kSlabsWanted = 64;
constexpr uint32_t kNoSlot = UINT32_MAX;

}  // namespace

absl::StatusOr<std::unique_ptr<ExtentPool>> ExtentPool::Create(uint64_t bytes) {
  const size_t slab_bytes =
      std::clamp<size_t>(std::bit_floor(bytes / kSlabsWanted), kSlabBytesMin, kSlabBytesMax);
  const size_t slab_count = bytes / slab_bytes;
  absl::StatusOr<std::unique_ptr<Region>> region = Region::Create(slab_bytes * slab_count);
  if (!region.ok()) return region.status();
  return std::unique_ptr<ExtentPool>(new ExtentPool(*std::move(region), slab_bytes, slab_count));
}

ExtentPool::ExtentPool(std::unique_ptr<Region> region, size_t slab_bytes, size_t slab_count)
    : region_(std::move(region)),
      slab_bytes_(slab_bytes),
      slabs_(slab_count),
      kind_slabs_max_(slab_count - slab_count / 4) {
  ASAN_POISON_MEMORY_REGION(region_->data(), capacity_bytes());
  free_slabs_.reserve(slab_count);
  for (size_t i = slab_count; i > 0; --i) free_slabs_.push_back(static_cast<uint32_t>(i - 1));
}

ExtentPool::~ExtentPool() { ASAN_UNPOISON_MEMORY_REGION(region_->data(), capacity_bytes()); }

std::byte* ExtentPool::Allocate(size_t bytes, const ExtentRef& owner) {
  const size_t rounded = RoundUp(bytes);
  ABSL_INTERNAL_CHECK(bytes > 0 && rounded <= slab_bytes_, "extent size out of range");
  const uint32_t class_index = ClassOf(rounded, owner.kind);
  if (classes_[class_index].open_slabs.empty()) {
    if (free_slabs_.empty() || !MayTakeSlab(owner.kind)) return nullptr;
    OpenSlab(class_index);
  }
  SizeClass& size_class = classes_[class_index];
  const uint32_t slab_index = size_class.open_slabs.back();
  Slab& slab = slabs_[slab_index];
  uint32_t slot = slab.first_free;
  if (slot == kNoSlot) {
    slot = static_cast<uint32_t>(slab.slots.size());
    slab.slots.push_back(owner);
    ++size_class.slot_count;
  } else {
    slab.first_free = slab.slots[slot].index;
    slab.slots[slot] = owner;
  }
  if (++slab.used == size_class.slots_per_slab) UnlistAsOpen(slab_index);
  ++size_class.used_count;
  used_bytes_ += rounded;
  std::byte* extent = region_->data() + size_t{slab_index} * slab_bytes_ + size_t{slot} * rounded;
  ASAN_UNPOISON_MEMORY_REGION(extent, bytes);
  return extent;
}

void ExtentPool::Release(std::byte* extent) {
  const size_t offset = static_cast<size_t>(extent - region_->data());
  const auto slab_index = static_cast<uint32_t>(offset / slab_bytes_);
  ABSL_RAW_CHECK(slab_index < slabs_.size(), "extent is not of this pool");
  Slab& slab = slabs_[slab_index];
  SizeClass& size_class = classes_[slab.size_class];
  const auto slot = static_cast<uint32_t>(offset % slab_bytes_ / size_class.bytes);
  ABSL_RAW_CHECK(slot < slab.slots.size() && slab.slots[slot].segment != nullptr,
                 "extent released twice");
  ASAN_POISON_MEMORY_REGION(extent, size_class.bytes);
  slab.slots[slot] = {.segment = nullptr, .index = slab.first_free};
  slab.first_free = slot;
  --size_class.used_count;
  used_bytes_ -= size_class.bytes;
  if (slab.used-- == size_class.slots_per_slab) ListAsOpen(slab_index);
  if (slab.used == 0) CloseSlab(slab_index);
}

uint64_t ExtentPool::Room(size_t bytes, ExtentKind kind) {
  const SizeClass& size_class = classes_[ClassOf(RoundUp(bytes), kind)];
  const uint64_t slabs = std::min<uint64_t>(free_slabs_.size(), kind_slabs_max_ - KindSlabs(kind));
  const uint64_t slots =
      (slabs + size_class.slabs.size()) * size_class.slots_per_slab - size_class.used_count;
  return slots * size_class.bytes;
}

size_t ExtentPool::SlotCount(size_t bytes, ExtentKind kind) {
  return classes_[ClassOf(RoundUp(bytes), kind)].slot_count;
}

size_t ExtentPool::Sample(size_t bytes, ExtentKind kind, size_t* visits,
                          absl::Span<ExtentRef> out) {
  SizeClass& size_class = classes_[ClassOf(RoundUp(bytes), kind)];
  *visits = std::min(*visits, size_class.slot_count);
  size_t found = 0;
  while (*visits > 0 && found < out.size()) {
    // Slabs come and go between calls: the hand may point past their end.
    if (size_class.hand >= size_class.slabs.size()) {
      size_class.hand = 0;
      size_class.hand_slot =
          size_class.hand_slot + 1 < size_class.slots_per_slab ? size_class.hand_slot + 1 : 0;
    }
    const Slab& slab = slabs_[size_class.slabs[size_class.hand++]];
    if (size_class.hand_slot >= slab.slots.size()) continue;
    --*visits;
    const ExtentRef& owner = slab.slots[size_class.hand_slot];
    if (owner.segment != nullptr) out[found++] = owner;
  }
  return found;
}

std::vector<uint32_t> ExtentPool::SampleSlabs(ExtentKind kind, size_t bytes, size_t count,
                                              size_t* visits) {
  const size_t rounded = RoundUp(bytes);
  *visits = std::min(*visits, slabs_.size());
  std::vector<uint32_t> found;
  for (; *visits > 0 && found.size() < count; --*visits) {
    slab_hand_ = slab_hand_ + 1 < slabs_.size() ? slab_hand_ + 1 : 0;
    const Slab& slab = slabs_[slab_hand_];
    if (slab.used == 0) continue;
    const SizeClass& size_class = classes_[slab.size_class];
    if (size_class.kind == kind && size_class.bytes != rounded) found.push_back(slab_hand_);
  }
  return found;
}

std::vector<ExtentRef> ExtentPool::Owners(uint32_t slab) const {
  std::vector<ExtentRef> owners;
  for (const ExtentRef& slot : slabs_[slab].slots) {
    if (slot.segment != nullptr) owners.push_back(slot);
  }
  return owners;
}

uint32_t ExtentPool::ClassOf(size_t rounded_bytes, ExtentKind kind) {
  const uint64_t name = uint64_t{rounded_bytes} << 1 | static_cast<uint64_t>(kind);
  const auto [it, inserted] = class_index_.try_emplace(name, classes_.size());
  if (inserted) {
    SizeClass& size_class = classes_.emplace_back();
    size_class.bytes = rounded_bytes;
    size_class.kind = kind;
    size_class.slots_per_slab = static_cast<uint32_t>(slab_bytes_ / rounded_bytes);
  }
  return it->second;
}

void ExtentPool::OpenSlab(uint32_t class_index) {
  // Slabs are first taken in the order of their addresses.
  const uint32_t slab_index = free_slabs_.back();
  free_slabs_.pop_back();
  region_->Advance((size_t{slab_index} + 1) * slab_bytes_);
  ++KindSlabs(classes_[class_index].kind);
  SizeClass& size_class = classes_[class_index];
  Slab& slab = slabs_[slab_index];
  slab.size_class = class_index;
  slab.first_free = kNoSlot;
  slab.place = static_cast<uint32_t>(size_class.slabs.size());
  size_class.slabs.push_back(slab_index);
  ListAsOpen(slab_index);
}

void ExtentPool::CloseSlab(uint32_t slab_index) {
  UnlistAsOpen(slab_index);
  Slab& slab = slabs_[slab_index];
  SizeClass& size_class = classes_[slab.size_class];
  std::vector<uint32_t>& list = size_class.slabs;
  slabs_[list.back()].place = slab.place;
  list[slab.place] = list.back();
  list.pop_back();
  size_class.slot_count -= slab.slots.size();
  --KindSlabs(size_class.kind);
  slab.slots.clear();
  free_slabs_.push_back(slab_index);
}

void ExtentPool::ListAsOpen(uint32_t slab_index) {
  Slab& slab = slabs_[slab_index];
  std::vector<uint32_t>& list = classes_[slab.size_class].open_slabs;
  slab.open_place = static_cast<uint32_t>(list.size());
  list.push_back(slab_index);
}

void ExtentPool::UnlistAsOpen(uint32_t slab_index) {
  const Slab& slab = slabs_[slab_index];
  std::vector<uint32_t>& list = classes_[slab.size_class].open_slabs;
  slabs_[list.back()].open_place = slab.open_place;
  list[slab.open_place] = list.back();
  list.pop_back();
}

}  // namespace terrace::kvstore
