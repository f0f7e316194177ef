// Values: what is put comes back, as a whole or not at all, to its own tenant only.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/value_client.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::Caller;
using engine::ValueSpec;

constexpr uint64_t kMiB = uint64_t{1} << 20;

class ValueCacheTest : public ::testing::Test {
 protected:
  ValueCacheTest() {
    options_.store.host_bytes = 64 * kMiB;
    options_.sweep_interval = absl::ZeroDuration();
    options_.clock = [this] { return now_; };
    Open();
  }

  void Open() { engine_ = OpenEngine(options_); }
  void Pass(absl::Duration time) {
    now_ += time;
    engine_->Sweep();
  }
  uint64_t ResidentBlocks() { return (*engine_->ListTiers())[0].stats.resident_blocks; }
  engine::ValuesFound Lookup(const std::vector<std::string>& keys, absl::Duration lease = {},
                             const Caller& caller = {}) {
    return *engine_->values().Lookup(caller, keys, lease);
  }

  engine::EmbeddedOptions options_ = MemoryOptions();
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  std::unique_ptr<engine::EmbeddedEngine> engine_;
};

TEST_F(ValueCacheTest, ValuesOfAllSizesComeBackAsTheyWere) {
  std::vector<uint64_t> sizes = {1, 2, 63, 64, 65, 10'000'000};
  for (const uint64_t edge : {4 << 10, 5 << 10, 160 << 10, 256 << 10, 512 << 10, 1 << 20}) {
    sizes.insert(sizes.end(), {edge - 1, edge, edge + 1});
  }
  for (const uint64_t size : sizes) {
    SCOPED_TRACE(size);
    const std::string key = "key" + std::to_string(size);
    ASSERT_OK(PutValue(*engine_, key, ValueBytes(1, size)));
    EXPECT_EQ(*GetValue(*engine_, key), ValueBytes(1, size));
  }
  EXPECT_EQ(engine_->values().size(), sizes.size());
}

TEST_F(ValueCacheTest, ALargeValueComesBack) {
  options_.store.host_bytes = 256 * kMiB;
  Open();
  const std::string bytes = ValueBytes(1, 32 * kMiB);
  ASSERT_OK(PutValue(*engine_, "large", bytes, {}, {}, kMiB));
  EXPECT_TRUE(*GetValue(*engine_, "large") == bytes);
}

