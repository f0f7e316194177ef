// A Llama model: weights, and the forward pass around somebody else's attention.
#ifndef TERRACE_SERVICES_FRONTEND_LLAMA_MODEL_H_
#define TERRACE_SERVICES_FRONTEND_LLAMA_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "services/frontend/attention_backend.h"
#include "services/frontend/checkpoint.h"
#include "services/frontend/llama_config.h"
#include "services/frontend/rotary.h"
#include "services/frontend/weight_matrix.h"
#include "services/frontend/workers.h"

namespace terrace::frontend {

// LlamaModel keeps the weights in memory and computes, both in fp32.
// Not thread-safe: a forward pass uses working memory of the model.
class LlamaModel {
 public:
  // Loads config.json and the weights below `directory`; products run on `threads` threads.
  // Errors are those of LoadLlamaConfig and Checkpoint; Unimplemented for a checkpoint that holds
  // biases.
  static absl::StatusOr<std::unique_ptr<LlamaModel>> Load(const std::string& directory,
                                                          int threads);

  const LlamaConfig& config() const { return config_; }
  // Identifies weights, RoPE and tokens; at most 64 bytes.
  const std::string& fingerprint() const { return fingerprint_; }

  // Runs `tokens` at positions [position, position + tokens.size()) through all layers, attention
  // by `attention`. logits: [rows][vocab_size] of the last `rows` tokens; may be empty, at most
  // tokens.size() rows. The same call over the same rows gives the same bits; n tokens at once and
  // n calls with one token agree to rounding. InvalidArgument for a token beyond the vocabulary or
  // a logits size that fits no number of rows; an error of the attention comes back as it is, and
  // logits are then unspecified.
  absl::Status Forward(absl::Span<const uint32_t> tokens, int64_t position,
                       AttentionBackend& attention, absl::Span<float> logits);

 private:
  struct Layer {
    std::vector<float> attention_norm;  // [hidden]
    WeightMatrix q;                     // [query_width][hidden]
    WeightMatrix k;                     // [kv_width][hidden]
    WeightMatrix v;                     // [kv_width][hidden]
    WeightMatrix o;                     // [hidden][query_width]
    std::vector<float> mlp_norm;        // [hidden]
    WeightMatrix gate;                  // [intermediate][hidden]
    WeightMatrix up;                    // [intermediate][hidden]
    WeightMatrix down;                  // [hidden][intermediate]
  };
  // Working memory of one pass, [tokens][...].
  struct Activations {
    std::vector<float> stream;  // [hidden], the residual stream
    std::vector<float> normed;  // [hidden]
    std::vector<float> q;
    std::vector<float> k;
    std::vector<float> v;
    std::vector<float> attended;  // [query_width]
    std::vector<float> gate;      // [intermediate]
    std::vector<float> up;        // [intermediate]
    std::vector<float> delta;     // [hidden], what a half layer adds to the stream
  };

  LlamaModel(LlamaConfig config, int threads);

  absl::Status LoadLayer(const Checkpoint& checkpoint, int index);
  absl::Status LoadEnds(const Checkpoint& checkpoint);
  void Resize(int64_t tokens);
  // normed = RMSNorm(input) of `tokens` rows.
  void Normalise(const float* input, int64_t tokens, const std::vector<float>& weights);
  absl::Status AttendHalf(int layer_index, int64_t position, absl::Span<const uint32_t> tokens,
                          AttentionBackend& attention);
  void MlpHalf(const Layer& layer, int64_t tokens);
  void AddDelta(int64_t tokens);

  LlamaConfig config_;
  std::string fingerprint_;
  WeightMatrix embeddings_;  // [vocab][hidden]
  WeightMatrix head_;        // [vocab][hidden]; empty when tied
  std::vector<float> final_norm_;
  std::vector<Layer> layers_;
  Rotary rotary_;
  Workers workers_;
  Activations activations_;
};

}  // namespace terrace::frontend

#endif  // TERRACE_SERVICES_FRONTEND_LLAMA_MODEL_H_
