#include "services/frontend/llama_model.h"

#include <cmath>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace terrace::frontend {
namespace {

absl::Status LoadMatrix(const Checkpoint& checkpoint, const std::string& name, int64_t rows,
                        int64_t cols, WeightMatrix& matrix) {
  const absl::StatusOr<const TensorView*> tensor = checkpoint.Get(name, {rows, cols});
  if (!tensor.ok()) return tensor.status();
  absl::StatusOr<WeightMatrix> loaded = WeightMatrix::FromTensor(**tensor);
  if (!loaded.ok()) return loaded.status();
  matrix = *std::move(loaded);
  return absl::OkStatus();
}

absl::Status LoadVector(const Checkpoint& checkpoint, const std::string& name, int64_t size,
                        std::vector<float>& values) {
  const absl::StatusOr<const TensorView*> tensor = checkpoint.Get(name, {size});
  if (!tensor.ok()) return tensor.status();
  values.resize(static_cast<size_t>(size));
  return ReadFloats(**tensor, absl::MakeSpan(values));
}

float Silu(float x) { return x / (1.0F + std::exp(-x)); }

}  // namespace

LlamaModel::LlamaModel(LlamaConfig config, int threads)
    : config_(std::move(config)),
      layers_(static_cast<size_t>(config_.layers)),
      rotary_(config_.head_dim, config_.rope_theta),
      workers_(threads) {}

absl::StatusOr<std::unique_ptr<LlamaModel>> LlamaModel::Load(const std::string& directory,
                                                             int threads) {
  absl::StatusOr<LlamaConfig> config = LoadLlamaConfig(directory);
  if (!config.ok()) return config.status();
  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(directory);
  if (!checkpoint.ok()) return checkpoint.status();
  const std::string bias =
      checkpoint->FirstWhere([](absl::string_view name) { return absl::EndsWith(name, ".bias"); });
  if (!bias.empty()) {
    return absl::UnimplementedError(
        absl::StrCat(directory, ": tensor ", bias, ": biases are not supported"));
  }
  std::unique_ptr<LlamaModel> model(new LlamaModel(*std::move(config), threads));
  absl::Status status = model->LoadEnds(*checkpoint);
  for (int layer = 0; layer < model->config_.layers && status.ok(); ++layer) {
    status = model->LoadLayer(*checkpoint, layer);
  }
  if (!status.ok()) return status;
  model->fingerprint_ = absl::StrCat("llama-", checkpoint->Digest().substr(0, 32), "-rope",
                                     model->config_.rope_theta);
  return model;
}

absl::Status LlamaModel::LoadEnds(const Checkpoint& checkpoint) {
  absl::Status status = LoadMatrix(checkpoint, "model.embed_tokens.weight", config_.vocab_size,
                                   config_.hidden_size, embeddings_);
  if (status.ok() && !config_.tied_embeddings) {
    status =
        LoadMatrix(checkpoint, "lm_head.weight", config_.vocab_size, config_.hidden_size, head_);
  }
  if (!status.ok()) return status;
  return LoadVector(checkpoint, "model.norm.weight", config_.hidden_size, final_norm_);
}

absl::Status LlamaModel::LoadLayer(const Checkpoint& checkpoint, int index) {
  Layer& layer = layers_[static_cast<size_t>(index)];
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  const int64_t hidden = config_.hidden_size;
  const int64_t inner = config_.intermediate_size;
  const struct {
    const char* name;
    int64_t rows;
    int64_t cols;
    WeightMatrix& matrix;
  } matrices[] = {{"self_attn.q_proj", config_.query_width(), hidden, layer.q},
                  {"self_attn.k_proj", config_.kv_width(), hidden, layer.k},
                  {"self_attn.v_proj", config_.kv_width(), hidden, layer.v},
                  {"self_attn.o_proj", hidden, config_.query_width(), layer.o},
                  {"mlp.gate_proj", inner, hidden, layer.gate},
                  {"mlp.up_proj", inner, hidden, layer.up},
                  {"mlp.down_proj", hidden, inner, layer.down}};
  for (const auto& [name, rows, cols, matrix] : matrices) {
    absl::Status status =
        LoadMatrix(checkpoint, absl::StrCat(prefix, name, ".weight"), rows, cols, matrix);
    if (!status.ok()) return status;
  }
  absl::Status status = LoadVector(checkpoint, absl::StrCat(prefix, "input_layernorm.weight"),
                                   hidden, layer.attention_norm);
  if (!status.ok()) return status;
  return LoadVector(checkpoint, absl::StrCat(prefix, "post_attention_layernorm.weight"), hidden,
                    layer.mlp_norm);
}

