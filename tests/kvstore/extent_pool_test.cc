#include "kvstore/extent_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "kvstore/segment.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

constexpr size_t kKiB = 1024;
constexpr size_t kMiB = 1024 * kKiB;

class ExtentPoolTest : public ::testing::Test {
 protected:
  ExtentPoolTest() : segment_(nullptr, SegmentId{1}, Layout(), 0) { Create(kMiB); }
  static BlockLayout Layout() { return {.layers = 1, .heads = 1, .row_bytes = 1, .planes = {}}; }
  void Create(uint64_t bytes) {
    auto pool = ExtentPool::Create(bytes);
    ASSERT_OK(pool);
    pool_ = *std::move(pool);
  }
  std::byte* Take(size_t bytes, uint32_t index = 0, ExtentKind kind = ExtentKind::kRows) {
    return pool_->Allocate(bytes, {&segment_, index, 0, kind});
  }
  std::vector<std::byte*> TakeAll(size_t bytes, ExtentKind kind = ExtentKind::kRows) {
    std::vector<std::byte*> extents;
    while (std::byte* extent = Take(bytes, static_cast<uint32_t>(extents.size()), kind)) {
      extents.push_back(extent);
    }
    return extents;
  }

  Segment segment_;
  std::unique_ptr<ExtentPool> pool_;
};

TEST_F(ExtentPoolTest, SlabFollowsTheBudget) {
  struct Case {
    uint64_t bytes;
    size_t slab_bytes;
    size_t slab_count;
  };
  for (const Case& c :
       {Case{kMiB, 256 * kKiB, 4}, Case{kMiB + 1, 256 * kKiB, 4}, Case{8 * kMiB, 256 * kKiB, 32},
        Case{16 * kMiB - 1, 256 * kKiB, 63}, Case{16 * kMiB, 256 * kKiB, 64},
        Case{64 * kMiB, kMiB, 64}, Case{1024 * kMiB, kMiB, 1024}}) {
    Create(c.bytes);
    EXPECT_EQ(pool_->slab_bytes(), c.slab_bytes) << c.bytes;
    EXPECT_EQ(pool_->slab_count(), c.slab_count) << c.bytes;
    EXPECT_LE(pool_->capacity_bytes(), c.bytes);
  }
}

