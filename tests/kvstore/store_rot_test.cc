// A byte that rots in a file of the index: whatever it was, what is served is right, what is not
// named is kept, and the store opens wherever it can tell what it lost.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kvstore/block_store.h"
#include "kvstore/disk_tier.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

using ::terrace::testing::StatusIs;
using ::testing::HasSubstr;

class StoreRotTest : public StoreTest {
 protected:
  // Sequences of that many blocks, with little but the index in tables: their rows are in blobs.
  void Write(const std::map<std::string, uint32_t>& blocks) {
    Open();
    for (const auto& [name, end] : blocks) {
      const SegmentRef segment = NewSegment();
      ASSERT_OK(store_->CommitManifest(
          {.name = name, .attributes = AttributesOf(name), .ranges = {{segment, 0, kOpenEnd}}},
          absl::InfiniteFuture()));
      ASSERT_OK(AppendBlocks(*store_, *segment, 0, end));
      ASSERT_OK(store_->Flush(*segment, {}, Soon()));
    }
    // Opening once more brings what only the log held into files.
    Open();
    Close();
  }
  std::map<std::string, Manifest> Recovered() {
    std::map<std::string, Manifest> found;
    for (Manifest& manifest : store_->TakeRecovered()) {
      std::string name = manifest.name;
      found.emplace(std::move(name), std::move(manifest));
    }
    return found;
  }
  // Closes the store, and lets a bit of the watermark rot before it was written.
  void SpoilWatermark(SegmentId segment) {
    Close();
    const auto disk = DiskTier::Open({.path = options_.disk_path,
                                      .bytes = options_.disk_bytes,
                                      .shard = options_.shard,
                                      .fault = {}});
    ASSERT_OK(disk);
    const RecordKey key(RecordKind::kWatermark, segment);
    std::string value = EncodeWatermark(std::vector<DurableExtent>(2));
    AppendChecksum(key.view(), value);
    value[3] = static_cast<char>(value[3] ^ 4);
    DiskBatch batch;
    batch.PutAsIs(key.view(), value);
    ASSERT_OK((*disk)->Write(batch, /*sync=*/true, DiskTier::Growth::kFrees));
  }
  // Some so long that they go to a blob.
  static std::string AttributesOf(const std::string& name) {
    return "attributes of " + name + std::string(name.back() % 2 == 0 ? 0 : 600, '.');
  }
};

TEST_F(StoreRotTest, ARottenManifestLeavesTheOthersAndItsBlocks) {
  Write({{"a", 3}, {"b", 5}});
  const std::string rotten = AttributesOf("a");
  ASSERT_EQ(Rot({reinterpret_cast<const std::byte*>(rotten.data()), rotten.size()}), 1);
  for (int start = 0; start < 2; ++start) {
    Open();
    auto found = Recovered();
    ASSERT_EQ(found.size(), 1u);
    const Manifest& whole = found.at("b");
    EXPECT_OK(whole.damage);
    EXPECT_OK(CheckBlocks(*store_, *whole.ranges[0].segment, 0, 5));
    EXPECT_GT(store_->DiskStats().error_count, 0u);
    // What it may have named is still there.
    EXPECT_GT(store_->DiskStats().used_bytes, 4 * 8 * layout_.rows_bytes());
  }
}

TEST_F(StoreRotTest, ARottenWatermarkIsALossOfAllThatNameItsSegment) {
  Write({{"a", 3}, {"b", 5}});
  Open();
  SegmentId id{};
  {
    auto found = Recovered();
    id = store_->id(*found.at("a").ranges[0].segment);
    ASSERT_OK(Commit("c", {{found.at("a").ranges[0].segment, 0, 2}}));
  }
  SpoilWatermark(id);
  const auto is_loss = StatusIs(absl::StatusCode::kDataLoss, HasSubstr("segment"));
  for (int start = 0; start < 2; ++start) {
    Open();
    auto found = Recovered();
    ASSERT_EQ(found.size(), 3u);
    EXPECT_THAT(found.at("a").damage, is_loss);
    EXPECT_THAT(found.at("c").damage, is_loss);
    EXPECT_OK(found.at("b").damage);
    EXPECT_OK(CheckBlocks(*store_, *found.at("b").ranges[0].segment, 0, 5));
  }
  // Without one of them its segment ends earlier; that must not make the other whole.
  ASSERT_OK(store_->DeleteManifest("a", absl::InfiniteFuture()));
  Open();
  EXPECT_THAT(Recovered().at("c").damage, is_loss);
  ASSERT_OK(store_->DeleteManifest("c", absl::InfiniteFuture()));
  Open();
  auto found = Recovered();
  EXPECT_EQ(found.size(), 1u);
  EXPECT_EQ(store_->DiskStats().error_count, 0u);
}

TEST_F(StoreRotTest, WhereverItIsNothingWrongIsServedAndMostlyTheRestIs) {
  // Tables of many blocks, of which one or two hold what no store opens without.
  options_.disk_bytes = 64 * kMiB;
  layout_.granule_tokens = 16;
  std::map<std::string, uint32_t> blocks;
  for (uint32_t i = 10; i < 60; ++i) blocks.emplace("sequence " + std::to_string(i), 1 + i % 2);
  Write(blocks);
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  std::vector<std::filesystem::path> tables;
  for (const auto& entry : std::filesystem::directory_iterator(options_.disk_path)) {
    if (entry.path().extension() == ".sst") tables.push_back(entry.path());
  }
  ASSERT_FALSE(tables.empty());
  const std::string whole = options_.disk_path;
  size_t served = 0;
  options_.disk_path = folder_.path() + "/rotten";
  constexpr int kRounds = 60;
  int opened = 0;
  for (int round = 0; round < kRounds; ++round) {
    std::filesystem::remove_all(options_.disk_path);
    std::filesystem::copy(whole, options_.disk_path);
    const auto& table = tables[random() % tables.size()];
    std::fstream file(std::filesystem::path(options_.disk_path) / table.filename(),
                      std::ios::in | std::ios::out | std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(file), {}};
    const size_t at = random() % bytes.size();
    SCOPED_TRACE(::testing::Message() << table.filename() << " at " << at);
    file.clear();
    file.seekp(static_cast<std::streamoff>(at));
    file.put(static_cast<char>(bytes[at] ^ (1 + random() % 255)));
    file.close();
    auto store = OpenBlockStore(options_, fault_);
    if (!store.ok()) continue;
    ++opened;
    store_ = *std::move(store);
    for (const auto& [name, manifest] : Recovered()) {
      ASSERT_TRUE(blocks.contains(name));
      if (!manifest.damage.ok()) continue;
      ++served;
      EXPECT_EQ(manifest.attributes, AttributesOf(name));
      Segment& segment = *manifest.ranges[0].segment;
      for (uint16_t layer = 0; layer < 2; ++layer) {
        ASSERT_EQ(store_->Durable(segment, layer).end_block, blocks.at(name));
      }
      for (uint32_t block = 0; block < blocks.at(name); ++block) {
        const absl::Status status = CheckBlock(*store_, segment, 1, 0, block);
        EXPECT_TRUE(status.ok() || absl::IsDataLoss(status)) << status;
      }
    }
    Close();
  }
  EXPECT_GT(opened, kRounds / 2);
  EXPECT_GT(served, opened * blocks.size() / 2);
}

}  // namespace
}  // namespace terrace::kvstore
