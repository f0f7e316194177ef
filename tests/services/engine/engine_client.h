// What tests of engines share: options over a folder of their own, and calls on any KvEngine in
// terms of floats and seeds.
#ifndef TERRACE_TESTS_SERVICES_ENGINE_ENGINE_CLIENT_H_
#define TERRACE_TESTS_SERVICES_ENGINE_ENGINE_CLIENT_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "services/engine/embedded_engine.h"
#include "services/engine/kv_engine.h"
#include "tests/services/engine/plain_cache.h"

namespace terrace::testing {

// Removed with all it holds.
class TempFolder {
 public:
  explicit TempFolder(const std::string& parent = ::testing::TempDir());
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A tensor that owns its bytes.
struct HostTensor {
  attention::Dtype dtype = attention::Dtype::kFloat32;
  std::vector<uint32_t> shape;
  std::vector<std::byte> data;

  engine::TensorView view() const { return {.dtype = dtype, .shape = shape, .data = data}; }
};

// fp32 [n, heads, dim].
HostTensor MakeTensor(const std::vector<float>& values, int64_t n, int heads, int dim);

// A step that owns its tensors; k and v are absent unless it appends.
struct Step {
  std::string handle;
  uint64_t epoch = 0;
  int64_t position = 0;
  HostTensor q;
  HostTensor k;
  HostTensor v;
  attention::Policy policy;

  engine::StepRequest request() const;
};

attention::Policy Sparq(int r, int k, int window = 1, int sinks = 0,
                        attention::ValueMean mean = attention::ValueMean::kOff);

// Queries (and rows) of the seed at [position, position + n).
Step ReadStep(const engine::SequenceInfo& info, uint64_t seed, int layer, int64_t position,
              int64_t n, const attention::Policy& policy);
Step AppendStep(const engine::SequenceInfo& info, uint64_t seed, int layer, int64_t position,
                int64_t n, const attention::Policy& policy);

// One step; options.return_selection is on.
engine::StepResult RunOne(engine::KvEngine& engine, int layer, const Step& step,
                          engine::StepOptions options = {}, const engine::Caller& caller = {});

absl::StatusOr<int64_t> AppendRowsOf(engine::KvEngine& engine, const engine::SequenceInfo& info,
                                     int layer, int64_t position, const KvRows& rows,
                                     const engine::Caller& caller = {});
// Rows of the seed at [first, end) of all layers, `portion` tokens at a time.
absl::Status AppendSeed(engine::KvEngine& engine, const engine::SequenceInfo& info, uint64_t seed,
                        int64_t first, int64_t end, int64_t portion = 1000);

// 16 MiB of host memory, no disk, one compute thread.
engine::EmbeddedOptions MemoryOptions();
// The same with 64 MiB of disk, written only on flush.
engine::EmbeddedOptions DiskOptions(const TempFolder& folder);
std::unique_ptr<engine::EmbeddedEngine> OpenEngine(const engine::EmbeddedOptions& options);

engine::SequenceSpec Spec(const engine::Geometry& geometry,
                          attention::IndexFormat format = attention::IndexFormat::kExact);
// Two layers, two KV heads of two query heads each, head_dim 16, fp32.
engine::Geometry SmallGeometry();

// The same status, and to the bit the same output, alpha and selections.
void ExpectSameAnswer(const engine::StepResult& expected, const engine::StepResult& got);

// Every layer of two sequences of equal length answers alike, to the bit: dense and sparse, at the
// last position and at some before it.
void ExpectSameBits(engine::KvEngine& expected_engine, const engine::SequenceInfo& expected,
                    engine::KvEngine& got_engine, const engine::SequenceInfo& got);

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_SERVICES_ENGINE_ENGINE_CLIENT_H_
