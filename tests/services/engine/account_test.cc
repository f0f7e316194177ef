// The account of a step, against a count of its own: rows, index bytes and sums by tier.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/services/engine/counting_store.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using attention::Dtype;
using attention::IndexFormat;
using engine::SequenceInfo;
using engine::StepResult;
using engine::TierRead;

constexpr uint64_t kSeed = 1;
constexpr int kBlock = 64;

struct Case {
  const char* name;
  Dtype storage;
  IndexFormat format;
};

class AccountTest : public ::testing::TestWithParam<Case> {
 protected:
  AccountTest() {
    geometry_ = SmallGeometry();
    geometry_.storage = GetParam().storage;
    element_ = GetParam().storage == Dtype::kFloat32 ? 4 : 2;
  }

  // One query of one layer that sees `visible` rows.
  uint64_t IndexBytes(int64_t visible, int r) const {
    const bool int8 = GetParam().format == IndexFormat::kInt8;
    const uint64_t sealed = visible / kBlock * kBlock;
    const uint64_t codes = sealed * (int8 ? 1 : element_);
    const uint64_t params = int8 ? visible / kBlock * 4 : 0;
    const uint64_t tail = (visible - sealed) * element_;
    return geometry_.kv_heads * static_cast<uint64_t>(r) * (codes + params + tail);
  }
  uint64_t RowBytes(uint64_t rows) const { return rows * 2 * geometry_.head_dim * element_; }

  engine::Geometry geometry_;
  uint64_t element_ = 0;
};

TEST_P(AccountTest, AStepFromMemoryCountsWhatTheFormulaSays) {
  const auto engine = OpenEngine(MemoryOptions());
  const SequenceInfo info = *engine->Create({}, Spec(geometry_, GetParam().format));
  ASSERT_OK(AppendSeed(*engine, info, kSeed, 0, 200));
  for (const int64_t visible : {1, 64, 65, 128, 200}) {
    for (const int k : {1, 10, 1000}) {
      SCOPED_TRACE(::testing::Message() << visible << " rows, k " << k);
      const StepResult result =
          RunOne(*engine, 0, ReadStep(info, kSeed, 0, visible - 1, 1, Sparq(5, k)));
      ASSERT_OK(result.status);
      const TierRead& host = result.account.host;
      const uint64_t rows = geometry_.kv_heads * std::min<uint64_t>(k, visible);
      EXPECT_EQ(host.rows, rows);
      EXPECT_EQ(host.row_bytes, RowBytes(rows));
      EXPECT_EQ(host.index_bytes, IndexBytes(visible, 5));
      EXPECT_EQ(host.sum_bytes, 0u);
      EXPECT_EQ(host.physical_bytes, host.row_bytes + host.index_bytes);
      EXPECT_EQ(result.account.disk.physical_bytes, 0u);
      EXPECT_EQ(result.account.missed_rows, 0u);
      EXPECT_EQ(result.account.missed_mass, 0.0F);
      EXPECT_EQ(result.account.wire_bytes, 0u);
    }
  }
}

TEST_P(AccountTest, QueriesOfOneStepAddUp) {
  const auto engine = OpenEngine(MemoryOptions());
  const SequenceInfo info = *engine->Create({}, Spec(geometry_, GetParam().format));
  ASSERT_OK(AppendSeed(*engine, info, kSeed, 0, 130));
  const StepResult result = RunOne(*engine, 0, ReadStep(info, kSeed, 0, 126, 3, Sparq(5, 10)));
  ASSERT_OK(result.status);
  EXPECT_EQ(result.account.host.index_bytes,
            IndexBytes(127, 5) + IndexBytes(128, 5) + IndexBytes(129, 5));
  EXPECT_EQ(result.account.host.rows, 3u * geometry_.kv_heads * 10);
}

