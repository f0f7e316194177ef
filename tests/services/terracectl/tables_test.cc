// Golden texts: what an answer looks like to the letter.
#include "services/terracectl/tables.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>

namespace terrace::terracectl {
namespace {

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();
constexpr uint64_t kMi = uint64_t{1} << 20;
constexpr uint64_t kGi = uint64_t{1} << 30;
// 2023-11-14T22:13:20Z.
constexpr int64_t kNow = 1700000000;

View Plain() { return {.now = absl::FromUnixSeconds(kNow)}; }
View WithBars(size_t width) {
  return {.now = absl::FromUnixSeconds(kNow), .bars = true, .width = width};
}

v1::TierInfo& AddTier(v1::ListTiersResponse& answer, uint32_t shard, v1::Tier tier, uint64_t used,
                      uint64_t capacity) {
  v1::TierInfo& info = *answer.add_tiers();
  info.set_shard(shard);
  info.set_tier(tier);
  info.set_used_bytes(used);
  info.set_capacity_bytes(capacity);
  return info;
}

v1::SequenceSummary& AddSequence(v1::ListSequencesResponse& answer, const std::string& handle,
                                 uint64_t length) {
  v1::SequenceSummary& sequence = *answer.add_sequences();
  sequence.set_handle(handle);
  sequence.set_tenant("default");
  sequence.set_model_fingerprint("tiny-llm");
  sequence.set_length(length);
  return sequence;
}

// A line break first, so that golden texts start on a line of their own.
std::string Golden(const std::string& text) { return "\n" + text; }

v1::ListTiersResponse ThreeShards() {
  v1::ListTiersResponse answer;
  for (uint32_t shard = 0; shard < 3; ++shard) {
    v1::TierInfo& host = AddTier(answer, shard, v1::TIER_HOST, (shard + 1) * kGi, 4 * kGi);
    host.set_pinned_bytes(12 * kMi);
    host.set_index_bytes(300 * kMi);
    host.set_resident_blocks(65536 * (shard + 1));
    host.set_admitted_blocks(1500000);
    host.set_evicted_blocks(1300000);
    host.set_deleted_blocks(134464);
    host.set_read_bytes(81 * kGi);
    host.set_written_bytes(46 * kGi);
    v1::TierInfo& disk = AddTier(answer, shard, v1::TIER_DISK, 700 * kGi * shard, 2048 * kGi);
    disk.set_resident_blocks(9);
  }
  v1::TierInfo& bad = *answer.mutable_tiers(5);
  bad.set_error_count(2);
  bad.set_corrupt_granules(1);
  bad.set_quarantined_cells(7);
  bad.set_last_error("read failed:\ninput/output error");
  return answer;
}

TEST(TiersTable, EmptyAnswerSaysSo) {
  EXPECT_EQ(TiersTable(v1::ListTiersResponse(), Plain()), "No tiers.\n");
}

TEST(TiersTable, EmptyStoreHasAnEmptyBar) {
  v1::ListTiersResponse answer;
  AddTier(answer, 0, v1::TIER_HOST, 0, kGi);
  EXPECT_EQ(Golden(TiersTable(answer, WithBars(0))), R"(
SHARD  TIER  USED  CAPACITY  USE%                PINNED  INDEX  BLOCKS
    0  host   0 B   1.0 GiB  0.0%  [..........]     0 B    0 B       0

SHARD  TIER  ADMITTED  EVICTED  DELETED  READ  WRITTEN  ERRORS  CORRUPT  QUARANTINED
    0  host         0        0        0   0 B      0 B       0        0            0

1 shard, host 0 B of 1.0 GiB used (0.0%), 0 errors, 0 corrupt granules
)");
}

TEST(TiersTable, SeveralShardsShareColumnsAndASumByTier) {
  EXPECT_EQ(Golden(TiersTable(ThreeShards(), WithBars(0))),
            "\n"
            "SHARD  TIER       USED  CAPACITY   USE%                  PINNED      INDEX   BLOCKS\n"
            "    0  host    1.0 GiB   4.0 GiB  25.0%  [##........]  12.0 MiB  300.0 MiB   65,536\n"
            "    0  disk        0 B   2.0 TiB   0.0%  [..........]       0 B        0 B        9\n"
            "    1  host    2.0 GiB   4.0 GiB  50.0%  [#####.....]  12.0 MiB  300.0 MiB  131,072\n"
            "    1  disk  700.0 GiB   2.0 TiB  34.2%  [###.......]       0 B        0 B        9\n"
            "    2  host    3.0 GiB   4.0 GiB  75.0%  [#######...]  12.0 MiB  300.0 MiB  196,608\n"
            "    2  disk    1.4 TiB   2.0 TiB  68.4%  [######....]       0 B        0 B        9\n"
            "\n"
            "SHARD  TIER   ADMITTED    EVICTED  DELETED      READ   WRITTEN  ERRORS  CORRUPT  "
            "QUARANTINED\n"
            "    0  host  1,500,000  1,300,000  134,464  81.0 GiB  46.0 GiB       0        0       "
            "     0\n"
            "    0  disk          0          0        0       0 B       0 B       0        0       "
            "     0\n"
            "    1  host  1,500,000  1,300,000  134,464  81.0 GiB  46.0 GiB       0        0       "
            "     0\n"
            "    1  disk          0          0        0       0 B       0 B       0        0       "
            "     0\n"
            "    2  host  1,500,000  1,300,000  134,464  81.0 GiB  46.0 GiB       0        0       "
            "     0\n"
            "    2  disk          0          0        0       0 B       0 B       2        1       "
            "     7\n"
            "\n"
            "Last error of disk on shard 2: read failed:\\x0ainput/output error\n"
            "\n"
            "3 shards, host 6.0 GiB of 12.0 GiB used (50.0%), disk 2.1 TiB of 6.0 TiB used "
            "(34.2%), 2 errors, 1 corrupt granule\n");
}

TEST(TiersTable, TiersThatReadAheadSayWhatItWasGoodFor) {
  v1::ListTiersResponse answer;
  v1::TierInfo& host = AddTier(answer, 0, v1::TIER_HOST, 0, kGi);
  AddTier(answer, 0, v1::TIER_DISK, 0, kGi);
  host.set_read_ahead_blocks(1234);
  host.set_read_ahead_useful_blocks(1000);
  host.set_read_ahead_late_blocks(200);
  host.set_read_ahead_wasted_blocks(30);
  EXPECT_THAT(TiersTable(answer, Plain()),
              ::testing::HasSubstr("\n\nSHARD  TIER  READ AHEAD  USEFUL  LATE  WASTED\n"
                                   "    0  host       1,234   1,000   200      30\n\n"));
}

TEST(TiersTable, BarsGiveWayOnANarrowTerminal) {
  const v1::ListTiersResponse answer = ThreeShards();
  const std::string with = TiersTable(answer, WithBars(0));
  const size_t line = with.substr(with.find('\n') + 1).find('\n');
  EXPECT_EQ(TiersTable(answer, WithBars(line)), with);
  EXPECT_EQ(TiersTable(answer, WithBars(line - 1)), TiersTable(answer, Plain()));
  EXPECT_NE(TiersTable(answer, Plain()), with);
}

TEST(TiersTable, HugeNumbersNeitherWrapNorOverflow) {
  v1::ListTiersResponse answer;
  for (uint32_t shard : {0u, std::numeric_limits<uint32_t>::max()}) {
    v1::TierInfo& tier = AddTier(answer, shard, v1::TIER_DISK, kMax - 1, kMax);
    tier.set_pinned_bytes(kMax);
    tier.set_resident_blocks(kMax);
    tier.set_admitted_blocks(kMax);
    tier.set_evicted_blocks(kMax);
    tier.set_deleted_blocks(kMax);
    tier.set_index_bytes(kMax);
    tier.set_read_bytes(kMax);
    tier.set_written_bytes(kMax);
    tier.set_error_count(kMax);
    tier.set_corrupt_granules(kMax);
    tier.set_quarantined_cells(kMax);
    tier.set_read_ahead_blocks(kMax);
    tier.set_read_ahead_useful_blocks(kMax);
    tier.set_read_ahead_late_blocks(kMax);
    tier.set_read_ahead_wasted_blocks(kMax);
  }
  EXPECT_EQ(
      Golden(TiersTable(answer, WithBars(0))),
      "\n"
      "     SHARD  TIER      USED  CAPACITY    USE%                  PINNED     INDEX              "
      "        BLOCKS\n"
      "         0  disk  16.0 EiB  16.0 EiB  >99.9%  [#########.]  16.0 EiB  16.0 EiB  "
      "18,446,744,073,709,551,615\n"
      "4294967295  disk  16.0 EiB  16.0 EiB  >99.9%  [#########.]  16.0 EiB  16.0 EiB  "
      "18,446,744,073,709,551,615\n"
      "\n"
      "     SHARD  TIER                    ADMITTED                     EVICTED                    "
      " DELETED      READ   WRITTEN                      ERRORS                     CORRUPT        "
      " "
      "        QUARANTINED\n"
      "         0  disk  18,446,744,073,709,551,615  18,446,744,073,709,551,615  "
      "18,446,744,073,709,551,615  16.0 EiB  16.0 EiB  18,446,744,073,709,551,615  "
      "18,446,744,073,709,551,615  18,446,744,073,709,551,615\n"
      "4294967295  disk  18,446,744,073,709,551,615  18,446,744,073,709,551,615  "
      "18,446,744,073,709,551,615  16.0 EiB  16.0 EiB  18,446,744,073,709,551,615  "
      "18,446,744,073,709,551,615  18,446,744,073,709,551,615\n"
      "\n"
      "     SHARD  TIER                  READ AHEAD                      USEFUL                    "
      "    LATE                      WASTED\n"
      "         0  disk  18,446,744,073,709,551,615  18,446,744,073,709,551,615  "
      "18,446,744,073,709,551,615  18,446,744,073,709,551,615\n"
      "4294967295  disk  18,446,744,073,709,551,615  18,446,744,073,709,551,615  "
      "18,446,744,073,709,551,615  18,446,744,073,709,551,615\n"
      "\n"
      "2 shards, disk 16.0 EiB of 16.0 EiB used (100.0%), 18,446,744,073,709,551,615 errors, "
      "18,446,744,073,709,551,615 corrupt granules\n");
}

TEST(TiersTable, ATierUnknownToThisProgramIsANumber) {
  v1::ListTiersResponse answer;
  AddTier(answer, 0, static_cast<v1::Tier>(17), 1, 2);
  EXPECT_THAT(TiersTable(answer, Plain()), ::testing::HasSubstr("    0  #17    1 B"));
}

TEST(SequencesTable, EmptyAnswerSaysSo) {
  EXPECT_EQ(SequencesTable(v1::ListSequencesResponse(), Plain()), "No sequences.\n");
}

TEST(SequencesTable, OneSequenceWithoutTimesOrNames) {
  v1::ListSequencesResponse answer;
  v1::SequenceSummary& sequence = AddSequence(answer, "s0000-00", 1);
  sequence.clear_tenant();
  sequence.clear_model_fingerprint();
  EXPECT_EQ(Golden(SequencesTable(answer, Plain())), R"(
HANDLE    TENANT  MODEL  TOKENS  DURABLE  STATE   HOST  DISK  LAST USED
s0000-00  -       -           1        0  active   0 B   0 B          -

1 sequence, 1 token, 0 B host, 0 B disk
)");
}

TEST(SequencesTable, ManySequencesKeepHandlesWholeAndElideModels) {
  v1::ListSequencesResponse answer;
  v1::SequenceSummary& first =
      AddSequence(answer, "s0000-0123456789abcdef0123456789abcdef", 131072);
  first.set_durable_length(131008);
  first.set_host_bytes(3 * kGi / 2);
  first.set_disk_bytes(17 * kGi);
  first.mutable_last_used()->set_seconds(kNow - 3);
  v1::SequenceSummary& second = AddSequence(answer, "s00ff-fedcba9876543210fedcba9876543210", 0);
  second.set_tenant("a-tenant-with-a-long-name\x1b[31m");
  second.set_model_fingerprint("sha256:0123456789abcdef0123456789abcdef");
  second.set_parked(true);
  second.mutable_last_used()->set_seconds(kNow - 90000);
  v1::SequenceSummary& third = AddSequence(answer, "s1", kMax);
  third.set_durable_length(kMax);
  third.set_host_bytes(kMax);
  third.mutable_last_used()->set_seconds(kNow + 5);
  EXPECT_EQ(
      Golden(SequencesTable(answer, Plain())),
      "\n"
      "HANDLE                                  TENANT                             MODEL      "
      "                                   TOKENS                     DURABLE  STATE       HOST "
      "     DISK  LAST USED\n"
      "s0000-0123456789abcdef0123456789abcdef  default                            tiny-llm   "
      "                                  131,072                     131,008  active   1.5 GiB"
      "  17.0 GiB     3s ago\n"
      "s00ff-fedcba9876543210fedcba9876543210  a-tenant-with-a-long-name\\x1b[31m  "
      "sha256:0123...6789abcdef                           0                           0  "
      "parked       0 B       0 B     1d ago\n"
      "s1                                      default                            tiny-llm   "
      "               18,446,744,073,709,551,615  18,446,744,073,709,551,615  active  16.0 EiB "
      "      0 B      in 5s\n"
      "\n"
      "3 sequences, 18,446,744,073,709,551,615 tokens, 16.0 EiB host, 17.0 GiB disk\n");
}

TEST(SequencesTable, ProblemsAreSaidBelow) {
  v1::ListSequencesResponse answer;
  AddSequence(answer, "s0000-00", 5);
  v1::SequenceSummary& lost = AddSequence(answer, "s0000-01", 0);
  lost.set_problem("DATA_LOSS: its manifest names no segment\x1b[31m");
  EXPECT_EQ(Golden(SequencesTable(answer, Plain())), R"(
HANDLE    TENANT   MODEL     TOKENS  DURABLE  STATE    HOST  DISK  LAST USED
s0000-00  default  tiny-llm       5        0  active    0 B   0 B          -
s0000-01  default  tiny-llm       0        0  problem   0 B   0 B          -

2 sequences, 5 tokens, 0 B host, 0 B disk
s0000-01: DATA_LOSS: its manifest names no segment\x1b[31m
)");
}

TEST(SequencesTable, AListThatWasCutSaysSo) {
  v1::ListSequencesResponse answer;
  AddSequence(answer, "s1", 5);
  answer.set_next_page_token("x");
  EXPECT_THAT(SequencesTable(answer, Plain()),
              ::testing::HasSubstr("; there are more (--limit)\n"));
}

TEST(SequenceTable, EmptySequence) {
  v1::DescribeSequenceResponse answer;
  answer.mutable_summary()->set_handle("s0000-00");
  EXPECT_EQ(Golden(SequenceTable(answer, Plain())), R"(
Handle:     s0000-00
Tenant:     -
Model:      -
Adapter:    -
Geometry:   -
Index:      -
Block:      -
Length:     0 tokens, 0 durable
Epoch:      -
State:      active
Host:       0 B
Disk:       0 B
Created:    -
Last used:  -

0 layers, 0 blocks: - in host memory, - on disk
)");
}

TEST(SequenceTable, LayersSegmentsAndFacts) {
  v1::DescribeSequenceResponse answer;
  v1::SequenceSummary& summary = *answer.mutable_summary();
  summary.set_handle("s0000-0123456789abcdef0123456789abcdef");
  summary.set_tenant("acme");
  summary.set_model_fingerprint("sha256:0123456789abcdef0123456789abcdef");
  summary.set_length(131072);
  summary.set_durable_length(131008);
  summary.set_host_bytes(3 * kGi / 2);
  summary.set_disk_bytes(17 * kGi);
  summary.set_parked(true);
  summary.mutable_created()->set_seconds(kNow - 7200);
  summary.mutable_last_used()->set_seconds(kNow - 61);
  v1::SequenceInfo& info = *answer.mutable_sequence();
  info.set_writer_epoch(3);
  info.set_block_tokens(64);
  v1::Geometry& geometry = *info.mutable_spec()->mutable_geometry();
  geometry.set_layers(2);
  geometry.set_query_heads(32);
  geometry.set_kv_heads(8);
  geometry.set_head_dim(128);
  geometry.set_storage_dtype(v1::DTYPE_BFLOAT16);
  geometry.set_softmax_scale(0.125f);
  for (uint32_t i = 0; i < 2; ++i) {
    v1::LayerResidency& layer = *answer.add_layers();
    layer.set_layer(i);
    layer.set_length(131072);
    layer.set_blocks(16384);
    layer.set_host_blocks(i == 0 ? 16384 : 2048);
    layer.set_disk_blocks(16383);
    layer.set_host_row_bytes(600 * kMi);
    layer.set_host_index_bytes(144 * kMi);
    layer.set_disk_bytes(8 * kGi);
  }
  for (uint64_t segment : {uint64_t{7}, uint64_t{4294967296}}) {
    v1::SegmentRange& range = *answer.add_segments();
    range.set_segment(segment);
    range.set_first_block(segment == 7 ? 0 : 12);
    range.set_end_block(segment == 7 ? 12 : 0);
  }
  EXPECT_EQ(Golden(SequenceTable(answer, Plain())), R"(
Handle:     s0000-0123456789abcdef0123456789abcdef
Tenant:     acme
Model:      sha256:0123456789abcdef0123456789abcdef
Adapter:    -
Geometry:   2 layers, 32 query heads, 8 KV heads, head_dim 128, bfloat16, softmax scale 0.125
Index:      int8
Block:      64 tokens
Length:     131,072 tokens, 131,008 durable
Epoch:      3
State:      parked
Host:       1.5 GiB
Disk:       17.0 GiB
Created:    2023-11-14T20:13:20Z (2h ago)
Last used:  2023-11-14T22:12:19Z (1m ago)

LAYER   TOKENS  BLOCKS  IN HOST  ON DISK  HOST ROWS  HOST INDEX  DISK BYTES
    0  131,072  16,384   16,384   16,383  600.0 MiB   144.0 MiB     8.0 GiB
    1  131,072  16,384    2,048   16,383  600.0 MiB   144.0 MiB     8.0 GiB

   SEGMENT  BLOCKS
         7  [0, 12)
4294967296  [12, ...) being written

2 layers, 32,768 blocks: 56.3% in host memory, >99.9% on disk
)");
}

TEST(SequenceTable, IndexFormatIsNamedAndUnspecifiedIsInt8) {
  v1::DescribeSequenceResponse answer;
  v1::SequenceSpec& spec = *answer.mutable_sequence()->mutable_spec();
  EXPECT_THAT(SequenceTable(answer, Plain()), ::testing::HasSubstr("\nIndex:      int8\n"));
  spec.set_index_format(v1::INDEX_FORMAT_EXACT);
  EXPECT_THAT(SequenceTable(answer, Plain()), ::testing::HasSubstr("\nIndex:      exact\n"));
}

TEST(TablesTest, ListsEndWithTheShardsThatDoNotAnswer) {
  v1::ListTiersResponse tiers = ThreeShards();
  const std::string whole = TiersTable(tiers, Plain());
  tiers.add_unreachable()->set_message("kv-store at a does not answer");
  tiers.add_unreachable()->set_message("kv-store at \x1b does not answer");
  EXPECT_EQ(TiersTable(tiers, Plain()), whole +
                                            "Missing: kv-store at a does not answer\n"
                                            "Missing: kv-store at \\x1b does not answer\n");
  v1::ListSequencesResponse none;
  none.add_unreachable()->set_message("why");
  EXPECT_EQ(SequencesTable(none, Plain()), "No sequences.\nMissing: why\n");
  AddSequence(none, "h", 3);
  const std::string text = SequencesTable(none, Plain());
  EXPECT_EQ(text.substr(text.rfind('\n', text.size() - 2) + 1), "Missing: why\n");
}

}  // namespace
}  // namespace terrace::terracectl
