#include "services/frontend/llama_config.h"

#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace terrace::frontend {
namespace {

using nlohmann::json;

// Bounds that keep every product of two extents far from overflow.
constexpr int64_t kWidthMax = int64_t{1} << 20;
constexpr int64_t kVocabMax = int64_t{1} << 24;
constexpr int64_t kPositionsMax = int64_t{1} << 32;
constexpr int64_t kLayersMax = 1024;
constexpr int64_t kHeadsMax = 4096;
constexpr int64_t kHeadDimMax = 512;

// ConfigReader reads keys of one JSON object and keeps the first error.
class ConfigReader {
 public:
  explicit ConfigReader(const json& object) : object_(object) {}

  const absl::Status& status() const { return status_; }
  // Null if the key is absent or null: HuggingFace writes both for "not set".
  const json* Find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  int64_t Integer(const char* key, int64_t low, int64_t high,
                  std::optional<int64_t> absent = std::nullopt) {
    const json* value = Find(key);
    if (value == nullptr && absent.has_value()) return *absent;
    if (value == nullptr) {
      Fail(absl::InvalidArgumentError(absl::StrCat(key, " is missing")));
      return low;
    }
    if (!value->is_number_integer() || *value < low || *value > high) {
      Fail(absl::InvalidArgumentError(absl::StrCat(key, " is ", value->dump(), ", an integer in [",
                                                   low, ", ", high, "] expected")));
      return low;
    }
    return value->get<int64_t>();
  }

  double Positive(const char* key, double absent) {
    const json* value = Find(key);
    if (value == nullptr) return absent;
    if (!value->is_number() || !(value->get<double>() > 0) ||
        !std::isfinite(value->get<double>())) {
      Fail(absl::InvalidArgumentError(
          absl::StrCat(key, " is ", value->dump(), ", a positive number expected")));
      return absent;
    }
    return value->get<double>();
  }

  bool Boolean(const char* key, bool absent) {
    const json* value = Find(key);
    if (value == nullptr) return absent;
    if (!value->is_boolean()) {
      Fail(absl::InvalidArgumentError(
          absl::StrCat(key, " is ", value->dump(), ", true or false expected")));
      return absent;
    }
    return value->get<bool>();
  }

  // Fails unless the key is absent, null or `allowed`.
  void Only(const char* key, const json& allowed, absl::string_view why) {
    const json* value = Find(key);
    if (value != nullptr && *value != allowed) {
      Fail(absl::UnimplementedError(absl::StrCat(key, " is ", value->dump(), ": ", why)));
    }
  }

  void Fail(const absl::Status& status) { status_.Update(status); }

