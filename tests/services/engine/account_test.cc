// The account of a step, against a count of its own: rows, index bytes and sums by tier.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

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
  EXPECT_GE(cold.account.disk.physical_bytes, cold.account.disk.row_bytes);
  EXPECT_EQ(warm.account.host.row_bytes, cold.account.disk.row_bytes);
  EXPECT_EQ(warm.account.host.index_bytes, cold.account.disk.index_bytes);
  EXPECT_EQ(warm.account.disk.rows, 0u);
  EXPECT_EQ(warm.account.disk.physical_bytes, 0u);
  EXPECT_EQ(cold.output, warm.output);
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
