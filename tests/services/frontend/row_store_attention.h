// Dense attention over rows kept in memory, in plain loops: the judge of the model runner.
#ifndef TERRACE_TESTS_SERVICES_FRONTEND_ROW_STORE_ATTENTION_H_
#define TERRACE_TESTS_SERVICES_FRONTEND_ROW_STORE_ATTENTION_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "attention/dtype.h"
#include "services/frontend/attention_backend.h"
#include "services/frontend/llama_config.h"

namespace terrace::frontend::testing {

// Keys and values of one layer, rounded to a storage type, as floats: [tokens][kv_heads][d].
struct LayerRows {
  std::vector<float> keys;
  std::vector<float> values;
};

inline void AppendRounded(attention::Dtype storage, absl::Span<const float> values,
                          std::vector<float>& rows) {
  std::vector<std::byte> stored(values.size() * attention::DtypeBytes(storage));
  attention::FromFloat(storage, values.data(), values.size(), stored.data());
  const size_t old = rows.size();
  rows.resize(old + values.size());
  attention::ToFloat(storage, stored.data(), values.size(), rows.data() + old);
}

// Σ a·b in eight partial sums, which a compiler can keep in vectors.
inline float Dot(const float* a, const float* b, int size) {
  float sums[8] = {};
  for (int i = 0; i < size; i += 8) {
    for (int j = 0; j < 8; ++j) sums[j] += a[i + j] * b[i + j];
  }
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

// Attention of one query head over rows [0, tokens) of one KV head. `stride` floats lie between
// two rows. The same rows give the same bits.
inline void AttendHead(const float* q, const float* keys, const float* values, int64_t tokens,
                       int64_t stride, int head_dim, float* out) {
  const float scale = 1.0F / std::sqrt(static_cast<float>(head_dim));
  std::vector<float> weights(static_cast<size_t>(tokens));
  float max = -INFINITY;
  for (int64_t t = 0; t < tokens; ++t) {
    float& weight = weights[static_cast<size_t>(t)];
    weight = Dot(q, keys + t * stride, head_dim) * scale;
    max = std::max(max, weight);
  }
  double sum = 0;
  for (float& weight : weights) sum += weight = std::exp(weight - max);
  std::fill(out, out + head_dim, 0.0F);
  for (int64_t t = 0; t < tokens; ++t) {
    const float weight = static_cast<float>(weights[static_cast<size_t>(t)] / sum);
    const float* value = values + t * stride;
    for (int c = 0; c < head_dim; ++c) out[c] += weight * value[c];
  }
}

// All query heads of `tokens` queries at [position, position + tokens).
inline void AttendRows(const LayerRows& rows, int query_heads, int kv_heads, int head_dim,
                       int64_t position, int64_t tokens, const float* q, float* out) {
  const int group = query_heads / kv_heads;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int head = 0; head < query_heads; ++head) {
      const int64_t at = (t * query_heads + head) * head_dim;
      const int64_t kv = static_cast<int64_t>(head / group) * head_dim;
      AttendHead(q + at, rows.keys.data() + kv, rows.values.data() + kv, position + t + 1,
                 static_cast<int64_t>(kv_heads) * head_dim, head_dim, out + at);
    }
  }
}

// RowStoreAttention keeps every row. A step at position p forgets rows from p on, so that a text
// can be computed again.
class RowStoreAttention : public AttentionBackend {
 public:
  RowStoreAttention(const LlamaConfig& config, attention::Dtype storage)
      : config_(config), storage_(storage), layers_(static_cast<size_t>(config.layers)) {}

  absl::Status Attend(int layer, int64_t position, absl::Span<const uint32_t> token_ids,
                      absl::Span<const float> q, absl::Span<const float> k,
                      absl::Span<const float> v, absl::Span<float> out) override {
    LayerRows& rows = layers_[static_cast<size_t>(layer)];
    rows.keys.resize(static_cast<size_t>(position * config_.kv_width()));
    rows.values.resize(rows.keys.size());
    AppendRounded(storage_, k, rows.keys);
    AppendRounded(storage_, v, rows.values);
    AttendRows(rows, config_.query_heads, config_.kv_heads, config_.head_dim, position,
               static_cast<int64_t>(token_ids.size()), q.data(), out.data());
    return absl::OkStatus();
  }

 private:
  LlamaConfig config_;
  attention::Dtype storage_;
  std::vector<LayerRows> layers_;
};

}  // namespace terrace::frontend::testing

#endif  // TERRACE_TESTS_SERVICES_FRONTEND_ROW_STORE_ATTENTION_H_