 private:
  const json& object_;
  absl::Status status_;
};

void CheckArchitecture(ConfigReader& reader) {
  const json* architectures = reader.Find("architectures");
  const json* type = reader.Find("model_type");
  const bool named_llama =
      architectures == nullptr || *architectures == json::array({"LlamaForCausalLM"});
  const bool typed_llama = type == nullptr ? architectures != nullptr : *type == "llama";
  if (named_llama && typed_llama) return;
  const json* culprit = !named_llama ? architectures : type;
  reader.Fail(absl::UnimplementedError(
      absl::StrCat(named_llama ? "model_type is " : "architectures is ",
                   culprit == nullptr ? "missing" : culprit->dump(),
                   ": only LlamaForCausalLM (model_type \"llama\") runs here")));
}

// What changes the arithmetic in a way that the model code does not follow.
void CheckVariants(ConfigReader& reader) {
  CheckArchitecture(reader);
  reader.Only("hidden_act", "silu", "only silu is supported");
  reader.Only("attention_bias", false, "biases in attention are not supported");
  reader.Only("mlp_bias", false, "biases in the MLP are not supported");
  reader.Only("quantization_config", nullptr, "quantised checkpoints are not supported");
  reader.Only("sliding_window", nullptr, "sliding windows are not supported");
  reader.Only("rope_scaling", nullptr, "RoPE scaling is not supported");
  reader.Only("partial_rotary_factor", 1.0, "partial rotary embeddings are not supported");
  reader.Only("attn_logit_softcapping", nullptr, "a softcap on logits is not supported");
  reader.Only("final_logit_softcapping", nullptr, "a softcap on logits is not supported");
}

// Newer writers put theta below rope_parameters.
double RopeTheta(ConfigReader& reader) {
  const json* parameters = reader.Find("rope_parameters");
  if (parameters == nullptr) return reader.Positive("rope_theta", 10000.0);
  if (!parameters->is_object()) {
    reader.Fail(absl::InvalidArgumentError("rope_parameters is not an object"));
    return 10000.0;
  }
  ConfigReader inner(*parameters);
  inner.Only("rope_type", "default", "RoPE scaling is not supported");
  const double theta = inner.Positive("rope_theta", 10000.0);
  if (!inner.status().ok()) {
    reader.Fail(absl::Status(inner.status().code(),
                             absl::StrCat("rope_parameters.", inner.status().message())));
  }
  return theta;
}

void ReadHeads(ConfigReader& reader, LlamaConfig& config) {
  config.query_heads = static_cast<int>(reader.Integer("num_attention_heads", 1, kHeadsMax));
  config.kv_heads =
      static_cast<int>(reader.Integer("num_key_value_heads", 1, kHeadsMax, config.query_heads));
  if (config.query_heads % config.kv_heads != 0) {
    reader.Fail(absl::InvalidArgumentError(
        absl::StrCat("num_attention_heads is ", config.query_heads,
                     ", a multiple of num_key_value_heads ", config.kv_heads, " expected")));
  }
  if (reader.Find("head_dim") == nullptr && config.hidden_size % config.query_heads != 0) {
    reader.Fail(absl::InvalidArgumentError(
        absl::StrCat("hidden_size is ", config.hidden_size, ", a multiple of num_attention_heads ",
                     config.query_heads, " expected when head_dim is not given")));
  }
  const int64_t head_dim =
      reader.Integer("head_dim", 1, kHeadDimMax, config.hidden_size / config.query_heads);
  if (reader.status().ok() && (head_dim % 8 != 0 || head_dim < 8 || head_dim > kHeadDimMax)) {
    reader.Fail(absl::InvalidArgumentError(absl::StrCat(
        "head_dim is ", head_dim, ", a multiple of 8 in [8, ", kHeadDimMax, "] expected")));
  }
  config.head_dim = static_cast<int>(head_dim);
}

void ReadSpecialTokens(ConfigReader& reader, LlamaConfig& config) {
  if (reader.Find("bos_token_id") != nullptr) {
    config.bos_token =
        static_cast<uint32_t>(reader.Integer("bos_token_id", 0, config.vocab_size - 1));
  }
  const json* eos = reader.Find("eos_token_id");
  if (eos == nullptr) return;
  // One id, or a list of them.
  const json list = eos->is_array() ? *eos : json::array({*eos});
  for (const json& id : list) {
    if (!id.is_number_integer() || id < 0 || id >= config.vocab_size) {
      reader.Fail(absl::InvalidArgumentError(absl::StrCat("eos_token_id is ", eos->dump(),
                                                          ", ids below vocab_size ",
                                                          config.vocab_size, " expected")));
      return;
    }
    config.eos_tokens.push_back(id.get<uint32_t>());
  }
}

void ReadDtype(ConfigReader& reader, LlamaConfig& config) {
  const char* key = reader.Find("torch_dtype") != nullptr ? "torch_dtype" : "dtype";
  const json* dtype = reader.Find(key);
  if (dtype == nullptr) return;
  if (*dtype != "bfloat16" && *dtype != "float16" && *dtype != "float32") {
    reader.Fail(absl::UnimplementedError(
        absl::StrCat(key, " is ", dtype->dump(), ", bfloat16, float16 or float32 expected")));
    return;
  }
  config.dtype = dtype->get<std::string>();
}

}  // namespace

absl::StatusOr<LlamaConfig> ParseLlamaConfig(absl::string_view json_text) {
  const json object = json::parse(json_text.begin(), json_text.end(), nullptr,
                                  /*allow_exceptions=*/false);
  if (object.is_discarded() || !object.is_object()) {
    return absl::InvalidArgumentError("not a JSON object");
  }
  ConfigReader reader(object);
  CheckVariants(reader);
  LlamaConfig config;
  config.vocab_size = reader.Integer("vocab_size", 1, kVocabMax);
  config.hidden_size = reader.Integer("hidden_size", 1, kWidthMax);
  config.intermediate_size = reader.Integer("intermediate_size", 1, kWidthMax);
  config.layers = static_cast<int>(reader.Integer("num_hidden_layers", 1, kLayersMax));
  ReadHeads(reader, config);
  config.rms_norm_eps = reader.Positive("rms_norm_eps", 1e-6);
  config.rope_theta = RopeTheta(reader);
  config.max_positions = reader.Integer("max_position_embeddings", 1, kPositionsMax, 2048);
  config.tied_embeddings = reader.Boolean("tie_word_embeddings", false);
  ReadDtype(reader, config);
  ReadSpecialTokens(reader, config);
  if (!reader.status().ok()) return reader.status();
  return config;
}

absl::StatusOr<LlamaConfig> LoadLlamaConfig(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/config.json");
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  absl::StatusOr<LlamaConfig> config = ParseLlamaConfig(text);
  if (!config.ok()) {
    return absl::Status(config.status().code(),
                        absl::StrCat(path, ": ", config.status().message()));
  }
  return config;
}

}  // namespace terrace::frontend
