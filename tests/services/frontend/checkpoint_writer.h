// Writes small checkpoints for tests: safetensors files and config.json.
#ifndef TERRACE_TESTS_SERVICES_FRONTEND_CHECKPOINT_WRITER_H_
#define TERRACE_TESTS_SERVICES_FRONTEND_CHECKPOINT_WRITER_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace terrace::frontend::testing {

// A directory of the running test, removed with the object.
class TestDirectory {
 public:
  TestDirectory() {
    std::string pattern = ::testing::TempDir() + "/frontend-XXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~TestDirectory() { std::filesystem::remove_all(path_); }
  TestDirectory(const TestDirectory&) = delete;
  TestDirectory& operator=(const TestDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline void WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// Header length, header and data of a safetensors file.
inline std::string SafetensorsBytes(const std::string& header, const std::string& data) {
  const uint64_t size = header.size();
  std::string bytes(sizeof(size), '\0');
  std::memcpy(bytes.data(), &size, sizeof(size));
  return bytes + header + data;
}

struct FloatTensor {
  std::vector<int64_t> shape;
  std::vector<float> values;
};
using FloatTensors = std::map<std::string, FloatTensor>;

// All tensors as F32.
inline std::string SafetensorsBytes(const FloatTensors& tensors) {
  nlohmann::json header;
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    const size_t begin = data.size();
    data.append(reinterpret_cast<const char*>(tensor.values.data()),
                tensor.values.size() * sizeof(float));
    header[name] = {
        {"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
  }
  return SafetensorsBytes(header.dump(), data);
}

// A model with random weights: 3 layers, group of 3, untied embeddings.
inline nlohmann::json SmallConfig() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"vocab_size", 270},
          {"hidden_size", 72},
          {"intermediate_size", 100},
          {"num_hidden_layers", 3},
          {"num_attention_heads", 6},
          {"num_key_value_heads", 2},
          {"head_dim", 32},
          {"hidden_act", "silu"},
          {"max_position_embeddings", 512},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"tie_word_embeddings", false},
          {"eos_token_id", 257},
          {"torch_dtype", "float32"}};
}

inline FloatTensors SmallWeights(const nlohmann::json& config, uint32_t seed) {
  std::mt19937 random(seed);
  FloatTensors tensors;
  auto add = [&](const std::string& name, std::vector<int64_t> shape, float mean, float spread) {
    std::normal_distribution<float> values(mean, spread);
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    FloatTensor& tensor = tensors[name];
    tensor.shape = std::move(shape);
    for (int64_t i = 0; i < count; ++i) tensor.values.push_back(values(random));
  };
  const int64_t vocab = config["vocab_size"];
  const int64_t hidden = config["hidden_size"];
  const int64_t inner = config["intermediate_size"];
  const int64_t q =
      config["num_attention_heads"].get<int64_t>() * config["head_dim"].get<int64_t>();
  const int64_t kv =
      config["num_key_value_heads"].get<int64_t>() * config["head_dim"].get<int64_t>();
  add("model.embed_tokens.weight", {vocab, hidden}, 0.0F, 1.0F);
  add("lm_head.weight", {vocab, hidden}, 0.0F, 0.2F);
  add("model.norm.weight", {hidden}, 1.0F, 0.1F);
  for (int layer = 0; layer < config["num_hidden_layers"].get<int>(); ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    add(prefix + "input_layernorm.weight", {hidden}, 1.0F, 0.1F);
    add(prefix + "post_attention_layernorm.weight", {hidden}, 1.0F, 0.1F);
    add(prefix + "self_attn.q_proj.weight", {q, hidden}, 0.0F, 0.15F);
    add(prefix + "self_attn.k_proj.weight", {kv, hidden}, 0.0F, 0.15F);
    add(prefix + "self_attn.v_proj.weight", {kv, hidden}, 0.0F, 0.15F);
    add(prefix + "self_attn.o_proj.weight", {hidden, q}, 0.0F, 0.1F);
    add(prefix + "mlp.gate_proj.weight", {inner, hidden}, 0.0F, 0.15F);
    add(prefix + "mlp.up_proj.weight", {inner, hidden}, 0.0F, 0.15F);
    add(prefix + "mlp.down_proj.weight", {hidden, inner}, 0.0F, 0.15F);
  }
  return tensors;
}

inline void WriteCheckpoint(const std::string& directory, const nlohmann::json& config,
                            const FloatTensors& tensors) {
  WriteFile(directory + "/config.json", config.dump(2));
  WriteFile(directory + "/model.safetensors", SafetensorsBytes(tensors));
}

}  // namespace terrace::frontend::testing

#endif  // TERRACE_TESTS_SERVICES_FRONTEND_CHECKPOINT_WRITER_H_
