// The bundled model against logits of an independent fp32 implementation.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "attention/dtype.h"
#include "attention/row_attention.h"
#include "attention/softmax_state.h"
#include "services/frontend/llama_model.h"
#include "services/frontend/policy_run.h"
#include "services/frontend/safetensors.h"
#include "tests/status_matchers.h"

namespace terrace::frontend {
namespace {

using attention::Dtype;

constexpr char kModel[] = TERRACE_SOURCE_DIR "/services/frontend/model/tiny";
constexpr int64_t kChunk = 256;

struct Golden {
  // bos, then bytes; the last one is only a target.
  std::vector<uint32_t> tokens;
  std::vector<float> last_logits;  // [last][vocab]
  std::vector<float> nll_nats;     // [tokens - 1]
};

template <typename T>
std::vector<T> Elements(const SafetensorsFile& file, const char* name) {
  const TensorView* tensor = file.Find(name);
  if (tensor == nullptr) return {};
  std::vector<T> values(tensor->data.size() / sizeof(T));
  std::memcpy(values.data(), tensor->data.data(), values.size() * sizeof(T));
  return values;
}

void ReadGolden(const std::string& name, Golden& golden) {
  const auto file = SafetensorsFile::Open(TERRACE_TEST_DATA "/model/" + name + ".safetensors");
  ASSERT_OK(file);
  for (const int32_t token : Elements<int32_t>(*file, "input_ids")) {
    golden.tokens.push_back(static_cast<uint32_t>(token));
  }
  golden.last_logits = Elements<float>(*file, "logits_last");
  golden.nll_nats = Elements<float>(*file, "nll_nats");
  ASSERT_EQ(golden.tokens.size(), golden.nll_nats.size() + 1);
}

// Dense attention by the CPU kernel over rows in their stored form: fast enough for these lengths
// under sanitizers, where plain loops are not.
class KernelAttention : public AttentionBackend {
 public:
  KernelAttention(const LlamaConfig& config, Dtype storage) : config_(config) {
    shape_.head_dim = config.head_dim;
    shape_.group = config.query_heads / config.kv_heads;
    shape_.dtype = storage;
    shape_.scale = 1.0F / std::sqrt(static_cast<float>(config.head_dim));
    rows_.resize(static_cast<size_t>(config.layers * config.kv_heads));
  }

  absl::Status Attend(int layer, int64_t position, absl::Span<const uint32_t> token_ids,
                      absl::Span<const float> q, absl::Span<const float> k,
                      absl::Span<const float> v, absl::Span<float> out) override {
    const int64_t tokens = static_cast<int64_t>(token_ids.size());
    for (int head = 0; head < config_.kv_heads; ++head) {
      std::vector<std::byte>& rows = rows_[static_cast<size_t>(layer * config_.kv_heads + head)];
      const size_t half = shape_.row_bytes() / 2;
      for (int64_t t = 0; t < tokens; ++t) {
        const int64_t from = (t * config_.kv_heads + head) * shape_.head_dim;
        rows.resize(rows.size() + 2 * half);
        std::byte* row = rows.data() + rows.size() - 2 * half;
        attention::FromFloat(shape_.dtype, &k[from], shape_.head_dim, row);
        attention::FromFloat(shape_.dtype, &v[from], shape_.head_dim, row + half);
      }
      AttendHead(head, position, tokens, rows, q, out);
    }
    return absl::OkStatus();
  }

 private:
  // The query heads of one KV head lie side by side in q and in out: copy them out and back.
  void AttendHead(int head, int64_t position, int64_t tokens, const std::vector<std::byte>& rows,
                  absl::Span<const float> q, absl::Span<float> out) {
    const int64_t group_floats = static_cast<int64_t>(shape_.group) * shape_.head_dim;
    std::vector<float> queries;
    for (int64_t t = 0; t < tokens; ++t) {
      const auto group = q.subspan((t * config_.kv_heads + head) * group_floats, group_floats);
      queries.insert(queries.end(), group.begin(), group.end());
    }
    std::vector<float> outputs(queries.size(), 0.0F);
    std::vector<attention::SoftmaxState> states(static_cast<size_t>(tokens * shape_.group));
    for (size_t i = 0; i < states.size(); ++i) states[i].output = &outputs[i * shape_.head_dim];
    constexpr int64_t kBlock = 1024;
    for (int64_t first = 0; first < position + tokens; first += kBlock) {
      attention::AttendBlock(
          shape_, queries.data(), tokens, position, rows.data() + first * shape_.row_bytes(), first,
          std::min(kBlock, position + tokens - first), scratch_, absl::MakeSpan(states));
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      const int64_t t = static_cast<int64_t>(i) / group_floats;
      out[(t * config_.kv_heads + head) * group_floats + static_cast<int64_t>(i) % group_floats] =
          outputs[i] / states[i / shape_.head_dim].sum;
    }
  }