TEST_P(AccountTest, DenseReadsEveryRowOnceAndNoIndex) {
  const auto engine = OpenEngine(MemoryOptions());
  const SequenceInfo info = *engine->Create({}, Spec(geometry_, GetParam().format));
  ASSERT_OK(AppendSeed(*engine, info, kSeed, 0, 200));
  const StepResult result =
      RunOne(*engine, 1, ReadStep(info, kSeed, 1, 190, 10, attention::DensePolicy()));
  ASSERT_OK(result.status);
  EXPECT_EQ(result.account.host.rows, 200u * geometry_.kv_heads);
  EXPECT_EQ(result.account.host.row_bytes, RowBytes(200u * geometry_.kv_heads));
  EXPECT_EQ(result.account.host.index_bytes, 0u);
  EXPECT_EQ(result.account.alpha, std::vector<float>(10 * geometry_.query_heads, 1.0F));
}

TEST_P(AccountTest, TheValueMeanCountsItsSums) {
  const auto engine = OpenEngine(MemoryOptions());
  const SequenceInfo info = *engine->Create({}, Spec(geometry_, GetParam().format));
  ASSERT_OK(AppendSeed(*engine, info, kSeed, 0, 200));
  const StepResult off = RunOne(*engine, 0, ReadStep(info, kSeed, 0, 199, 1, Sparq(5, 10)));
  const StepResult mean =
      RunOne(*engine, 0,
             ReadStep(info, kSeed, 0, 199, 1, Sparq(5, 10, 1, 0, attention::ValueMean::kMean)));
  ASSERT_OK(off.status);
  ASSERT_OK(mean.status);
  // The running sum in fp32, and V of the rows after the last sealed block.
  EXPECT_EQ(mean.account.host.sum_bytes,
            geometry_.kv_heads * uint64_t{16} * (sizeof(float) + 200 % kBlock * element_));
  EXPECT_EQ(mean.account.host.row_bytes, off.account.host.row_bytes);
  EXPECT_EQ(mean.account.host.index_bytes, off.account.host.index_bytes);
  EXPECT_EQ(mean.account.host.physical_bytes,
            off.account.host.physical_bytes + mean.account.host.sum_bytes);
}

// After a restart everything comes from disk, then from memory; the logical bytes are the same.
TEST_P(AccountTest, BytesAreCountedWhereTheRowsLay) {
  const TempFolder folder;
  engine::EmbeddedOptions options = DiskOptions(folder);
  auto engine = OpenEngine(options);
  const SequenceInfo info = *engine->Create({}, Spec(geometry_, GetParam().format));
  ASSERT_OK(AppendSeed(*engine, info, kSeed, 0, 192));
  ASSERT_OK(engine->Flush({}, info.handle));
  engine.reset();
  engine = OpenEngine(options);
  const Step step = ReadStep(info, kSeed, 0, 191, 1, Sparq(5, 10));
  const StepResult cold = RunOne(*engine, 0, step);
  const StepResult warm = RunOne(*engine, 0, step);
  ASSERT_OK(cold.status);
  ASSERT_OK(warm.status);
  EXPECT_EQ(cold.account.disk.rows, 10u * geometry_.kv_heads);
  EXPECT_EQ(cold.account.host.rows, 0u);
  EXPECT_EQ(cold.account.disk.row_bytes, RowBytes(10u * geometry_.kv_heads));
  EXPECT_EQ(cold.account.disk.index_bytes, IndexBytes(192, 5));
  EXPECT_EQ(cold.account.host.index_bytes, 0u);
  EXPECT_EQ(warm.account.host.row_bytes, cold.account.disk.row_bytes);
  EXPECT_EQ(warm.account.host.index_bytes, cold.account.disk.index_bytes);
  EXPECT_EQ(warm.account.disk.rows, 0u);
  EXPECT_EQ(warm.account.disk.physical_bytes, 0u);
  EXPECT_EQ(cold.output, warm.output);
}