// I5.
TEST_F(ExtentPoolTest, HandsOutTheBudgetAndNoMore) {
  for (const size_t bytes : {size_t{1}, size_t{63}, size_t{64}, size_t{65}, 8 * kKiB,
                             size_t{100'000}, pool_->slab_bytes()}) {
    Create(kMiB);
    const size_t per_slab = pool_->slab_bytes() / ExtentPool::RoundUp(bytes);
    const size_t quarter = pool_->slab_count() / 4;
    // Three quarters for either kind, all for both.
    std::vector<std::byte*> extents = TakeAll(bytes, ExtentKind::kRows);
    EXPECT_EQ(extents.size(), 3 * quarter * per_slab) << bytes;
    EXPECT_FALSE(pool_->MayTakeSlab(ExtentKind::kRows));
    const std::vector<std::byte*> stripes = TakeAll(bytes, ExtentKind::kStripe);
    EXPECT_EQ(stripes.size(), quarter * per_slab) << bytes;
    EXPECT_TRUE(pool_->MayTakeSlab(ExtentKind::kStripe));
    extents.insert(extents.end(), stripes.begin(), stripes.end());
    EXPECT_EQ(pool_->used_bytes(), extents.size() * ExtentPool::RoundUp(bytes));
    EXPECT_LE(pool_->used_bytes(), pool_->capacity_bytes());
    for (std::byte* extent : extents) pool_->Release(extent);
    EXPECT_EQ(pool_->used_bytes(), 0u);
    EXPECT_EQ(pool_->free_slab_count(), pool_->slab_count());
  }
}

TEST_F(ExtentPoolTest, AnEmptiedSlabServesAnotherClass) {
  // Handed out slab by slab.
  std::vector<std::byte*> small = TakeAll(8 * kKiB);
  const size_t per_slab = pool_->slab_bytes() / (8 * kKiB);
  const size_t half = pool_->slab_bytes() / 2;
  EXPECT_EQ(Take(half), nullptr);
  for (size_t i = 0; i + 1 < per_slab; ++i) pool_->Release(small[i]);
  EXPECT_EQ(Take(half), nullptr) << "one extent still holds the slab";
  pool_->Release(small[per_slab - 1]);
  EXPECT_NE(Take(half), nullptr);
  EXPECT_NE(Take(half), nullptr);
  EXPECT_EQ(Take(half), nullptr);
  EXPECT_EQ(Take(8 * kKiB), nullptr);
}

TEST_F(ExtentPoolTest, RowsAndStripesOfOneSizeDoNotShareSlabs) {
  Take(8 * kKiB, 0, ExtentKind::kRows);
  Take(8 * kKiB, 0, ExtentKind::kStripe);
  EXPECT_EQ(pool_->free_slab_count(), pool_->slab_count() - 2);
}

TEST_F(ExtentPoolTest, ReturnedSlotsAreUsedBeforeNewSlabs) {
  std::vector<std::byte*> extents;
  for (int i = 0; i < 40; ++i) extents.push_back(Take(8 * kKiB));
  const size_t free_slabs = pool_->free_slab_count();
  for (int i = 0; i < 40; i += 3) pool_->Release(extents[i]);
  for (int i = 0; i < 40; i += 3) Take(8 * kKiB);
  EXPECT_EQ(pool_->free_slab_count(), free_slabs);
}

TEST_F(ExtentPoolTest, ASweepMeetsEveryExtentOnce) {
  std::vector<std::byte*> extents;
  for (uint32_t i = 0; i < 70; ++i) extents.push_back(Take(8 * kKiB, i));
  for (uint32_t i = 0; i < 70; i += 7) pool_->Release(extents[i]);
  std::multiset<uint32_t> met;
  std::array<ExtentRef, 9> refs;
  size_t visits = pool_->SlotCount(8 * kKiB, ExtentKind::kRows);
  while (visits > 0) {
    const size_t found = pool_->Sample(8 * kKiB, ExtentKind::kRows, &visits, absl::MakeSpan(refs));
    for (size_t i = 0; i < found; ++i) met.insert(refs[i].index);
  }
  EXPECT_EQ(met.size(), 60u);
  for (uint32_t i = 0; i < 70; ++i) EXPECT_EQ(met.count(i), i % 7 == 0 ? 0u : 1u) << i;
}

TEST_F(ExtentPoolTest, SlabsOfOtherClassesAreFoundWithTheirOwners) {
  for (uint32_t i = 0; i < 5; ++i) Take(8 * kKiB, i);
  Take(100 * kKiB, 77);
  Take(100 * kKiB, 88, ExtentKind::kStripe);
  size_t visits = pool_->slab_count();
  const auto slabs = pool_->SampleSlabs(ExtentKind::kRows, 100 * kKiB, 4, &visits);
  ASSERT_EQ(slabs.size(), 1u);
  EXPECT_EQ(pool_->Owners(slabs[0]).size(), 5u);
}

TEST_F(ExtentPoolTest, RandomUseNeverOverlapsAndGivesEverythingBack) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const std::array<size_t, 5> sizes = {64, 1000, 8192, 9000, 120'000};
  // Extent to its size and the byte it is filled with.
  std::map<std::byte*, std::pair<size_t, int>> held;
  uint64_t used = 0;
  for (int step = 0; step < 30'000; ++step) {
    if (held.empty() || random() % 100 < 52) {
      const size_t bytes = sizes[random() % sizes.size()];
      std::byte* extent = Take(bytes, step);
      if (extent == nullptr) continue;
      const auto next = held.lower_bound(extent);
      if (next != held.end()) {
        ASSERT_LE(extent + bytes, next->first);
      }
      if (next != held.begin()) {
        ASSERT_LE(std::prev(next)->first + std::prev(next)->second.first, extent);
      }
      held[extent] = {bytes, step & 255};
      std::memset(extent, step & 255, bytes);
      used += ExtentPool::RoundUp(bytes);
    } else {
      const auto it = std::next(held.begin(), random() % held.size());
      const auto fill = static_cast<std::byte>(it->second.second);
      ASSERT_EQ(it->first[0], fill);
      ASSERT_EQ(it->first[it->second.first - 1], fill);
      used -= ExtentPool::RoundUp(it->second.first);
      pool_->Release(it->first);
      held.erase(it);
    }
    ASSERT_EQ(pool_->used_bytes(), used);
  }
  for (const auto& [extent, unused] : held) pool_->Release(extent);
  EXPECT_EQ(pool_->free_slab_count(), pool_->slab_count());
}

}  // namespace
}  // namespace terrace::kvstore
