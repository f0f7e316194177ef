// How values lie in blocks, what their manifests say, and who gives way first.
#include <gtest/gtest.h>

#include <random>
#include <set>
#include <string>

#include "services/engine/retained_set.h"
#include "services/engine/value_layout.h"
#include "services/engine/value_record.h"
#include "tests/status_matchers.h"

namespace terrace::engine {
namespace {

using ::terrace::testing::StatusIs;

TEST(ValueLayout, HoldsTheValueWithLittlePaddingInFewSizes) {
  std::set<uint64_t> sizes = {1, 4095, 4096, 4097, kValueBlockBytesMax, uint64_t{1} << 30};
  for (uint64_t edge = 4096; edge <= uint64_t{64} << 20; edge *= 2) {
    sizes.insert({edge - 1, edge, edge + 1, edge / 4 * 5, edge / 4 * 5 + 1});
  }
  std::mt19937_64 random(1);
  for (int i = 0; i < 10'000; ++i) sizes.insert(1 + random() % (uint64_t{4} << random() % 26));
  std::set<uint32_t> blocks_of;
  for (const uint64_t size : sizes) {
    const kvstore::BlockLayout layout = ValueLayout(size);
    ASSERT_OK(layout.Validate());
    const uint64_t block = layout.rows_bytes();
    const uint64_t stored = (size + block - 1) / block * block;
    ASSERT_GE(block, kValueBlockBytesMin) << size;
    ASSERT_LE(block, kValueBlockBytesMax) << size;
    ASSERT_LE(stored, std::max<uint64_t>(kValueBlockBytesMin, size + size / 4 + 4)) << size;
    blocks_of.insert(layout.row_bytes);
  }
  EXPECT_LE(blocks_of.size(), 25u);
}

TEST(ValueRecord, ComesBackAsItWas) {
  const ValueRecord record = {.tenant = std::string("\0\xff\"", 3),
                              .key = std::string(kValueKeyBytesMax, '\x80'),
                              .size = UINT64_MAX,
                              .digest = {.low = UINT64_MAX, .high = 1},
                              .expires_us = 123};
  const absl::StatusOr<ValueRecord> back = DecodeValueRecord(EncodeValueRecord(record));
  ASSERT_OK(back);
  EXPECT_EQ(back->tenant, record.tenant);
  EXPECT_EQ(back->key, record.key);
  EXPECT_EQ(back->size, record.size);
  EXPECT_EQ(back->digest, record.digest);
  EXPECT_EQ(back->expires_us, record.expires_us);
}

TEST(ValueRecord, AnythingElseIsNone) {
  const ValueRecord good = {.tenant = "t", .key = "k", .size = 1, .digest = {}};
  ASSERT_OK(DecodeValueRecord(EncodeValueRecord(good)));
  ValueRecord no_key = good;
  no_key.key.clear();
  ValueRecord long_key = good;
  long_key.key.assign(kValueKeyBytesMax + 1, 'k');
  ValueRecord no_size = good;
  no_size.size = 0;
  for (const std::string& text :
       {std::string(), std::string("{}"), std::string("[1]"), std::string("\xff"),
        EncodeValueRecord(good).substr(1), EncodeValueRecord(no_key), EncodeValueRecord(long_key),
        EncodeValueRecord(no_size)}) {
    EXPECT_THAT(DecodeValueRecord(text), StatusIs(absl::StatusCode::kDataLoss)) << text;
  }
  std::string newer = EncodeValueRecord(good);
  newer.replace(newer.find("\"version\":1"), 11, "\"version\":2");
  EXPECT_THAT(DecodeValueRecord(newer), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST(ValueRecord, NamesAreToldFromHandlesAndGrow) {
  const std::string first = ValueManifestName(kvstore::SegmentId{9});
  const std::string second = ValueManifestName(kvstore::SegmentId{16});
  EXPECT_LT(first, second);
  EXPECT_TRUE(IsValueManifest(first));
  EXPECT_FALSE(IsValueManifest("s0000-00000000000000000000000000000000"));
}

TEST(RetainedSet, TheOldestOfTheLargestTenantGoesFirst) {
  const auto value = [](const char* key) {
    auto made = std::make_shared<StoredValue>();
    made->key = key;
    return made;
  };
  RetainedSet set;
  EXPECT_EQ(set.MostBytes(), 0u);
  EXPECT_FALSE(set.Take().has_value());
  set.Add("a", {.last_used_us = 1, .bytes = 10, .what = value("a1")});
  set.Add("b", {.last_used_us = 5, .bytes = 10, .what = value("b5")});
  set.Add("b", {.last_used_us = 3, .bytes = 10, .what = value("b3")});
  set.Add("b", {.last_used_us = 4, .bytes = 10, .what = value("b4")});
  const auto take = [&set] {
    const std::optional<Retained> taken = set.Take();
    return taken.has_value() ? std::get<std::shared_ptr<StoredValue>>(taken->what)->key : "";
  };
  EXPECT_EQ(set.MostBytes(), 30u);
  EXPECT_EQ(take(), "b3");
  EXPECT_EQ(take(), "b4");
  set.Count("a", 5);
  // All of it leased, or being read.
  set.Count("c", 100);
  EXPECT_EQ(set.MostBytes(), 15u) << "the largest has nothing that can go";
  EXPECT_EQ(take(), "a1");
  EXPECT_EQ(set.MostBytes(), 10u);
  EXPECT_EQ(take(), "b5");
  EXPECT_EQ(set.MostBytes(), 0u);
  EXPECT_EQ(take(), "");
}

}  // namespace
}  // namespace terrace::engine
