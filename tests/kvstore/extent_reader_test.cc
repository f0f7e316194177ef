// A cell counts as in memory only once its bytes are there (I1): reads of one extent that overlap,
// that find no room, that are given up, and that extents are evicted around.
#include "kvstore/extent_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "kvstore/block_store.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

using ::terrace::testing::StatusIs;

// Stops reads on their way to disk, before they have brought a byte.
class ReadGate {
 public:
  void Pass() {
    std::unique_lock lock(mu_);
    if (!closes_) return;
    closes_ = false;
    is_held_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !is_held_; });
  }
  // The next read waits, those after it do not.
  void CloseForOne() {
    const std::scoped_lock lock(mu_);
    closes_ = true;
  }
  void AwaitHeld() {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [this] { return is_held_; });
  }
  void Open() {
    const std::scoped_lock lock(mu_);
    closes_ = false;
    is_held_ = false;
    changed_.notify_all();
  }

 private:
  std::mutex mu_;
  std::condition_variable changed_;
  bool closes_ = false;
  bool is_held_ = false;
};

class ExtentReaderTest : public StoreTest {
 protected:
  // 4 lanes of 60 blocks on disk; memory has room for 96 blocks of rows.
  static constexpr uint32_t kBlocks = 60;
  static constexpr uint64_t kAll = 0b1111;

  ExtentReaderTest() {
    options_.reader_threads = 4;
    fault_ = [this](DiskOperation operation) {
      if (operation == DiskOperation::kRead) gate_.Pass();
      return absl::OkStatus();
    };
    Open();
    {
      const SegmentRef segment = NewSegment();
      EXPECT_OK(Commit("parked", {{segment, 0, kOpenEnd}}));
      EXPECT_OK(AppendBlocks(*store_, *segment, 0, kBlocks));
      EXPECT_OK(store_->Flush(*segment, {}, Soon()));
    }
    Open();
    segment_ = OnlyRecovered();
  }
  void TearDown() override {
    gate_.Open();
    segment_.reset();
    StoreTest::TearDown();
  }

  ReadRequest Request(uint32_t block, uint64_t cells, uint16_t lane = 0) const {
    return {segment_.get(), static_cast<uint16_t>(lane / 2), static_cast<uint16_t>(lane % 2), block,
            cells};
  }
  Pins Read(const ReadRequest& request, absl::Time deadline) {
    return store_->PinRows({&request, 1}, deadline);
  }
  // Whether all cells that the pins promise have the right bytes.
  bool IsRight(const Pins& pins, const ReadRequest& request) const {
    const PinnedExtent& extent = pins.extents()[0];
    return SameGranules(layout_,
                        {store_->id(*segment_), request.layer, request.head, request.index},
                        extent.data, request.cells & ~extent.missing);
  }
  // Pins of as much as memory holds, from the last lane down, so that whatever is read next finds
  // no room.
  Pins FillMemory() {
    std::vector<ReadRequest> requests;
    for (uint16_t lane = 3; lane > 0; --lane) {
      for (uint32_t block = 0; block < kBlocks; ++block) {
        requests.push_back(Request(block, kAll, lane));
      }
    }
    return store_->PinRows(requests, Soon());
  }

  ReadGate gate_;
  SegmentRef segment_;
};

TEST_F(ExtentReaderTest, ACellThatIsBeingReadIsNotInMemoryYet) {
  gate_.CloseForOne();
  const ReadRequest slow = Request(7, 0b0100);
  Pins pins;
  std::thread reader([&] { pins = Read(slow, Soon()); });
  gate_.AwaitHeld();
  {
    const Pins other = Read(slow, absl::InfinitePast());
    EXPECT_EQ(other.extents()[0].missing, 0b0100u);
    EXPECT_THAT(other.extents()[0].status, StatusIs(absl::StatusCode::kDeadlineExceeded));
    EXPECT_EQ(store_->Describe(*segment_, 0, 7, 8).host_blocks, 0u);
  }
  gate_.Open();
  reader.join();
  EXPECT_OK(pins.extents()[0].status);
  EXPECT_EQ(pins.extents()[0].from_disk, 0b0100u);
  EXPECT_TRUE(IsRight(pins, slow));
}

TEST_F(ExtentReaderTest, AnExtentThatIsBeingReadIntoStaysWhereItIs) {
  gate_.CloseForOne();
  // Given up at once: only the read itself holds the extent then.
  const ReadRequest slow = Request(7, 0b0010);
  std::thread reader([&] { Read(slow, absl::Now() + absl::Milliseconds(1)); });
  gate_.AwaitHeld();
  reader.join();
  // Memory is wanted many times over, also by the block's other cells.
  for (int round = 0; round < 3; ++round) {
    for (uint16_t lane = 0; lane < 4; ++lane) {
      for (uint32_t block = 0; block < kBlocks; ++block) {
        const ReadRequest request = Request(block, lane == 0 && block == 7 ? 0b1101 : kAll, lane);
        const Pins pins = Read(request, Soon());
        ASSERT_OK(pins.extents()[0].status);
        ASSERT_TRUE(IsRight(pins, request)) << "lane " << lane << " block " << block;
      }
    }
  }
  EXPECT_GT(store_->HostStats().evicted_blocks, 0u);
  gate_.Open();
  const Pins pins = Read(slow, Soon());
  EXPECT_OK(pins.extents()[0].status);
  EXPECT_TRUE(IsRight(pins, slow));
}

