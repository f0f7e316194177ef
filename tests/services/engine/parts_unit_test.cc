// Small parts of the engine: geometry, handles, error details, records, the pool of threads.
#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "services/engine/embedded_engine.h"
#include "services/engine/error.h"
#include "services/engine/geometry.h"
#include "services/engine/handle.h"
#include "services/engine/sequence_record.h"
#include "services/engine/work_pool.h"
#include "tests/status_matchers.h"

namespace terrace::engine {
namespace {

using ::terrace::testing::IsOk;
using ::terrace::testing::StatusIs;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

Geometry Good() {
  return {.layers = 2, .query_heads = 8, .kv_heads = 2, .head_dim = 64, .scale = 0.5F};
}

TEST(GeometryTest, EachFieldHasItsRange) {
  struct Case {
    const char* field;
    int Geometry::*member;
    int low, high;
  };
  for (const Case& c :
       {Case{"layers", &Geometry::layers, 1, 1024}, Case{"kv_heads", &Geometry::kv_heads, 1, 8},
        Case{"head_dim", &Geometry::head_dim, 8, 512}}) {
    Geometry geometry = Good();
    for (const int value : {c.low, c.high}) {
      geometry.*c.member = value;
      EXPECT_OK(geometry.Validate()) << c.field << " " << value;
    }
    for (const int value : {0, -1, std::numeric_limits<int>::max()}) {
      geometry.*c.member = value;
      EXPECT_THAT(geometry.Validate(), StatusIs(kInvalid, HasSubstr(c.field))) << value;
    }
  }
  Geometry geometry = Good();
  geometry.head_dim = 520;
  EXPECT_THAT(geometry.Validate(), StatusIs(kInvalid, HasSubstr("head_dim")));
  geometry.head_dim = 12;
  EXPECT_THAT(geometry.Validate(), StatusIs(kInvalid, HasSubstr("multiple of 8")));
  geometry = Good();
  geometry.query_heads = 7;
  EXPECT_THAT(geometry.Validate(), StatusIs(kInvalid, HasSubstr("query_heads")));
  for (const float scale :
       {-1.0F, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    geometry = Good();
    geometry.scale = scale;
    EXPECT_THAT(geometry.Validate(), StatusIs(kInvalid, HasSubstr("softmax_scale")));
  }
}

TEST(GeometryTest, AScaleOfZeroMeansTheUsualOne) {
  Geometry geometry = Good();
  geometry.Normalize();
  EXPECT_EQ(geometry.scale, 0.5F);
  geometry.scale = 0;
  geometry.Normalize();
  EXPECT_EQ(geometry.scale, 0.125F);
}

TEST(HandleTest, NamesItsShardAndNothingElseDoes) {
  std::set<std::string> seen;
  for (const int shard : {0, 1, 255, 65535}) {
    const std::string handle = NewHandle(static_cast<uint16_t>(shard));
    EXPECT_EQ(ShardOf(handle), static_cast<uint16_t>(shard));
    EXPECT_TRUE(seen.insert(handle).second);
    for (const std::string& wrong :
         {handle.substr(1), handle + "0", "x" + handle.substr(1), handle.substr(0, 37) + "g",
          handle.substr(0, 5) + "_" + handle.substr(6), "s+001" + handle.substr(5)}) {
      EXPECT_EQ(ShardOf(wrong), std::nullopt) << wrong;
    }
  }
  EXPECT_EQ(ShardOf(""), std::nullopt);
}

TEST(ErrorTest, DetailsStayWithTheStatus) {
  const ErrorDetail detail = {.reason = "WHY",
                              .metadata = {{"key", "value \"quoted\""}, {"empty", ""}},
                              .retry_delay = absl::Milliseconds(250)};
  const absl::Status status = WithDetail(absl::UnavailableError("gone"), detail);
  EXPECT_EQ(status.message(), "gone");
  const std::optional<ErrorDetail> back = DetailOf(status);
  ASSERT_TRUE(back.has_value());
  EXPECT_EQ(back->reason, detail.reason);
  EXPECT_EQ(back->metadata, detail.metadata);
  EXPECT_EQ(back->retry_delay, detail.retry_delay);
  ErrorDetail newer = detail;
  newer.reason = "NEW";
  EXPECT_EQ(DetailOf(WithDetail(status, newer))->reason, "NEW");
  EXPECT_FALSE(DetailOf(absl::UnavailableError("gone")).has_value());
}

TEST(ErrorTest, WhatAClientBranchesOnIsThere) {
  EXPECT_EQ(DetailOf(PositionGap(3, 9, 7))->metadata.at("expected_position"), "7");
  EXPECT_EQ(DetailOf(PositionGap(3, 9, 7))->metadata.at("layer"), "3");
  EXPECT_EQ(DetailOf(EpochStale(1, 2))->metadata.at("expected_epoch"), "2");
  EXPECT_EQ(DetailOf(FingerprintMismatch("a", "b"))->metadata.at("expected_fingerprint"), "b");
  EXPECT_EQ(DetailOf(ShardUnavailable("host:1", "x"))->metadata.at("endpoint"), "host:1");
  for (const absl::Status& status :
       {NoRoom("x"), LimitExceeded("x"), Draining(), ShardUnavailable("a", "b")}) {
    EXPECT_TRUE(DetailOf(status)->retry_delay.has_value()) << status;
  }
}

TEST(ErrorTest, BytesThatAreNoTextDoNotBreakIt) {
  const absl::Status status = FingerprintMismatch("a", "\xff\xfe");
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ(DetailOf(status)->reason, "FINGERPRINT_MISMATCH");
}

TEST(SequenceRecordTest, ComesBackAsItWas) {
  SequenceRecord record = {.tenant = "t\"x",
                           .spec = {.geometry = Good(),
                                    .model_fingerprint = "model",
                                    .adapter_id = "lora",
                                    .index_format = attention::IndexFormat::kExact},
                           .writer_epoch = 1ull << 63,
                           .created = absl::FromUnixMicros(1234567890123)};
  const absl::StatusOr<SequenceRecord> back = DecodeRecord(EncodeRecord(record));
  ASSERT_OK(back);
  EXPECT_EQ(back->tenant, record.tenant);
  EXPECT_EQ(back->spec.geometry, record.spec.geometry);
  EXPECT_EQ(back->spec.model_fingerprint, "model");
  EXPECT_EQ(back->spec.adapter_id, "lora");
  EXPECT_EQ(back->spec.index_format, attention::IndexFormat::kExact);
  EXPECT_EQ(back->writer_epoch, record.writer_epoch);
  EXPECT_EQ(back->created, record.created);
}

TEST(SequenceRecordTest, WhatIsNotARecordIsALoss) {
  SequenceRecord record;
  record.tenant = "t";
  record.spec.geometry = Good();
  const std::string good = EncodeRecord(record);
  for (const std::string& text :
       {std::string(), std::string("{}"), std::string("[1]"), std::string("null"),
        good.substr(0, good.size() - 1), std::string("\xff")}) {
    EXPECT_THAT(DecodeRecord(text), StatusIs(absl::StatusCode::kDataLoss)) << text;
  }
  std::string newer = good;
  newer.replace(newer.find("\"version\":1"), 11, "\"version\":2");
  EXPECT_THAT(DecodeRecord(newer), StatusIs(absl::StatusCode::kFailedPrecondition));
  std::string broken = good;
  broken.replace(broken.find("\"layers\":2"), 10, "\"layers\":0");
  EXPECT_THAT(DecodeRecord(broken), StatusIs(absl::StatusCode::kDataLoss));
  std::string typed = good;
  typed.replace(typed.find("\"layers\":2"), 10, "\"layers\":\"x\"");
  EXPECT_THAT(DecodeRecord(typed), StatusIs(absl::StatusCode::kDataLoss));
}

TEST(WorkPoolTest, EveryItemRunsOnce) {
  for (const int threads : {1, 2, 5}) {
    WorkPool pool(threads);
    for (const int count : {0, 1, 2, 1000}) {
      std::vector<std::atomic<int>> calls(count);
      pool.ParallelFor(count, [&](int i) { ++calls[i]; });
      for (const std::atomic<int>& n : calls) EXPECT_EQ(n, 1);
    }
  }
}

TEST(WorkPoolTest, NestedAndConcurrentLoopsEnd) {
  WorkPool pool(3);
  std::atomic<int> calls = 0;
  std::vector<std::thread> callers;
  for (int t = 0; t < 4; ++t) {
    callers.emplace_back([&] {
      for (int round = 0; round < 50; ++round) {
        pool.ParallelFor(4, [&](int) { pool.ParallelFor(5, [&](int) { ++calls; }); });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(calls, 4 * 50 * 4 * 5);
}

TEST(EmbeddedOptionsTest, SizesAreCheckedByName) {
  struct Case {
    const char* field;
    int block, index, threads;
  };
  for (const Case& c :
       {Case{"", 16, 16, 0}, Case{"", 1024, 65536, 1024}, Case{"", 64, 4096, 1},
        Case{"block-tokens", 8, 1024, 0}, Case{"block-tokens", 48, 1024, 0},
        Case{"block-tokens", 2048, 2048, 0}, Case{"block-tokens", 0, 1024, 0},
        Case{"block-tokens", -64, 1024, 0}, Case{"index-tokens", 64, 32, 0},
        Case{"index-tokens", 64, 8192, 0}, Case{"index-tokens", 64, 1000, 0},
        Case{"compute-threads", 64, 1024, -1}, Case{"compute-threads", 64, 1024, 1025}}) {
    EmbeddedOptions options;
    options.block_tokens = c.block;
    options.index_tokens = c.index;
    options.compute_threads = c.threads;
    if (std::string(c.field).empty()) {
      EXPECT_OK(options.Validate());
    } else {
      EXPECT_THAT(options.Validate(), StatusIs(kInvalid, HasSubstr(c.field)));
    }
  }
}

}  // namespace
}  // namespace terrace::engine