TEST_F(ValueCacheTest, PortionsOfAnyLengthMakeTheSameValue) {
  const std::string bytes = ValueBytes(2, 20'000);
  for (const size_t portion : {1, 7, 4096, 19'999, 20'000}) {
    const std::string key = "by" + std::to_string(portion);
    ASSERT_OK(PutValue(*engine_, key, bytes, {}, {}, portion));
    EXPECT_TRUE(*GetValue(*engine_, key) == bytes) << portion;
  }
}

TEST_F(ValueCacheTest, TheSameAgainIsOkAndAnythingElseRefused) {
  const std::string bytes = ValueBytes(1, 300'000);
  ASSERT_OK(PutValue(*engine_, "k", bytes));
  const uint64_t blocks = ResidentBlocks();
  EXPECT_OK(PutValue(*engine_, "k", bytes));
  EXPECT_EQ(ResidentBlocks(), blocks) << "a repeat takes no room";
  for (const size_t at : {size_t{0}, size_t{262'143}, size_t{262'144}, bytes.size() - 1}) {
    std::string other = bytes;
    other[at] ^= 1;
    EXPECT_THAT(PutValue(*engine_, "k", other), StatusIs(absl::StatusCode::kAlreadyExists)) << at;
  }
  EXPECT_THAT(PutValue(*engine_, "k", bytes.substr(1)), StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_EQ(*GetValue(*engine_, "k"), bytes);
}

TEST_F(ValueCacheTest, AValueIsNotThereUntilItIsWhole) {
  const std::string bytes = ValueBytes(1, 600'000);
  auto writer = engine_->values().Put({}, {.key = "k", .size = bytes.size()});
  ASSERT_OK(writer);
  ASSERT_OK((*writer)->Write(AsBytes(bytes)));
  EXPECT_FALSE(HasValue(*engine_, "k"));
  EXPECT_EQ(Lookup({"k"}).sizes, std::vector<uint64_t>{0});
  ASSERT_OK((*writer)->Finish());
  EXPECT_EQ(*GetValue(*engine_, "k"), bytes);
}

TEST_F(ValueCacheTest, APutThatEndsEarlyLeavesNothing) {
  const std::string bytes = ValueBytes(1, 600'000);
  {
    auto writer = engine_->values().Put({}, {.key = "k", .size = bytes.size()});
    ASSERT_OK((*writer)->Write(AsBytes(bytes).first(400'000)));
    EXPECT_GT(ResidentBlocks(), 0u);
  }
  EXPECT_EQ(ResidentBlocks(), 0u);
  EXPECT_FALSE(HasValue(*engine_, "k"));
  EXPECT_OK(PutValue(*engine_, "k", ValueBytes(2, 100)));
}

TEST_F(ValueCacheTest, OtherThanTheSaidNumberOfBytesIsRefused) {
  for (const int64_t difference : {-600'000, -1, 1, 600'000}) {
    const std::string bytes = ValueBytes(1, 600'000);
    const ValueSpec spec = {.key = "k", .size = static_cast<uint64_t>(600'000 + difference)};
    if (spec.size == 0) continue;
    EXPECT_THAT(PutSized(*engine_, {}, spec, bytes), StatusIs(absl::StatusCode::kInvalidArgument))
        << difference;
    EXPECT_EQ(ResidentBlocks(), 0u);
  }
  EXPECT_FALSE(HasValue(*engine_, "k"));
}

TEST_F(ValueCacheTest, KeysSizesAndTimesOutOfRangeAreRefused) {
  const uint64_t size_max = engine_->values().value_bytes_max();
  EXPECT_EQ(size_max, 16 * kMiB) << "a quarter of the memory";
  const struct {
    ValueSpec spec;
    bool good;
  } cases[] = {
      {{.key = "", .size = 1}, false},
      {{.key = "k", .size = 1}, true},
      {{.key = std::string(128, 'k'), .size = 1}, true},
      {{.key = std::string(129, 'k'), .size = 1}, false},
      {{.key = "size", .size = 0}, false},
      {{.key = "size", .size = size_max}, true},
      {{.key = "size", .size = size_max + 1}, false},
      {{.key = "size", .size = UINT64_MAX}, false},
      {{.key = "ttl", .size = 1, .ttl = -absl::Nanoseconds(1)}, false},
      {{.key = "ttl", .size = 1, .ttl = absl::InfiniteDuration()}, false},
      {{.key = "ttl", .size = 1, .ttl = absl::Hours(24 * 365)}, true},
  };
  for (const auto& [spec, good] : cases) {
    const auto writer = engine_->values().Put({}, spec);
    EXPECT_EQ(writer.ok(), good) << spec.key.size() << " " << spec.size;
    if (!good) {
      EXPECT_THAT(writer, StatusIs(absl::StatusCode::kInvalidArgument));
    }
  }
}

TEST_F(ValueCacheTest, AnyBytesMakeAKey) {
  const std::string zeros(3, '\0');
  ASSERT_OK(PutValue(*engine_, zeros, "three"));
  ASSERT_OK(PutValue(*engine_, zeros + '\0', "four"));
  ASSERT_OK(PutValue(*engine_, "\xff\xfe", "no text"));
  EXPECT_EQ(*GetValue(*engine_, zeros), "three");
  EXPECT_EQ(*GetValue(*engine_, zeros + '\0'), "four");
  EXPECT_EQ(*GetValue(*engine_, "\xff\xfe"), "no text");
}

TEST_F(ValueCacheTest, OfTwoPutsAtOnceTheFirstToEndCounts) {
  const std::string bytes = ValueBytes(1, 100'000);
  const std::string other = ValueBytes(2, 100'000);
  std::vector<std::shared_ptr<engine::ValueWriter>> writers;
  for (const std::string* from : {&bytes, &bytes, &other}) {
    writers.push_back(*engine_->values().Put({}, {.key = "k", .size = from->size()}));
    ASSERT_OK(writers.back()->Write(AsBytes(*from)));
  }
  EXPECT_OK(writers[0]->Finish());
  EXPECT_OK(writers[1]->Finish());
  EXPECT_THAT(writers[2]->Finish(), StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_EQ(*GetValue(*engine_, "k"), bytes);
  EXPECT_EQ(ResidentBlocks(), 1u);
}

// I11.
TEST_F(ValueCacheTest, AnotherTenantsKeyIsAnUnknownOne) {
  const Caller other = {.tenant = "other"};
  ASSERT_OK(PutValue(*engine_, "k", "mine"));
  const absl::Status theirs = engine_->values().Get(other, "k").status();
  EXPECT_EQ(theirs, engine_->values().Get(other, "unknown").status());
  EXPECT_THAT(theirs, StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(Lookup({"k"}, {}, other).sizes, std::vector<uint64_t>{0});
  EXPECT_OK(engine_->values().Delete(other, {"k"}));
  // Nor do its bytes matter.
  EXPECT_OK(PutValue(*engine_, "k", "theirs", {}, other));
  EXPECT_EQ(*GetValue(*engine_, "k"), "mine");
  EXPECT_EQ(*GetValue(*engine_, "k", other), "theirs");
}

TEST_F(ValueCacheTest, LookupTellsWhichAndHowManyOfTheFirst) {
  for (const char* key : {"a", "b", "d"})
    ASSERT_OK(PutValue(*engine_, key, std::string(key) + "!"));
  const engine::ValuesFound some = Lookup({"a", "b", "c", "d"});
  EXPECT_EQ(some.sizes, (std::vector<uint64_t>{2, 2, 0, 2}));
  EXPECT_EQ(some.leading, 2u);
  EXPECT_EQ(some.lease_expires, absl::InfinitePast());
  EXPECT_EQ(Lookup({"c", "a"}).leading, 0u);
  EXPECT_EQ(Lookup({"d", "a"}).leading, 2u);
  EXPECT_EQ(Lookup({}).leading, 0u);
  EXPECT_EQ(Lookup({"a"}, absl::Minutes(1)).lease_expires, now_ + absl::Minutes(1));
  EXPECT_EQ(Lookup({"c"}, absl::Minutes(1)).lease_expires, absl::InfinitePast());
  for (const absl::Duration lease :
       {-absl::Nanoseconds(1), absl::Hours(1) + absl::Nanoseconds(1)}) {
    EXPECT_THAT(engine_->values().Lookup({}, {}, lease),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

TEST_F(ValueCacheTest, DeletingForgetsAndIsIdempotent) {
  ASSERT_OK(PutValue(*engine_, "k", ValueBytes(1, 600'000)));
  Lookup({"k"}, absl::Hours(1));
  EXPECT_OK(engine_->values().Delete({}, {"k"}));
  EXPECT_OK(engine_->values().Delete({}, {"k"}));
  EXPECT_THAT(GetValue(*engine_, "k"), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(ResidentBlocks(), 0u);
  EXPECT_EQ(engine_->values().size(), 0u);
  ASSERT_OK(PutValue(*engine_, "k", "other bytes"));
  EXPECT_EQ(*GetValue(*engine_, "k"), "other bytes");
}

// I3.
TEST_F(ValueCacheTest, WhatWasReadStaysInPlaceWhenItsValueGoes) {
  const std::string bytes = ValueBytes(1, 600'000);
  ASSERT_OK(PutValue(*engine_, "k", bytes));
  auto reader = engine_->values().Get({}, "k");
  ASSERT_OK(reader);
  const auto part = reader->Next(1, absl::InfiniteFuture());
  ASSERT_OK(part);
  ASSERT_OK(engine_->values().Delete({}, {"k"}));
  for (int i = 0; i < 300; ++i) {
    ASSERT_OK(PutValue(*engine_, "filler" + std::to_string(i), ValueBytes(i, 200'000)));
  }
  const absl::Span<const std::byte> first = (*part)->spans[0];
  EXPECT_TRUE(first == AsBytes(bytes).first(first.size()));
}

TEST_F(ValueCacheTest, AValueGoesWhenItsTimeIsOver) {
  ASSERT_OK(PutValue(*engine_, "short", "1", absl::Seconds(10)));
  ASSERT_OK(PutValue(*engine_, "long", "2", absl::Seconds(20)));
  ASSERT_OK(PutValue(*engine_, "ever", "3"));
  now_ += absl::Seconds(10) - absl::Microseconds(1);
  EXPECT_TRUE(HasValue(*engine_, "short"));
  now_ += absl::Microseconds(1);
  EXPECT_FALSE(HasValue(*engine_, "short")) << "without a sweep, too";
  EXPECT_EQ(Lookup({"short", "long", "ever"}).sizes, (std::vector<uint64_t>{0, 1, 1}));
  // Other bytes may take its place, before and after the sweep.
  ASSERT_OK(PutValue(*engine_, "short", "other"));
  EXPECT_EQ(*GetValue(*engine_, "short"), "other");
  EXPECT_EQ(engine_->values().size(), 3u);
  Pass(absl::Seconds(10));
  EXPECT_EQ(engine_->values().size(), 2u);
  EXPECT_FALSE(HasValue(*engine_, "long"));
}

TEST_F(ValueCacheTest, PuttingAgainProlongsAndNeverShortens) {
  ASSERT_OK(PutValue(*engine_, "k", "bytes", absl::Seconds(10)));
  ASSERT_OK(PutValue(*engine_, "k", "bytes", absl::Seconds(30)));
  ASSERT_OK(PutValue(*engine_, "k", "bytes", absl::Seconds(1)));
  Pass(absl::Seconds(29));
  EXPECT_TRUE(HasValue(*engine_, "k"));
  ASSERT_OK(PutValue(*engine_, "k", "bytes"));
  Pass(absl::Hours(1000));
  EXPECT_TRUE(HasValue(*engine_, "k"));
}

TEST_F(ValueCacheTest, APutThatNobodyGoesOnWithEndsAfterAMinute) {
  const std::string bytes = ValueBytes(1, 600'000);
  auto stalled = engine_->values().Put({}, {.key = "k", .size = bytes.size()});
  ASSERT_OK((*stalled)->Write(AsBytes(bytes).first(400'000)));
  Pass(absl::Seconds(59));
  ASSERT_OK((*stalled)->Write(AsBytes(bytes).subspan(400'000, 1)));
  Pass(absl::Seconds(59));
  EXPECT_GT(ResidentBlocks(), 0u);
  Pass(absl::Seconds(1));
  EXPECT_EQ(ResidentBlocks(), 0u);
  EXPECT_THAT((*stalled)->Write(AsBytes(bytes).subspan(400'001)),
              StatusIs(absl::StatusCode::kAborted));
  EXPECT_THAT((*stalled)->Finish(), StatusIs(absl::StatusCode::kAborted));
  EXPECT_FALSE(HasValue(*engine_, "k"));
}

}  // namespace
}  // namespace terrace::testing