TEST_F(ExtentReaderTest, WhatOthersLoadedIsNotInTheScratchOfAReadThatIsStillRunning) {
  // The first read must be given up after the second has ended: where the machine is too slow for
  // that, with more time.
  for (absl::Duration patience = absl::Milliseconds(100);; patience *= 2) {
    SegmentRef().swap(segment_);
    Open();
    segment_ = OnlyRecovered();
    Pins crowd = FillMemory();
    gate_.CloseForOne();
    const ReadRequest request = Request(7, 0b0001);
    const absl::Time deadline = absl::Now() + patience;
    Pins late;
    std::thread reader([&] { late = Read(request, deadline); });
    gate_.AwaitHeld();
    // Room now: the same cells, into memory that everybody sees.
    crowd = Pins();
    {
      const Pins pins = Read(request, Soon());
      EXPECT_OK(pins.extents()[0].status);
      EXPECT_TRUE(IsRight(pins, request));
      EXPECT_EQ(store_->Describe(*segment_, 0, 7, 8).host_blocks, 1u);
    }
    const bool in_time = absl::Now() < deadline;
    reader.join();
    EXPECT_EQ(late.extents()[0].missing, 0b0001u);
    EXPECT_THAT(late.extents()[0].status, StatusIs(absl::StatusCode::kDeadlineExceeded));
    gate_.Open();
    if (in_time || HasFailure()) return;
  }
}

TEST_F(ExtentReaderTest, ScratchEndsToo) {
  const Pins crowd = FillMemory();
  std::vector<ReadRequest> requests;
  for (uint32_t block = 0; block < kBlocks; ++block) requests.push_back(Request(block, kAll));
  // 480 KiB each, and 64 MiB of scratch in all.
  std::vector<Pins> held;
  uint64_t misses = 0;
  for (int i = 0; i < 150 && misses == 0; ++i) {
    held.push_back(store_->PinRows(requests, Soon()));
    for (const PinnedExtent& extent : held.back().extents()) {
      if (extent.missing == 0) continue;
      EXPECT_EQ(extent.missing, kAll);
      EXPECT_THAT(extent.status, StatusIs(absl::StatusCode::kResourceExhausted));
      ++misses;
    }
  }
  EXPECT_GT(misses, 0u);
  held.clear();
  EXPECT_TRUE(Eventually([&] { return CheckBlock(*store_, *segment_, 0, 0, 7).ok(); }));
}

TEST_F(ExtentReaderTest, TheStoreSaysWhetherReadsBypassThePageCache) {
  for (const bool wanted : {false, true}) {
    segment_.reset();
    Close();
    options_.direct_reads = wanted;
    DiskTierOptions options;
    options.path = options_.disk_path;
    options.bytes = options_.disk_bytes;
    options.shard = options_.shard;
    options.direct_reads = wanted;
    auto disk = DiskTier::Open(options);
    ASSERT_OK(disk);
    const bool has = (*disk)->direct_reads();
    disk->reset();
    EXPECT_TRUE(wanted || !has);
    Open();
    EXPECT_EQ(store_->DiskStats().direct_reads, has);
  }
}

// No cell is promised that is not there, whatever comes late, finds no room or is evicted.
TEST_F(ExtentReaderTest, WhatIsPromisedIsThereHoweverReadsOverlap) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::atomic<int> wrong = 0;
  std::atomic<uint64_t> served = 0;
  std::atomic<uint64_t> missed = 0;
  std::vector<std::thread> readers;
  for (uint32_t reader = 0; reader < 4; ++reader) {
    readers.emplace_back([&, reader] {
      std::mt19937 random(seed + reader);
      std::vector<Pins> held(3);
      for (int round = 0; round < 1500; ++round) {
        std::vector<ReadRequest> requests;
        // Few blocks that all want, many that push them out.
        for (int i = 0; i < 12; ++i) {
          const auto block = static_cast<uint32_t>(random() % (i < 4 ? 4 : kBlocks));
          requests.push_back(
              Request(block, 1 + random() % 15, static_cast<uint16_t>(random() % 4)));
        }
        const bool is_patient = random() % 3 == 0;
        Pins pins = store_->PinRows(
            requests, is_patient ? Soon() : absl::Now() + absl::Microseconds(random() % 500));
        for (size_t i = 0; i < requests.size(); ++i) {
          const PinnedExtent& extent = pins.extents()[i];
          const ReadRequest& request = requests[i];
          const BlockKey key{store_->id(*segment_), request.layer, request.head, request.index};
          const uint64_t promised = request.cells & ~extent.missing;
          if (!SameGranules(layout_, key, extent.data, promised)) ++wrong;
          if (is_patient && extent.missing != 0) ++wrong;
          served += promised != 0 ? 1 : 0;
          missed += extent.missing != 0 ? 1 : 0;
        }
        held[random() % held.size()] = std::move(pins);
      }
    });
  }
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(served, 0u);
  EXPECT_GT(missed, 0u) << "no read was ever late";
  EXPECT_GT(store_->HostStats().evicted_blocks, 0u);
}

}  // namespace
}  // namespace terrace::kvstore
