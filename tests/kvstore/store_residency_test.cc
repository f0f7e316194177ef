// Describe answers from counts; here they are held against a walk over single blocks, after random
// histories. TERRACE_SEED=N runs one history alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <ostream>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kvstore/block_store.h"
#include "kvstore/segment.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {

bool operator==(const Residency& a, const Residency& b) {
  return a.sealed_blocks == b.sealed_blocks && a.host_blocks == b.host_blocks &&
         a.disk_blocks == b.disk_blocks && a.host_row_bytes == b.host_row_bytes &&
         a.host_index_bytes == b.host_index_bytes && a.disk_bytes == b.disk_bytes;
}

void PrintTo(const Residency& residency, std::ostream* out) {
  *out << "sealed " << residency.sealed_blocks << " host " << residency.host_blocks << " disk "
       << residency.disk_blocks << "; bytes: rows " << residency.host_row_bytes << " index "
       << residency.host_index_bytes << " disk " << residency.disk_bytes;
}

namespace {

void operator+=(Residency& sum, const Residency& part) {
  sum.sealed_blocks += part.sealed_blocks;
  sum.host_blocks += part.host_blocks;
  sum.disk_blocks += part.disk_blocks;
  sum.host_row_bytes += part.host_row_bytes;
  sum.host_index_bytes += part.host_index_bytes;
  sum.disk_bytes += part.disk_bytes;
}

class StoreResidencyTest : public StoreTest {
 protected:
  struct Sequence {
    std::string name;
    std::vector<SegmentRange> ranges;
    uint32_t length = 0;

    Segment& open() const { return *ranges.back().segment; }
  };

  // Blocks reach the disk when they are flushed and not otherwise, so that nothing moves while it
  // is counted.
  StoreResidencyTest() { options_.durability = Durability::kNone; }

  uint32_t Draw(uint32_t below) { return static_cast<uint32_t>(random_() % below); }

  void Create() {
    Sequence sequence{.name = "sequence " + std::to_string(++names_), .ranges = {}};
    sequence.ranges.push_back({NewSegment(), 0, kOpenEnd});
    Name(std::move(sequence));
  }
  void Name(Sequence sequence) {
    ASSERT_OK(Commit(sequence.name, sequence.ranges));
    for (Sequence& other : sequences_) {
      if (other.name != sequence.name) continue;
      other = std::move(sequence);
      return;
    }
    sequences_.push_back(std::move(sequence));
  }
  Sequence& Pick() { return sequences_[Draw(static_cast<uint32_t>(sequences_.size()))]; }
  // A sequence's blocks below `end`, and a segment of its own from there on.
  Sequence Prefix(const Sequence& whole, uint32_t end) {
    Sequence prefix{.name = whole.name, .ranges = {}, .length = end};
    for (const SegmentRange& range : whole.ranges) {
      if (range.first_block >= end) break;
      prefix.ranges.push_back({range.segment, range.first_block, std::min(range.end_block, end)});
    }
    prefix.ranges.push_back({NewSegment(end), end, kOpenEnd});
    return prefix;
  }

  void Append(Sequence& sequence) {
    const uint32_t end = sequence.length + 1 + Draw(9);
    ASSERT_OK(AppendBlocks(*store_, sequence.open(), sequence.length, end));
    sequence.length = end;
    ASSERT_OK(store_->Flush(sequence.open(), {}, Soon()));
    // An open block is in memory too, and counts as such.
    if (Draw(2) == 0) return;
    ASSERT_OK(store_->Reserve(sequence.open(), 1, end, end + 1, Soon()));
  }
  // Brings some cells back, and others out.
  void Read(const Sequence& sequence) {
    std::vector<ReadRequest> rows;
    std::vector<ReadRequest> stripes;
    for (int i = 0; i < 30; ++i) {
      const SegmentRange& range =
          sequence.ranges[Draw(static_cast<uint32_t>(sequence.ranges.size()))];
      const uint32_t end = std::min(range.end_block, sequence.length);
      if (end == range.first_block) continue;
      const uint32_t block = range.first_block + Draw(end - range.first_block);
      const auto layer = static_cast<uint16_t>(Draw(2));
      const auto head = static_cast<uint16_t>(Draw(2));
      rows.push_back({range.segment.get(), layer, head, block, 1 + Draw(15)});
      stripes.push_back({range.segment.get(), layer, head, block / 4, uint64_t{1} << block % 4});
    }
    Pins pins = store_->PinRows(rows, Soon());
    for (const PinnedExtent& extent : pins.extents()) ASSERT_OK(extent.status);
    const Pins stripe_pins = store_->PinStripes(stripes, Soon());
    for (const PinnedExtent& extent : stripe_pins.extents()) ASSERT_OK(extent.status);
    if (Draw(3) == 0) held_ = std::move(pins);
  }
  void Delete() {
    const uint32_t at = Draw(static_cast<uint32_t>(sequences_.size()));
    ASSERT_OK(store_->DeleteManifest(sequences_[at].name, absl::InfiniteFuture()));
    sequences_.erase(sequences_.begin() + at);
  }
  // In memory no more, but for what is pinned and what others name.
  void Park() { ASSERT_OK(store_->Park(Pick().name)); }
  void Unpark() { store_->Unpark(Pick().name); }
  void Restart() {
    held_ = Pins();
    sequences_.clear();
    Open();
    for (Manifest& manifest : store_->TakeRecovered()) {
      Sequence sequence{.name = manifest.name, .ranges = std::move(manifest.ranges)};
      sequence.length = store_->SealedEnd(sequence.open(), 0, 0);
      sequences_.push_back(std::move(sequence));
    }
  }

