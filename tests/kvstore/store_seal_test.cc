// Blocks that are sealed together: what is read is as if each had been sealed alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <thread>
#include <vector>

#include "tests/kvstore/store_fixture.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

class StoreSealTest : public StoreTest {
 protected:
  // Fills and seals reserved blocks [first, end) of one lane in one call.
  void SealRun(Segment& segment, uint16_t layer, uint16_t head, uint32_t first, uint32_t end) {
    std::vector<std::byte> pieces;
    for (uint32_t block = first; block < end; ++block) {
      const BlockKey key{store_->id(segment), layer, head, block};
      std::vector<std::byte*> open(layout_.heads);
      store_->OpenRows(segment, layer, block, absl::MakeSpan(open));
      EXPECT_EQ(open[head], store_->OpenRows(segment, layer, head, block));
      FillBytes(key, 0, /*is_piece=*/false, layout_.rows_bytes(), open[head]);
      const std::vector<std::byte> piece = PieceOf(layout_, key);
      pieces.insert(pieces.end(), piece.begin(), piece.end());
    }
    store_->Seal(segment, layer, head, first, end, pieces);
  }
};

TEST_F(StoreSealTest, AnyRunsOverAnyStripesReadBack) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (const bool has_index : {true, false}) {
    for (int round = 0; round < 10; ++round) {
      layout_ = SmallLayout();
      if (!has_index) layout_.planes.clear();
      layout_.stripe_blocks = 1u << random() % 5;
      Open();
      const auto first = static_cast<uint32_t>(random() % 7);
      const uint32_t end = first + 10;
      const SegmentRef segment = NewSegment(first);
      for (uint16_t layer = 0; layer < layout_.layers; ++layer) {
        for (uint32_t block = first; block < end;) {
          const uint32_t next = std::min<uint32_t>(end, block + 1 + random() % 6);
          ASSERT_OK(store_->Reserve(*segment, layer, block, next, Soon()));
          for (uint16_t head = 0; head < layout_.heads; ++head) {
            SealRun(*segment, layer, head, block, next);
            EXPECT_EQ(store_->SealedEnd(*segment, layer, head), next);
          }
          block = next;
        }
      }
      EXPECT_OK(CheckBlocks(*store_, *segment, first, end));
    }
  }
}

TEST_F(StoreSealTest, ARunOfNoBlocksSealsNone) {
  Open();
  const SegmentRef segment = NewSegment();
  ASSERT_OK(store_->Reserve(*segment, 0, 0, 1, Soon()));
  store_->Seal(*segment, 0, 0, 0, 0, {});
  EXPECT_EQ(store_->SealedEnd(*segment, 0, 0), 0u);
}

TEST_F(StoreSealTest, OfARunThatAManifestCutTheRestIsSealed) {
  for (const uint32_t cut : {3u, 4u, 5u, 8u, 9u}) {
    Open();
    const SegmentRef segment = NewSegment();
    ASSERT_OK(Commit("cut", {{segment, 0, kOpenEnd}}));
    ASSERT_OK(AppendBlocks(*store_, *segment, 0, 3));
    ASSERT_OK(store_->Reserve(*segment, 0, 3, 9, Soon()));
    ASSERT_OK(Commit("cut", {{segment, 0, cut}}));
    SealRun(*segment, 0, 0, 3, std::min(cut, 9u));
    EXPECT_EQ(store_->SealedEnd(*segment, 0, 0), std::min(cut, 9u)) << cut;
    for (uint32_t block = 0; block < cut; ++block) {
      EXPECT_OK(CheckBlock(*store_, *segment, 0, 0, block)) << block << " of " << cut;
    }
    ASSERT_OK(store_->DeleteManifest("cut", Soon()));
  }
}

TEST_F(StoreSealTest, BlocksBeyondACutAreDroppedFromTheirRun) {
  Open();
  const SegmentRef segment = NewSegment();
  ASSERT_OK(Commit("cut", {{segment, 0, kOpenEnd}}));
  ASSERT_OK(store_->Reserve(*segment, 0, 0, 9, Soon()));
  std::vector<std::byte> pieces;
  for (uint32_t block = 0; block < 9; ++block) {
    const BlockKey key{store_->id(*segment), 0, 0, block};
    FillBytes(key, 0, /*is_piece=*/false, layout_.rows_bytes(),
              store_->OpenRows(*segment, 0, 0, block));
    const std::vector<std::byte> piece = PieceOf(layout_, key);
    pieces.insert(pieces.end(), piece.begin(), piece.end());
  }
  ASSERT_OK(Commit("cut", {{segment, 0, 6}}));
  store_->Seal(*segment, 0, 0, 0, 9, pieces);
  EXPECT_EQ(store_->SealedEnd(*segment, 0, 0), 6u);
  for (uint32_t block = 0; block < 6; ++block) {
    EXPECT_OK(CheckBlock(*store_, *segment, 0, 0, block)) << block;
  }
  EXPECT_THAT(CheckBlock(*store_, *segment, 0, 0, 6),
              ::terrace::testing::StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(StoreSealTest, HeadsMaySealAtOnce) {
  options_.host_bytes = 8 * kMiB;
  layout_.heads = 4;
  Open();
  const SegmentRef segment = NewSegment();
  for (uint32_t block = 0; block < 32; block += 8) {
    ASSERT_OK(store_->Reserve(*segment, 0, block, block + 8, Soon()));
    std::vector<std::thread> heads;
    for (uint16_t head = 0; head < layout_.heads; ++head) {
      heads.emplace_back([&, head] { SealRun(*segment, 0, head, block, block + 8); });
    }
    for (std::thread& head : heads) head.join();
  }
  for (uint16_t head = 0; head < layout_.heads; ++head) {
    for (uint32_t block = 0; block < 32; ++block) {
      EXPECT_OK(CheckBlock(*store_, *segment, 0, head, block));
    }
  }
}

}  // namespace
}  // namespace terrace::kvstore