// Against a count of the cells that were pinned: logical bytes are those of the rows selected and
// of the channels of the pieces pinned, physical ones whole cells with their checksums.
TEST_P(AccountTest, ATierThatCountsAgreesToTheByte) {
  const TempFolder folder;
  engine::EmbeddedOptions options = DiskOptions(folder);
  options.prefetch = false;
  constexpr int64_t kLength = 330;
  SequenceInfo info;
  {
    const auto engine = OpenEngine(options);
    info = *engine->Create({}, Spec(geometry_, GetParam().format));
    ASSERT_OK(AppendSeed(*engine, info, kSeed, 0, kLength));
    ASSERT_OK(engine->Flush({}, info.handle));
  }
  auto store = kvstore::BlockStore::Open(options.store);
  ASSERT_OK(store);
  auto counting = std::make_unique<CountingStore>(*std::move(store));
  CountingStore& count = *counting;
  const auto engine = engine::EmbeddedEngine::OpenOn(options, std::move(counting));
  const bool int8 = GetParam().format == IndexFormat::kInt8;
  const uint64_t channel_bytes = kBlock * (int8 ? 1 : element_) + (int8 ? 4 : 0);
  uint64_t cells_from_disk = 0;
  struct Read {
    int r, k, window;
  };
  for (const int64_t visible : {63, 64, 200, 330}) {
    for (const Read& read : {Read{3, 1, 1}, {5, 10, 4}, {16, 1000, 1}}) {
      SCOPED_TRACE(::testing::Message() << visible << " rows, r " << read.r << ", k " << read.k);
      count.Reset();
      const StepResult result = RunOne(
          *engine, 0, ReadStep(info, kSeed, 0, visible - 1, 1, Sparq(read.r, read.k, read.window)));
      ASSERT_OK(result.status);
      uint64_t rows = 0;
      for (const auto& selection : result.selections) rows += selection.positions.size();
      TierRead sum = result.account.host;
      sum += result.account.disk;
      const uint64_t tail_bytes = geometry_.kv_heads * uint64_t(visible % kBlock) * element_;
      EXPECT_EQ(sum.rows, rows);
      EXPECT_EQ(sum.row_bytes, RowBytes(rows));
      EXPECT_EQ(sum.index_bytes, read.r * (count.pieces().cells * channel_bytes + tail_bytes));
      EXPECT_EQ(result.account.disk.physical_bytes,
                count.rows().bytes_from_disk + count.pieces().bytes_from_disk);
      cells_from_disk += count.rows().cells_from_disk + count.pieces().cells_from_disk;
    }
    count.Reset();
    const StepResult dense =
        RunOne(*engine, 1, ReadStep(info, kSeed, 1, visible - 1, 1, attention::DensePolicy()));
    ASSERT_OK(dense.status);
    EXPECT_EQ(dense.account.host.row_bytes + dense.account.disk.row_bytes,
              RowBytes(geometry_.kv_heads * static_cast<uint64_t>(visible)));
    EXPECT_EQ(dense.account.disk.physical_bytes, count.rows().bytes_from_disk);
    EXPECT_EQ(count.pieces().cells, 0u);
  }
  // Every piece of layer 0 once, and every granule of its sealed rows.
  const kvstore::BlockLayout block =
      engine::SequenceLayout::Make(info.spec, kBlock, options.index_tokens).block;
  EXPECT_EQ(cells_from_disk, kLength / kBlock * geometry_.kv_heads * (1 + block.granules()));
}

INSTANTIATE_TEST_SUITE_P(
    Formats, AccountTest,
    ::testing::Values(Case{"fp32_exact", Dtype::kFloat32, IndexFormat::kExact},
                      Case{"fp32_int8", Dtype::kFloat32, IndexFormat::kInt8},
                      Case{"bf16_int8", Dtype::kBFloat16, IndexFormat::kInt8},
                      Case{"fp16_exact", Dtype::kFloat16, IndexFormat::kExact}),
    [](const ::testing::TestParamInfo<Case>& each) { return std::string(each.param.name); });

}  // namespace
}  // namespace terrace::testing