  LlamaConfig config_;
  attention::HeadShape shape_;
  attention::RowScratch scratch_;
  std::vector<std::vector<std::byte>> rows_;  // [layers * kv_heads], K then V of each position
};

// Largest deviation from the golden values.
struct Deviation {
  float logit = 0;
  double nll_nats = 0;
  double bits_per_byte = 0;
};

void Measure(const Golden& golden, Dtype storage, Deviation& deviation) {
  auto loaded = LlamaModel::Load(kModel, 2);
  ASSERT_OK(loaded);
  LlamaModel& model = **loaded;
  KernelAttention attention(model.config(), storage);
  const int64_t vocab = model.config().vocab_size;
  const int64_t inputs = static_cast<int64_t>(golden.tokens.size()) - 1;
  std::vector<float> logits(static_cast<size_t>(inputs * vocab));
  for (int64_t at = 0; at < inputs; at += kChunk) {
    const int64_t count = std::min(kChunk, inputs - at);
    ASSERT_OK(model.Forward(absl::MakeConstSpan(golden.tokens).subspan(at, count), at, attention,
                            absl::MakeSpan(logits).subspan(at * vocab, count * vocab)));
  }
  const size_t first = logits.size() - golden.last_logits.size();
  for (size_t i = 0; i < golden.last_logits.size(); ++i) {
    deviation.logit =
        std::max(deviation.logit, std::abs(logits[first + i] - golden.last_logits[i]));
  }
  double bits = 0;
  double golden_nats = 0;
  for (int64_t i = 0; i < inputs; ++i) {
    const double got = TokenBits(absl::MakeConstSpan(logits).subspan(i * vocab, vocab),
                                 golden.tokens[static_cast<size_t>(i + 1)]);
    const double expected = golden.nll_nats[static_cast<size_t>(i)];
    deviation.nll_nats = std::max(deviation.nll_nats, std::abs(got * std::log(2.0) - expected));
    bits += got;
    golden_nats += expected;
  }
  deviation.bits_per_byte =
      std::abs(bits - golden_nats / std::log(2.0)) / static_cast<double>(inputs);
}

struct Case {
  const char* name;
  Dtype storage;
  // fp32 rows differ from the golden run by the order of sums only. bf16 rows carry 8 bits of K
  // and V, a relative error of 2^-9 each, through 8 layers.
  float logit_max;
  double nll_nats_max;
  double bits_per_byte_max;
};

class GoldenLogits : public ::testing::TestWithParam<Case> {};

TEST_P(GoldenLogits, AreReproduced) {
  const Case& c = GetParam();
  Golden golden;
  ASSERT_NO_FATAL_FAILURE(ReadGolden(c.name, golden));
  Deviation deviation;
  ASSERT_NO_FATAL_FAILURE(Measure(golden, c.storage, deviation));
  RecordProperty("logit", std::to_string(deviation.logit));
  RecordProperty("nll_nats", std::to_string(deviation.nll_nats));
  RecordProperty("bits_per_byte", std::to_string(deviation.bits_per_byte));
  EXPECT_LE(deviation.logit, c.logit_max);
  EXPECT_LE(deviation.nll_nats, c.nll_nats_max);
  EXPECT_LE(deviation.bits_per_byte, c.bits_per_byte_max);
}

INSTANTIATE_TEST_SUITE_P(
    Documents, GoldenLogits,
    ::testing::Values(Case{"austen_20000_1024", Dtype::kFloat32, 2e-4F, 2e-4, 1e-6},
                      Case{"bible_0_2048", Dtype::kFloat32, 2e-4F, 2e-4, 1e-6},
                      Case{"austen_20000_1024", Dtype::kBFloat16, 0.15F, 0.1, 3e-4}),
    [](const auto& test) {
      return std::string(test.param.name) + "_" + std::string(DtypeName(test.param.storage));
    });

}  // namespace
}  // namespace terrace::frontend
