#include "tests/services/engine/engine_client.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>
#include <utility>

#include "tests/status_matchers.h"

namespace terrace::testing {

TempFolder::TempFolder(const std::string& parent) {
  std::string path = parent + "terrace-engine-XXXXXX";
  path_ = mkdtemp(path.data());
}

TempFolder::~TempFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

HostTensor MakeTensor(const std::vector<float>& values, int64_t n, int heads, int dim) {
  HostTensor tensor;
  tensor.shape = {static_cast<uint32_t>(n), static_cast<uint32_t>(heads),
                  static_cast<uint32_t>(dim)};
  tensor.data.resize(values.size() * sizeof(float));
  if (!values.empty()) std::memcpy(tensor.data.data(), values.data(), tensor.data.size());
  return tensor;
}

engine::StepRequest Step::request() const {
  return {.handle = handle,
          .writer_epoch = epoch,
          .position = position,
          .token_ids = {},
          .q = q.view(),
          .k = k.view(),
          .v = v.view(),
          .policy = policy,
          .fingerprint = {}};
}

attention::Policy Sparq(int r, int k, int window, int sinks, attention::ValueMean mean) {
  attention::SparqPolicy policy;
  policy.r = r;
  policy.k = k;
  policy.window = window;
  policy.sinks = sinks;
  policy.value_mean = mean;
  return policy;
}

Step ReadStep(const engine::SequenceInfo& info, uint64_t seed, int layer, int64_t position,
              int64_t n, const attention::Policy& policy) {
  const engine::Geometry& geometry = info.spec.geometry;
  Step step;
  step.handle = info.handle;
  step.epoch = info.writer_epoch;
  step.position = position;
  step.q = MakeTensor(MakeQueries(geometry, seed, layer, position, n), n, geometry.query_heads,
                      geometry.head_dim);
  step.policy = policy;
  return step;
}

Step AppendStep(const engine::SequenceInfo& info, uint64_t seed, int layer, int64_t position,
                int64_t n, const attention::Policy& policy) {
  const engine::Geometry& geometry = info.spec.geometry;
  Step step = ReadStep(info, seed, layer, position, n, policy);
  const KvRows rows = MakeRows(geometry, seed, layer, position, n);
  step.k = MakeTensor(rows.k, n, geometry.kv_heads, geometry.head_dim);
  step.v = MakeTensor(rows.v, n, geometry.kv_heads, geometry.head_dim);
  return step;
}

engine::StepResult RunOne(engine::KvEngine& engine, int layer, const Step& step,
                          engine::StepOptions options, const engine::Caller& caller) {
  options.return_selection = true;
  const engine::StepRequest request = step.request();
  return engine.Attend(caller, layer, {&request, 1}, options).at(0);
}

absl::StatusOr<int64_t> AppendRowsOf(engine::KvEngine& engine, const engine::SequenceInfo& info,
                                     int layer, int64_t position, const KvRows& rows,
                                     const engine::Caller& caller) {
  const engine::Geometry& geometry = info.spec.geometry;
  const HostTensor k = MakeTensor(rows.k, rows.n, geometry.kv_heads, geometry.head_dim);
  const HostTensor v = MakeTensor(rows.v, rows.n, geometry.kv_heads, geometry.head_dim);
  return engine.Append(caller, {.handle = info.handle,
                                .writer_epoch = info.writer_epoch,
                                .layer = layer,
                                .position = position,
                                .k = k.view(),
                                .v = v.view()});
}

absl::Status AppendSeed(engine::KvEngine& engine, const engine::SequenceInfo& info, uint64_t seed,
                        int64_t first, int64_t end, int64_t portion) {
  for (int64_t position = first; position < end; position += portion) {
    const int64_t n = std::min(portion, end - position);
    for (int layer = 0; layer < info.spec.geometry.layers; ++layer) {
      const KvRows rows = MakeRows(info.spec.geometry, seed, layer, position, n);
      const absl::StatusOr<int64_t> length = AppendRowsOf(engine, info, layer, position, rows);
      if (!length.ok()) return length.status();
    }
  }
  return absl::OkStatus();
}

engine::EmbeddedOptions MemoryOptions() {
  engine::EmbeddedOptions options;
  options.store.host_bytes = uint64_t{16} << 20;
  options.compute_threads = 1;
  return options;
}

engine::EmbeddedOptions DiskOptions(const TempFolder& folder) {
  engine::EmbeddedOptions options = MemoryOptions();
  options.store.disk_path = folder.path() + "/disk";
  options.store.disk_bytes = uint64_t{64} << 20;
  options.store.durability = kvstore::Durability::kNone;
  options.store.reader_threads = 1;
  return options;
}

std::unique_ptr<engine::EmbeddedEngine> OpenEngine(const engine::EmbeddedOptions& options) {
  absl::StatusOr<std::unique_ptr<engine::EmbeddedEngine>> engine =
      engine::EmbeddedEngine::Open(options);
  EXPECT_OK(engine);
  return engine.ok() ? *std::move(engine) : nullptr;
}

engine::SequenceSpec Spec(const engine::Geometry& geometry, attention::IndexFormat format) {
  return {
      .geometry = geometry, .model_fingerprint = "model", .adapter_id = "", .index_format = format};
}

engine::Geometry SmallGeometry() {
  return {.layers = 2,
          .query_heads = 4,
          .kv_heads = 2,
          .head_dim = 16,
          .storage = attention::Dtype::kFloat32,
          .scale = 0};
}

void ExpectSameAnswer(const engine::StepResult& expected, const engine::StepResult& got) {
  ASSERT_EQ(got.status, expected.status);
  EXPECT_EQ(got.queries, expected.queries);
  EXPECT_EQ(got.output, expected.output);
  EXPECT_EQ(got.account.alpha, expected.account.alpha);
  ASSERT_EQ(got.selections.size(), expected.selections.size());
  for (size_t i = 0; i < got.selections.size(); ++i) {
    EXPECT_EQ(got.selections[i].positions, expected.selections[i].positions);
    EXPECT_EQ(got.selections[i].channels, expected.selections[i].channels);
  }
}

void ExpectSameBits(engine::KvEngine& expected_engine, const engine::SequenceInfo& expected,
                    engine::KvEngine& got_engine, const engine::SequenceInfo& got) {
  constexpr uint64_t kQuerySeed = 77;
  const absl::StatusOr<engine::SequenceInfo> now = got_engine.Get({}, got.handle);
  const absl::StatusOr<engine::SequenceInfo> then = expected_engine.Get({}, expected.handle);
  ASSERT_OK(now);
  ASSERT_OK(then);
  ASSERT_EQ(now->length, then->length);
  const engine::Geometry& geometry = got.spec.geometry;
  const int r = std::min(5, geometry.head_dim);
  const std::set<int64_t> positions = {now->length - 1, now->length / 2, 0};
  for (const int64_t position : positions) {
    if (position < 0 || position >= now->length) continue;
    for (const attention::Policy& policy : {attention::Policy(attention::DensePolicy()),
                                            Sparq(r, 12, 3, 2, attention::ValueMean::kResidual),
                                            Sparq(r, 12, 1, 0, attention::ValueMean::kMean)}) {
      for (int layer = 0; layer < geometry.layers; ++layer) {
        SCOPED_TRACE(::testing::Message() << "position " << position << ", layer " << layer << ", "
                                          << attention::PolicyName(policy));
        const engine::StepResult a = RunOne(
            expected_engine, layer, ReadStep(expected, kQuerySeed, layer, position, 1, policy));
        const engine::StepResult b =
            RunOne(got_engine, layer, ReadStep(got, kQuerySeed, layer, position, 1, policy));
        ASSERT_OK(a.status);
        ExpectSameAnswer(a, b);
      }
    }
  }
}

}  // namespace terrace::testing
