// Several writers, each with segments of its own, and readers of everything, in far less memory
// than what is written. Every byte that is read is verified; run it under ThreadSanitizer too.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kvstore/block_store.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

using ::testing::AnyOf;
using ::testing::Eq;

constexpr int kWriters = 3;
constexpr int kReaders = 3;
constexpr uint32_t kBlocks = 60;

class StoreThreadsTest : public StoreTest {
 protected:
  // What readers may know of a segment.
  struct Shelf {
    SegmentRef segment;
    std::atomic<uint32_t> sealed_end = 0;
  };

  StoreThreadsTest() {
    options_.host_bytes = 2 * kMiB;
    options_.reader_threads = 2;
  }
  absl::Status Write(Shelf& shelf) {
    for (uint32_t block = 0; block < kBlocks; ++block) {
      if (absl::Status status = AppendBlocks(*store_, *shelf.segment, block, block + 1);
          !status.ok()) {
        return status;
      }
      shelf.sealed_end = block + 1;
      if (block % 16 != 15) continue;
      if (absl::Status status = store_->Flush(*shelf.segment, {}, Soon()); !status.ok()) {
        return status;
      }
    }
    return absl::OkStatus();
  }
  // Reads batches over all shelves until all are full.
  absl::Status Read(std::vector<Shelf>& shelves, uint32_t seed) {
    std::mt19937 random(seed);
    Pins held;
    bool all_full = false;
    for (int round = 0; round < 100 || !all_full; ++round) {
      std::vector<ReadRequest> rows;
      std::vector<ReadRequest> stripes;
      all_full = true;
      for (Shelf& shelf : shelves) {
        const uint32_t end = shelf.sealed_end;
        all_full = all_full && end == kBlocks;
        if (end == 0) continue;
        const auto block = static_cast<uint32_t>(random() % end);
        const auto layer = static_cast<uint16_t>(random() % 2);
        const auto head = static_cast<uint16_t>(random() % 2);
        rows.push_back({shelf.segment.get(), layer, head, block, 1 + random() % 15});
        stripes.push_back({shelf.segment.get(), layer, head, block / 4, uint64_t{1} << block % 4});
      }
      Pins row_pins = store_->PinRows(rows, Soon());
      const Pins stripe_pins = store_->PinStripes(stripes, Soon());
      for (size_t i = 0; i < rows.size(); ++i) {
        const ReadRequest& row = rows[i];
        const BlockKey key{store_->id(*row.segment), row.layer, row.head, row.index};
        if (absl::Status status = row_pins.extents()[i].status; !status.ok()) return status;
        if (absl::Status status = stripe_pins.extents()[i].status; !status.ok()) return status;
        if (!SameGranules(layout_, key, row_pins.extents()[i].data, row.cells)) {
          return absl::InternalError("wrong rows");
        }
        if (!SamePiece(layout_, key, stripe_pins.extents()[i].data)) {
          return absl::InternalError("wrong piece");
        }
      }
      if (random() % 4 == 0) held = std::move(row_pins);
    }
    return absl::OkStatus();
  }
};

TEST_F(StoreThreadsTest, ReadersSeeTheRightBytesWhileWritersWriteAndManifestsComeAndGo) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  Open();
  std::vector<Shelf> shelves(kWriters);
  for (int i = 0; i < kWriters; ++i) {
    shelves[i].segment = NewSegment();
    ASSERT_OK(Commit("writer " + std::to_string(i), {{shelves[i].segment, 0, kOpenEnd}}));
  }
  std::vector<absl::Status> outcomes(kWriters + kReaders + 2);
  std::atomic<int> running = kWriters + kReaders;
  std::vector<std::thread> threads;
  for (int i = 0; i < kWriters + kReaders; ++i) {
    threads.emplace_back([&, i] {
      outcomes[i] =
          i < kWriters ? Write(shelves[i]) : Read(shelves, seed + static_cast<uint32_t>(i));
      --running;
    });
  }
  // Forks that come and go, and sequences that are written and deleted at once.
  threads.emplace_back([&] {
    absl::Status& outcome = outcomes[kWriters + kReaders];
    for (int round = 0; running > 0 && outcome.ok(); ++round) {
      Shelf& shelf = shelves[round % kWriters];
      outcome = Commit("fork", {{shelf.segment, 0, shelf.sealed_end}});
      auto segment = store_->CreateSegment(layout_, 0);
      if (outcome.ok()) outcome = segment.status();
      if (outcome.ok()) outcome = Commit("short", {{*segment, 0, kOpenEnd}});
      if (outcome.ok()) outcome = AppendBlocks(*store_, **segment, 0, 2);
      if (outcome.ok()) outcome = CheckBlocks(*store_, **segment, 0, 2);
      if (outcome.ok()) outcome = store_->DeleteManifest("short", absl::InfiniteFuture());
      if (outcome.ok()) outcome = store_->DeleteManifest("fork", absl::InfiniteFuture());
    }
  });
  // Conservation holds at every moment (I8).
  threads.emplace_back([&] {
    absl::Status& outcome = outcomes[kWriters + kReaders + 1];
    while (running > 0 && outcome.ok()) {
      for (const TierStats& stats : {store_->HostStats(), store_->DiskStats()}) {
        ::testing::StringMatchResultListener listener;
        if (!::testing::ExplainMatchResult(IsConserved(), stats, &listener)) {
          outcome = absl::InternalError(listener.str());
        }
      }
    }
  });
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& outcome : outcomes) EXPECT_OK(outcome);
  EXPECT_GT(store_->HostStats().evicted_blocks, 0u);
  for (Shelf& shelf : shelves) {
    EXPECT_OK(store_->Flush(*shelf.segment, {}, Soon()));
    EXPECT_OK(CheckBlocks(*store_, *shelf.segment, 0, kBlocks));
    shelf.segment.reset();
  }
  Open();
  const std::vector<Manifest> recovered = store_->TakeRecovered();
  ASSERT_EQ(recovered.size(), size_t{kWriters});
  for (const Manifest& manifest : recovered) {
    EXPECT_OK(CheckBlocks(*store_, *manifest.ranges[0].segment, 0, kBlocks));
  }
}

}  // namespace
}  // namespace terrace::kvstore
