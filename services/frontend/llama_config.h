// Shape and constants of a Llama model, as config.json of a HuggingFace checkpoint gives them.
#ifndef TERRACE_SERVICES_FRONTEND_LLAMA_CONFIG_H_
#define TERRACE_SERVICES_FRONTEND_LLAMA_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace terrace::frontend {

struct LlamaConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int layers = 0;
  int query_heads = 0;
  // Divides query_heads.
  int kv_heads = 0;
  // A multiple of 8, at most 512.
  int head_dim = 0;
  double rms_norm_eps = 0;
  double rope_theta = 0;
  // Tokens of context that the model was trained for.
  int64_t max_positions = 0;
  bool tied_embeddings = false;
  // "bfloat16", "float16" or "float32"; empty if the file does not say.
  std::string dtype;
  std::optional<uint32_t> bos_token;
  // Tokens that end a text; may be empty.
  std::vector<uint32_t> eos_tokens;

  // Elements of q, and of k or v, of one token.
  int64_t query_width() const { return static_cast<int64_t>(query_heads) * head_dim; }
  int64_t kv_width() const { return static_cast<int64_t>(kv_heads) * head_dim; }
};

// Reads DIRECTORY/config.json. NotFound without one; else as ParseLlamaConfig, the path named.
absl::StatusOr<LlamaConfig> LoadLlamaConfig(const std::string& directory);

// InvalidArgument for malformed JSON or a value out of range, Unimplemented for a model that this
// frontend cannot run (another architecture, RoPE scaling, biases, quantisation, ...). The message
// names the key, what was got and what was expected.
absl::StatusOr<LlamaConfig> ParseLlamaConfig(absl::string_view json_text);

}  // namespace terrace::frontend

#endif  // TERRACE_SERVICES_FRONTEND_LLAMA_CONFIG_H_