  void Step() {
    if (sequences_.empty()) return Create();
    switch (Draw(14)) {
      case 0:
        return Create();
      case 1: {
        const Sequence& parent = Pick();
        Sequence child = Prefix(parent, Draw(parent.length + 1));
        child.name = "fork " + std::to_string(++names_);
        return Name(std::move(child));
      }
      case 2: {
        const Sequence& sequence = Pick();
        return Name(Prefix(sequence, Draw(sequence.length + 1)));
      }
      case 3:
        return Delete();
      case 4:
        return Draw(3) == 0 ? Restart() : static_cast<void>(held_ = Pins());
      case 5:
        return Park();
      case 6:
        return Unpark();
      case 7:
      case 8:
      case 9:
      case 10:
        return Read(Pick());
      default:
        return Append(Pick());
    }
  }

  void CheckCounts() {
    std::set<Segment*> segments;
    for (const Sequence& sequence : sequences_) {
      for (const SegmentRange& range : sequence.ranges) segments.insert(range.segment.get());
    }
    // Before the count: what is demoted meanwhile makes it smaller.
    const uint64_t resident = store_->HostStats().resident_blocks;
    Residency total;
    for (Segment* segment : segments) {
      for (uint16_t layer = 0; layer < layout_.layers; ++layer)
        total += CheckLayer(*segment, layer);
    }
    // A segment that no sequence names any more may have its pins and open rows for a while.
    EXPECT_EQ(total.disk_blocks, store_->DiskStats().resident_blocks);
    EXPECT_LE(total.host_blocks, resident);
  }
  Residency CheckLayer(Segment& segment, uint16_t layer) {
    constexpr uint32_t kEnd = 400;
    const uint32_t first = Draw(40);
    const uint32_t end = first + Draw(60);
    Residency all;
    Residency some;
    Residency whole;
    Residency part;
    const auto demoted = [&] {
      const TierStats stats = store_->HostStats();
      return std::pair(stats.evicted_blocks, stats.index_bytes);
    };
    // Again if the store has demoted something in between.
    for (auto before = demoted(), after = before;; before = after) {
      all = some = Residency();
      for (uint32_t block = 0; block < kEnd; ++block) {
        const Residency one = store_->Describe(segment, layer, block, block + 1);
        EXPECT_LE(one.host_blocks, 2u);
        all += one;
        if (block >= first && block < end) some += one;
      }
      whole = store_->Describe(segment, layer, 0, kOpenEnd);
      part = store_->Describe(segment, layer, first, end);
      after = demoted();
      if (after == before) break;
    }
    EXPECT_EQ(whole, all);
    EXPECT_EQ(part, some);
    uint64_t sealed = 0;
    for (uint16_t head = 0; head < layout_.heads; ++head) {
      const uint32_t sealed_end = store_->SealedEnd(segment, layer, head);
      EXPECT_LT(sealed_end, kEnd);
      sealed += sealed_end - std::min(sealed_end, segment.first_block);
    }
    EXPECT_EQ(all.sealed_blocks, sealed);
    return all;
  }

  std::mt19937 random_;
  std::vector<Sequence> sequences_;
  Pins held_;
  int names_ = 0;
};

TEST_F(StoreResidencyTest, CountsEqualAWalkAfterRandomHistories) {
  const char* chosen = std::getenv("TERRACE_SEED");
  const auto first =
      chosen == nullptr ? std::random_device()() : static_cast<uint32_t>(std::atoi(chosen));
  uint64_t evicted = 0;
  for (uint32_t seed = first; seed < first + (chosen == nullptr ? 10 : 1); ++seed) {
    SCOPED_TRACE(::testing::Message() << "TERRACE_SEED=" << seed);
    random_.seed(seed);
    std::filesystem::remove_all(options_.disk_path);
    Open();
    for (int i = 0; i < 80; ++i) {
      Step();
      CheckCounts();
      if (HasFailure()) return;
    }
    evicted += store_->HostStats().evicted_blocks;
    held_ = Pins();
    sequences_.clear();
    Close();
  }
  EXPECT_TRUE(chosen != nullptr || evicted > 0) << "memory was never short";
}

TEST_F(StoreResidencyTest, EveryBlockInMemoryIsCountedOnce) {
  Open();
  const SegmentRef segment = NewSegment(3);
  ASSERT_OK(Commit("sequence", {{NewSegment(), 0, 3}, {segment, 3, kOpenEnd}}));
  ASSERT_OK(AppendBlocks(*store_, *segment, 3, 10));
  const Residency whole = store_->Describe(*segment, 0, 0, kOpenEnd);
  EXPECT_EQ(whole.sealed_blocks, 14u);
  EXPECT_EQ(whole.host_blocks, 14u);
  EXPECT_EQ(whole.host_row_bytes, 14 * layout_.rows_bytes());
  EXPECT_EQ(whole.host_index_bytes, 14 * layout_.piece_bytes());
  EXPECT_EQ(whole.disk_blocks, 0u);
  EXPECT_EQ(store_->HostStats().resident_blocks, 28u);
  const Residency cut = store_->Describe(*segment, 1, 4, 9);
  EXPECT_EQ(cut.sealed_blocks, 10u);
  EXPECT_EQ(cut.host_blocks, 10u);
  EXPECT_EQ(cut.host_index_bytes, 10 * layout_.piece_bytes());
}

}  // namespace
}  // namespace terrace::kvstore
