// The account of a step and the view of terracectl, against counts of their own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/e2e/cluster.h"

namespace terrace::testing {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr uint64_t kBlock = 64;
constexpr uint64_t kElement = 2;
// 16 rows of 512 bytes.
constexpr uint64_t kGranuleBytes = 8192;
const Shape kShape = {.layers = 3, .query_heads = 8, .kv_heads = 2, .head_dim = 128};

// Bytes of the int8 score index, and of the tail, that one query with r channels reads.
uint64_t IndexBytes(uint64_t visible, uint64_t r) {
  const uint64_t blocks = visible / kBlock;
  return kShape.kv_heads * r * (blocks * (kBlock + 4) + visible % kBlock * kElement);
}

uint64_t RowBytes(uint64_t rows) { return rows * kShape.row_bytes(); }

v1::TierRead ReadOf(const StepReply& step, v1::Tier tier) {
  for (const v1::TierRead& read : step.result.account().reads()) {
    if (read.tier() == tier) return read;
  }
  return {};
}

class AccountingTest : public ::testing::Test {
 protected:
  const Rows rows_{kShape, TestSeed()};
};

TEST_F(AccountingTest, AStepFromMemoryCountsWhatTheFormulaSays) {
  Cluster cluster;
  Client client = cluster.NewClient();
  const v1::SequenceInfo sequence = client.Open(kShape);
  ASSERT_REPLY_OK(client.Append(sequence, rows_, 0, 333));
  for (const uint64_t visible : {1, 64, 65, 320, 333}) {
    for (const uint32_t k : {1, 20, 1000}) {
      SCOPED_TRACE(::testing::Message() << visible << " visible, k " << k);
      const StepReply step = client.Look(sequence, rows_, 1, visible - 1, Sparq(10, k));
      ASSERT_REPLY_OK(step.reply);
      const v1::TierRead host = ReadOf(step, v1::TIER_HOST);
      const v1::StepAccount& account = step.result.account();
      // Rows that the worker holds from the step before are counted in no tier.
      const uint64_t rows = kShape.kv_heads * std::min<uint64_t>(k, visible);
      if (account.mode() == v1::REMOTE_MODE_PARTIAL) EXPECT_EQ(host.rows(), rows);
      EXPECT_LE(host.rows(), rows);
      EXPECT_EQ(host.row_bytes(), RowBytes(host.rows()));
      EXPECT_EQ(host.index_bytes(), IndexBytes(visible, 10));
      EXPECT_EQ(host.sum_bytes(), 0u);
      EXPECT_EQ(host.physical_bytes(), host.row_bytes() + host.index_bytes());
      EXPECT_EQ(ReadOf(step, v1::TIER_DISK).physical_bytes(), 0u);
      EXPECT_EQ(account.alpha_size(), static_cast<int>(kShape.query_heads));
      EXPECT_EQ(account.missed_rows(), 0u);
      EXPECT_GT(account.wire_bytes(), 0u);
      EXPECT_GE(account.stages().total_us(), account.stages().select_us());
    }
  }
}

TEST_F(AccountingTest, ValueSumsAreCountedWhenAMeanIsMixed) {
  Cluster cluster({}, {"--remote-mode", "partial"});
  Client client = cluster.NewClient();
  const v1::SequenceInfo sequence = client.Open(kShape);
  ASSERT_REPLY_OK(client.Append(sequence, rows_, 0, 200));
  v1::Policy policy = Sparq(10, 20);
  policy.mutable_sparq()->set_value_mean(v1::VALUE_MEAN_MEAN);
  const StepReply step = client.Look(sequence, rows_, 1, 199, policy);
  ASSERT_REPLY_OK(step.reply);
  const v1::TierRead host = ReadOf(step, v1::TIER_HOST);
  const uint64_t tail = 200 % kBlock;
  EXPECT_EQ(host.sum_bytes(),
            kShape.kv_heads * kShape.head_dim * (sizeof(float) + tail * kElement));
  EXPECT_EQ(host.row_bytes(), RowBytes(kShape.kv_heads * 20));
  EXPECT_EQ(host.physical_bytes(), host.row_bytes() + host.index_bytes() + host.sum_bytes());
}

TEST_F(AccountingTest, ADiskReadMovesWholeGranulesAndIsCountedOnce) {
  Cluster cluster({}, {"--remote-mode", "partial"});
  Client client = cluster.NewClient();
  v1::SequenceInfo sequence = client.Open(kShape);
  ASSERT_REPLY_OK(client.Append(sequence, rows_, 0, 640));
  ASSERT_REPLY_OK(client.Flush(&sequence));
  cluster.store().Kill();
  cluster.store().Restart();
  StepReply cold;
  ASSERT_TRUE(Await([&] {
    cold = client.Look(sequence, rows_, 2, 639, Sparq(16, 32));
    return cold.reply.code != absl::StatusCode::kUnavailable;
  }));
  ASSERT_REPLY_OK(cold.reply);
  const v1::TierRead disk = ReadOf(cold, v1::TIER_DISK);
  EXPECT_EQ(disk.rows(), kShape.kv_heads * 32);
  EXPECT_EQ(disk.row_bytes(), RowBytes(disk.rows()));
  EXPECT_EQ(disk.index_bytes(), IndexBytes(640, 16));
  EXPECT_EQ(ReadOf(cold, v1::TIER_HOST).row_bytes(), 0u);
  EXPECT_GE(disk.physical_bytes(), disk.row_bytes() + disk.index_bytes() + disk.sum_bytes());
  // Dense reads whole granules of every block and no index: the logical bytes, and not a byte more
  // than the checksums of what was not read before.
  const StepReply dense = client.Look(sequence, rows_, 0, 639, Dense());
  ASSERT_REPLY_OK(dense.reply);
  const v1::TierRead rows = ReadOf(dense, v1::TIER_DISK);
  EXPECT_EQ(rows.rows(), kShape.kv_heads * 640);
  EXPECT_EQ(rows.row_bytes(), RowBytes(rows.rows()));
  const uint64_t granules = rows.row_bytes() / kGranuleBytes;
  EXPECT_GE(rows.physical_bytes(), granules * kGranuleBytes);
  EXPECT_LE(rows.physical_bytes(), granules * (kGranuleBytes + 64));
  // Read once, it is in memory.
  const StepReply warm = client.Look(sequence, rows_, 2, 639, Sparq(16, 32));
  ASSERT_REPLY_OK(warm.reply);
  EXPECT_EQ(ReadOf(warm, v1::TIER_DISK).physical_bytes(), 0u);
  EXPECT_EQ(ReadOf(warm, v1::TIER_HOST).row_bytes(), disk.row_bytes());
  EXPECT_EQ(warm.output(), cold.output());
}

// Blocks and bytes admitted = resident + evicted + deleted, and no tier beyond its budget (I5, I8).
void ExpectConserved(const json& tiers) {
  for (const json& tier : tiers) {
    SCOPED_TRACE(tier.dump());
    for (const std::string unit : {"_blocks", "_bytes"}) {
      EXPECT_EQ(Number(tier["admitted" + unit]), Number(tier["resident" + unit]) +
                                                     Number(tier["evicted" + unit]) +
                                                     Number(tier["deleted" + unit]));
    }
    EXPECT_LE(Number(tier["used_bytes"]), Number(tier["capacity_bytes"]));
    EXPECT_LE(Number(tier["pinned_bytes"]), Number(tier["used_bytes"]));
    EXPECT_EQ(Number(tier["error_count"]), 0u);
    EXPECT_EQ(Number(tier["corrupt_granules"]), 0u);
  }
}

TEST_F(AccountingTest, TiersAreConservedWhileBlocksComeAndGo) {
  Cluster cluster({"--host-bytes", "8MiB"});
  Client client = cluster.NewClient();
  v1::SequenceInfo kept = client.Open(kShape);
  ASSERT_REPLY_OK(client.Append(kept, rows_, 0, 2000));  // 5.9 MiB of rows.
  v1::SequenceInfo fork;
  ASSERT_REPLY_OK(client.Fork(kept, 777, &fork));
  v1::SequenceInfo closed = client.Open(kShape);
  ASSERT_REPLY_OK(client.Append(closed, rows_, 0, 700));
  for (uint32_t layer = 0; layer < kShape.layers; ++layer) {
    ASSERT_REPLY_OK(client.Look(kept, rows_, layer, 1999, Dense()).reply);
  }
  ASSERT_REPLY_OK(client.Close(closed.handle()));
  ASSERT_REPLY_OK(client.Truncate(kept, 1000));
  ASSERT_REPLY_OK(client.Flush(&kept));
  for (Daemon* daemon : {&cluster.store(), &cluster.worker()}) {
    const json tiers = AskAdmin(*daemon, {"tiers"})["tiers"];
    EXPECT_EQ(tiers.size(), 2u);
    ExpectConserved(tiers);
  }
  const json host = TierOf(cluster.worker(), "TIER_HOST");
  EXPECT_GT(Number(host["evicted_blocks"]), 0u);
  EXPECT_GT(Number(host["deleted_blocks"]), 0u);
  EXPECT_GT(Number(TierOf(cluster.worker(), "TIER_DISK")["deleted_blocks"]), 0u);
}

TEST_F(AccountingTest, TerracectlListsAndDescribesWhatTheClientHolds) {
  Cluster cluster;
  Client client = cluster.NewClient("acme");
  v1::SequenceInfo sequence = client.Open(kShape);
  ASSERT_REPLY_OK(client.Append(sequence, rows_, 0, 200));
  ASSERT_REPLY_OK(client.Flush(&sequence));
  Client others = cluster.NewClient();
  const v1::SequenceInfo other = others.Open(kShape);
  for (Daemon* daemon : {&cluster.store(), &cluster.worker()}) {
    EXPECT_EQ(AskAdmin(*daemon, {"sequences"})["sequences"].size(), 2u);
    EXPECT_EQ(AskAdmin(*daemon, {"sequences", "--page-size", "1"})["sequences"].size(), 2u);
    const json mine = AskAdmin(*daemon, {"sequences", "--tenant", "acme"})["sequences"];
    ASSERT_EQ(mine.size(), 1u);
    EXPECT_EQ(mine[0]["handle"], sequence.handle());
    EXPECT_EQ(mine[0]["tenant"], "acme");
    EXPECT_EQ(Number(mine[0]["length"]), 200u);
    EXPECT_EQ(Number(mine[0]["durable_length"]), 200u);
    const json described = AskAdmin(*daemon, {"describe", sequence.handle()});
    ASSERT_EQ(described["layers"].size(), kShape.layers);
    for (const json& layer : described["layers"]) {
      EXPECT_EQ(Number(layer["length"]), 200u);
      EXPECT_EQ(Number(layer["blocks"]), 3u * kShape.kv_heads);
      // The open one is none yet.
      EXPECT_EQ(Number(layer["host_blocks"]), 3u * kShape.kv_heads);
      EXPECT_EQ(Number(layer["disk_blocks"]), 3u * kShape.kv_heads);
      EXPECT_GE(Number(layer["disk_bytes"]), RowBytes(3 * kBlock * kShape.kv_heads));
    }
  }
}

TEST_F(AccountingTest, TerracectlExitsWithWhatAScriptBranchesOn) {
  Cluster cluster;
  const std::string endpoint = cluster.worker().address();
  const Outcome unknown = RunProgram(
      kCtlProgram, {"--endpoint", endpoint, "describe", "s0000-0123456789abcdef0123456789abcdef"});
  EXPECT_EQ(unknown.exit_code, 4);
  EXPECT_THAT(unknown.err, HasSubstr("s0000-0123456789abcdef0123456789abcdef"));
  const Outcome page =
      RunProgram(kCtlProgram, {"--endpoint", endpoint, "sequences", "--page-size", "1001"});
  EXPECT_EQ(page.exit_code, 2);
  EXPECT_EQ(RunProgram(kCtlProgram, {"--endpoint", endpoint, "tiers"}).exit_code, 0);
  cluster.worker().Kill();
  EXPECT_EQ(RunProgram(kCtlProgram, {"--endpoint", endpoint, "tiers"}).exit_code, 3);
}

}  // namespace
}  // namespace terrace::testing
