#include "kvstore/disk_record.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kvstore/checksum.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

using ::terrace::testing::StatusIs;

ManifestRecord SampleManifest() {
  ManifestRecord record;
  record.attributes = std::string("\0bytes", 6);
  const BlockLayout layout{.layers = 2, .heads = 3, .row_bytes = 512, .planes = {{4, 64}}};
  record.ranges = {{SegmentId{7}, 0, 0, 40, layout}, {SegmentId{9}, 40, 40, kOpenEnd, layout}};
  return record;
}

TEST(Checksum, IsCrc32cOfTheStandardVector) {
  EXPECT_EQ(ExtendCrc32c(0, "123456789", 9), 0xE3069283u);
  EXPECT_EQ(ExtendCrc32c(ExtendCrc32c(0, "1234", 4), "56789", 5), 0xE3069283u);
  EXPECT_EQ(ExtendCrc32c(0, "", 0), 0u);
}

TEST(RecordKey, OrdersGranulesWithinTheirBlockAndBlocksWithinTheirSegment) {
  const BlockKey block{SegmentId{0x1ff}, 1, 2, 0xff};
  BlockKey next = block;
  ++next.block;
  EXPECT_LT(RecordKey(RecordKind::kRows, block.segment).view(),
            RecordKey::Granule(block, 0).view());
  EXPECT_LT(RecordKey(RecordKind::kRows, block).view(), RecordKey::Granule(block, 0).view());
  EXPECT_LT(RecordKey::Granule(block, 0).view(), RecordKey::Granule(block, 63).view());
  EXPECT_LT(RecordKey::Granule(block, 63).view(), RecordKey(RecordKind::kRows, next).view());
  EXPECT_LT(RecordKey::Granule(next, 63).view(),
            RecordKey(RecordKind::kRows, SegmentId{0x200}).view());
  EXPECT_EQ(RecordKey::Granule(block, 5).view().size(), 18u);
  EXPECT_EQ(RecordKey(RecordKind::kWatermark, block.segment).view(),
            std::string_view("w\0\0\0\0\0\0\x01\xff", 9));
}

TEST(CheckedPayload, RefusesEveryFlippedBitAndEveryOtherKey) {
  const std::string key = "key";
  std::string value = "payload";
  AppendChecksum(key, value);
  ASSERT_OK(CheckedPayload(key, value));
  EXPECT_EQ(*CheckedPayload(key, value), "payload");
  for (size_t bit = 0; bit < value.size() * 8; ++bit) {
    std::string flipped = value;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    EXPECT_THAT(CheckedPayload(key, flipped), StatusIs(absl::StatusCode::kDataLoss));
  }
  EXPECT_THAT(CheckedPayload("kez", value), StatusIs(absl::StatusCode::kDataLoss));
  for (size_t size = 0; size < value.size(); ++size) {
    EXPECT_THAT(CheckedPayload(key, std::string_view(value).substr(0, size)),
                StatusIs(absl::StatusCode::kDataLoss));
  }
}

TEST(ManifestRecord, SurvivesTheRoundTrip) {
  const ManifestRecord record = SampleManifest();
  const auto decoded = DecodeManifest(EncodeManifest(record));
  ASSERT_OK(decoded);
  EXPECT_EQ(decoded->attributes, record.attributes);
  ASSERT_EQ(decoded->ranges.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(decoded->ranges[i].segment, record.ranges[i].segment);
    EXPECT_EQ(decoded->ranges[i].segment_first_block, record.ranges[i].segment_first_block);
    EXPECT_EQ(decoded->ranges[i].first_block, record.ranges[i].first_block);
    EXPECT_EQ(decoded->ranges[i].end_block, record.ranges[i].end_block);
    EXPECT_EQ(decoded->ranges[i].layout, record.ranges[i].layout);
  }
}

TEST(WatermarkRecord, SurvivesTheRoundTrip) {
  const std::vector<DurableExtent> layers = {{0, 0}, {kOpenEnd, 63}, {77, 1}};
  const auto decoded = DecodeWatermark(EncodeWatermark(layers));
  ASSERT_OK(decoded);
  ASSERT_EQ(decoded->size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ((*decoded)[i].end_block, layers[i].end_block);
    EXPECT_EQ((*decoded)[i].tail_rows, layers[i].tail_rows);
  }
}

TEST(Records, RefuseEveryOtherLength) {
  const std::string manifest = EncodeManifest(SampleManifest());
  const std::string watermark = EncodeWatermark(std::vector<DurableExtent>(3));
  const std::string format = EncodeFormat({.version = 5, .shard = 6});
  for (size_t size = 0; size < manifest.size(); ++size) {
    EXPECT_FALSE(DecodeManifest(std::string_view(manifest).substr(0, size)).ok()) << size;
  }
  for (size_t size = 0; size < watermark.size(); ++size) {
    EXPECT_FALSE(DecodeWatermark(std::string_view(watermark).substr(0, size)).ok()) << size;
  }
  for (size_t size = 0; size < format.size(); ++size) {
    EXPECT_FALSE(DecodeFormat(std::string_view(format).substr(0, size)).ok()) << size;
  }
  EXPECT_FALSE(DecodeManifest(manifest + '\0').ok());
  EXPECT_FALSE(DecodeWatermark(watermark + '\0').ok());
  // A later format may be longer; its version must still be told.
  ASSERT_OK(DecodeFormat(format + "more"));
  EXPECT_EQ(DecodeFormat(format + "more")->version, 5u);
  EXPECT_EQ(DecodeFormat(format)->shard, 6u);
}

}  // namespace
}  // namespace terrace::kvstore