void LlamaModel::Resize(int64_t tokens) {
  auto fit = [tokens](std::vector<float>& values, int64_t width) {
    values.resize(static_cast<size_t>(tokens * width));
  };
  fit(activations_.stream, config_.hidden_size);
  fit(activations_.normed, config_.hidden_size);
  fit(activations_.q, config_.query_width());
  fit(activations_.k, config_.kv_width());
  fit(activations_.v, config_.kv_width());
  fit(activations_.attended, config_.query_width());
  fit(activations_.gate, config_.intermediate_size);
  fit(activations_.up, config_.intermediate_size);
  fit(activations_.delta, config_.hidden_size);
}

void LlamaModel::Normalise(const float* input, int64_t tokens, const std::vector<float>& weights) {
  const int64_t width = config_.hidden_size;
  for (int64_t t = 0; t < tokens; ++t) {
    const float* in = input + t * width;
    float* out = activations_.normed.data() + t * width;
    double squares = 0;
    for (int64_t i = 0; i < width; ++i) squares += static_cast<double>(in[i]) * in[i];
    const float scale = static_cast<float>(
        1.0 / std::sqrt(squares / static_cast<double>(width) + config_.rms_norm_eps));
    for (int64_t i = 0; i < width; ++i) out[i] = in[i] * scale * weights[static_cast<size_t>(i)];
  }
}

void LlamaModel::AddDelta(int64_t tokens) {
  const size_t size = static_cast<size_t>(tokens * config_.hidden_size);
  for (size_t i = 0; i < size; ++i) activations_.stream[i] += activations_.delta[i];
}

absl::Status LlamaModel::AttendHalf(int layer_index, int64_t position,
                                    absl::Span<const uint32_t> tokens,
                                    AttentionBackend& attention) {
  const Layer& layer = layers_[static_cast<size_t>(layer_index)];
  const int64_t count = static_cast<int64_t>(tokens.size());
  Activations& a = activations_;
  Normalise(a.stream.data(), count, layer.attention_norm);
  layer.q.Multiply(a.normed.data(), count, a.q.data(), workers_);
  layer.k.Multiply(a.normed.data(), count, a.k.data(), workers_);
  layer.v.Multiply(a.normed.data(), count, a.v.data(), workers_);
  rotary_.Apply(config_.query_heads, a.q.data());
  rotary_.Apply(config_.kv_heads, a.k.data());
  absl::Status status =
      attention.Attend(layer_index, position, tokens, a.q, a.k, a.v, absl::MakeSpan(a.attended));
  if (!status.ok()) return status;
  layer.o.Multiply(a.attended.data(), count, a.delta.data(), workers_);
  AddDelta(count);
  return absl::OkStatus();
}

void LlamaModel::MlpHalf(const Layer& layer, int64_t tokens) {
  Activations& a = activations_;
  Normalise(a.stream.data(), tokens, layer.mlp_norm);
  layer.gate.Multiply(a.normed.data(), tokens, a.gate.data(), workers_);
  layer.up.Multiply(a.normed.data(), tokens, a.up.data(), workers_);
  const size_t size = static_cast<size_t>(tokens * config_.intermediate_size);
  for (size_t i = 0; i < size; ++i) a.gate[i] = Silu(a.gate[i]) * a.up[i];
  layer.down.Multiply(a.gate.data(), tokens, a.delta.data(), workers_);
  AddDelta(tokens);
}

absl::Status LlamaModel::Forward(absl::Span<const uint32_t> tokens, int64_t position,
                                 AttentionBackend& attention, absl::Span<float> logits) {
  const int64_t count = static_cast<int64_t>(tokens.size());
  const int64_t logit_rows = static_cast<int64_t>(logits.size()) / config_.vocab_size;
  if (logit_rows * config_.vocab_size != static_cast<int64_t>(logits.size()) ||
      logit_rows > count) {
    return absl::InvalidArgumentError(absl::StrCat("room for ", logits.size(), " logits, up to ",
                                                   count, " rows of ", config_.vocab_size,
                                                   " expected"));
  }
  Resize(count);
  for (int64_t t = 0; t < count; ++t) {
    if (tokens[static_cast<size_t>(t)] >= config_.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("token ", tokens[static_cast<size_t>(t)],
                                                     ", below the vocabulary size ",
                                                     config_.vocab_size, " expected"));
    }
    embeddings_.CopyRow(tokens[static_cast<size_t>(t)],
                        activations_.stream.data() + t * config_.hidden_size);
  }
  rotary_.SetPositions(position, count);
  for (int layer = 0; layer < config_.layers; ++layer) {
    absl::Status status = AttendHalf(layer, position, tokens, attention);
    if (!status.ok()) return status;
    MlpHalf(layers_[static_cast<size_t>(layer)], count);
  }
  if (logit_rows == 0) return absl::OkStatus();
  const float* last = activations_.stream.data() + (count - logit_rows) * config_.hidden_size;
  Normalise(last, logit_rows, final_norm_);
  const WeightMatrix& head = config_.tied_embeddings ? embeddings_ : head_;
  head.Multiply(activations_.normed.data(), logit_rows, logits.data(), workers_);
  return absl::OkStatus();
}

}  // namespace terrace::frontend
