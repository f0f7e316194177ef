#include "services/frontend/llama_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "services/frontend/tokenizer.h"
#include "tests/services/frontend/checkpoint_writer.h"
#include "tests/status_matchers.h"

namespace terrace::frontend {
namespace {

using nlohmann::json;
using ::terrace::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::SmallConfig;
using testing::TestDirectory;
using testing::WriteFile;

struct BadConfig {
  const char* name;
  std::function<void(json&)> spoil;
  absl::StatusCode code;
  const char* message;
};

std::vector<BadConfig> BadConfigs() {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  constexpr auto kNot = absl::StatusCode::kUnimplemented;
  return {
      {"other_architecture", [](json& c) { c["architectures"] = {"MistralForCausalLM"}; }, kNot,
       "architectures is [\"MistralForCausalLM\"]: only LlamaForCausalLM"},
      {"other_type", [](json& c) { c["model_type"] = "qwen2"; }, kNot, "model_type is \"qwen2\""},
      {"no_architecture", [](json& c) { c.erase("architectures"), c.erase("model_type"); }, kNot,
       "only LlamaForCausalLM"},
      {"rope_scaling",
       [](json& c) {
         c["rope_scaling"] = {{"rope_type", "llama3"}};
       },
       kNot, "rope_scaling is {\"rope_type\":\"llama3\"}: RoPE scaling is not supported"},
      {"rope_parameters",
       [](json& c) {
         c["rope_parameters"] = {{"rope_type", "yarn"}};
       },
       kNot, "rope_parameters.rope_type is \"yarn\""},
      {"attention_bias", [](json& c) { c["attention_bias"] = true; }, kNot,
       "attention_bias is true"},
      {"mlp_bias", [](json& c) { c["mlp_bias"] = true; }, kNot, "mlp_bias is true"},
      {"gelu", [](json& c) { c["hidden_act"] = "gelu"; }, kNot, "hidden_act is \"gelu\""},
      {"quantised",
       [](json& c) {
         c["quantization_config"] = {{"bits", 4}};
       },
       kNot, "quantised checkpoints"},
      {"sliding_window", [](json& c) { c["sliding_window"] = 4096; }, kNot,
       "sliding_window is 4096"},
      {"partial_rotary", [](json& c) { c["partial_rotary_factor"] = 0.5; }, kNot,
       "partial_rotary_factor is 0.5"},
      {"fp8", [](json& c) { c["torch_dtype"] = "float8_e4m3fn"; }, kNot, "torch_dtype is"},
      {"odd_group", [](json& c) { c["num_key_value_heads"] = 4; }, kInvalid,
       "num_attention_heads is 6, a multiple of num_key_value_heads 4 expected"},
      {"head_dim_odd", [](json& c) { c["head_dim"] = 12; }, kInvalid,
       "head_dim is 12, a multiple of 8"},
      {"head_dim_large", [](json& c) { c["head_dim"] = 520; }, kInvalid, "head_dim is 520"},
      {"head_dim_absent_and_uneven",
       [](json& c) {
         c.erase("head_dim"), c["num_attention_heads"] = 7, c["num_key_value_heads"] = 1;
       },
       kInvalid, "hidden_size is 72, a multiple of num_attention_heads 7"},
      {"hidden_missing", [](json& c) { c.erase("hidden_size"); }, kInvalid,
       "hidden_size is missing"},
      {"layers_zero", [](json& c) { c["num_hidden_layers"] = 0; }, kInvalid,
       "num_hidden_layers is 0, an integer in [1, 1024]"},
      {"layers_many", [](json& c) { c["num_hidden_layers"] = 1025; }, kInvalid,
       "num_hidden_layers is 1025"},
      {"layers_text", [](json& c) { c["num_hidden_layers"] = "8"; }, kInvalid,
       "num_hidden_layers is \"8\""},
      {"vocab_huge", [](json& c) { c["vocab_size"] = 18446744073709551615ULL; }, kInvalid,
       "vocab_size is 18446744073709551615"},
      {"theta_zero", [](json& c) { c["rope_theta"] = 0; }, kInvalid,
       "rope_theta is 0, a positive number"},
      {"tied_text", [](json& c) { c["tie_word_embeddings"] = "yes"; }, kInvalid,
       "tie_word_embeddings is \"yes\""},
      {"eos_beyond", [](json& c) { c["eos_token_id"] = 270; }, kInvalid,
       "eos_token_id is 270, ids below vocab_size 270"},
  };
}

class BadLlamaConfig : public ::testing::TestWithParam<BadConfig> {};

TEST_P(BadLlamaConfig, IsRefusedWithKeyAndReason) {
  json config = SmallConfig();
  GetParam().spoil(config);
  EXPECT_THAT(ParseLlamaConfig(config.dump()).status(),
              StatusIs(GetParam().code, HasSubstr(GetParam().message)));
}

INSTANTIATE_TEST_SUITE_P(Configs, BadLlamaConfig, ::testing::ValuesIn(BadConfigs()),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(LlamaConfig, ReadsEveryField) {
  json object = SmallConfig();
  object["eos_token_id"] = {257, 258};
  object["bos_token_id"] = 256;
  const auto config = ParseLlamaConfig(object.dump());
  ASSERT_OK(config);
  EXPECT_EQ(config->vocab_size, 270);
  EXPECT_EQ(config->hidden_size, 72);
  EXPECT_EQ(config->intermediate_size, 100);
  EXPECT_EQ(config->layers, 3);
  EXPECT_EQ(config->query_width(), 6 * 32);
  EXPECT_EQ(config->kv_width(), 2 * 32);
  EXPECT_EQ(config->rope_theta, 10000.0);
  EXPECT_EQ(config->rms_norm_eps, 1e-5);
  EXPECT_EQ(config->max_positions, 512);
  EXPECT_FALSE(config->tied_embeddings);
  EXPECT_EQ(config->dtype, "float32");
  EXPECT_EQ(config->bos_token, 256U);
  EXPECT_THAT(config->eos_tokens, ElementsAre(257, 258));
}

TEST(LlamaConfig, DefaultsFollowTheLibraryThatWritesTheFile) {
  json object = SmallConfig();
  object["hidden_size"] = 96;
  for (const char* key : {"head_dim", "num_key_value_heads", "rope_theta", "rms_norm_eps",
                          "tie_word_embeddings", "torch_dtype", "eos_token_id", "architectures"}) {
    object[key] = nullptr;
  }
  object["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 77.0}};
  object["dtype"] = "bfloat16";
  const auto config = ParseLlamaConfig(object.dump());
  ASSERT_OK(config);
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_EQ(config->kv_heads, 6);
  EXPECT_EQ(config->rope_theta, 77.0);
  EXPECT_EQ(config->rms_norm_eps, 1e-6);
  EXPECT_FALSE(config->tied_embeddings);
  EXPECT_EQ(config->dtype, "bfloat16");
  EXPECT_TRUE(config->eos_tokens.empty());
}

TEST(LlamaConfig, MalformedTextIsRefused) {
  for (const char* text : {"", "{", "[]", "null", "{\"a\":}"}) {
    EXPECT_THAT(ParseLlamaConfig(text).status(),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not a JSON object")))
        << text;
  }
}

LlamaConfig ByteConfig(int64_t vocab) {
  LlamaConfig config;
  config.vocab_size = vocab;
  config.eos_tokens = {257};
  return config;
}

TEST(Tokenizer, EveryByteIsItsToken) {
  const TestDirectory directory;
  const auto tokenizer = Tokenizer::ForModel(directory.path(), ByteConfig(272));
  ASSERT_OK(tokenizer);
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all.push_back(static_cast<char>(byte));
  const std::vector<uint32_t> tokens = tokenizer->EncodeDocument(all);
  ASSERT_EQ(tokens.size(), 257U);
  EXPECT_EQ(tokens[0], 256U);
  std::string decoded;
  for (const uint32_t token : tokens) decoded += tokenizer->Decode(token);
  EXPECT_EQ(decoded, all);
  EXPECT_EQ(tokenizer->Encode("a\xff"), (std::vector<uint32_t>{'a', 255}));
  EXPECT_THAT(tokenizer->EncodeDocument(""), ElementsAre(256));
  EXPECT_TRUE(tokenizer->EndsText(257));
  EXPECT_FALSE(tokenizer->EndsText(256));
  EXPECT_EQ(tokenizer->Decode(271), "");
}

TEST(Tokenizer, TheConfigurationSaysWhatBeginsAndEndsAText) {
  const TestDirectory directory;
  const struct {
    int64_t vocab;
    std::optional<uint32_t> bos;
    std::vector<uint32_t> eos;
    std::vector<uint32_t> document;
  } cases[] = {
      {256, std::nullopt, {}, {'a'}},      {256, 1, {2}, {1, 'a'}}, {256, 255, {0, 2}, {255, 'a'}},
      {257, std::nullopt, {}, {256, 'a'}}, {258, 1, {2}, {1, 'a'}}, {272, 257, {258}, {257, 'a'}},
      {272, 256, {257, 0}, {256, 'a'}},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.vocab);
    LlamaConfig config;
    config.vocab_size = c.vocab;
    config.bos_token = c.bos;
    config.eos_tokens = c.eos;
    const auto tokenizer = Tokenizer::ForModel(directory.path(), config);
    ASSERT_OK(tokenizer);
    EXPECT_EQ(tokenizer->EncodeDocument("a"), c.document);
    EXPECT_THAT(tokenizer->Encode("a"), ElementsAre('a'));
    for (uint32_t token = 0; token < c.vocab; ++token) {
      EXPECT_EQ(tokenizer->EndsText(token), std::count(c.eos.begin(), c.eos.end(), token) > 0);
    }
  }
}

TEST(Tokenizer, RefusesModelsThatAreNotByteLevel) {
  const TestDirectory directory;
  for (const int64_t vocab : {256, 511}) {
    EXPECT_OK(Tokenizer::ForModel(directory.path(), ByteConfig(vocab)));
  }
  for (const int64_t vocab : {1, 255, 512, 32000}) {
    EXPECT_THAT(Tokenizer::ForModel(directory.path(), ByteConfig(vocab)).status(),
                StatusIs(absl::StatusCode::kUnimplemented,
                         HasSubstr("vocab_size is " + std::to_string(vocab))));
  }
  WriteFile(directory.File("tokenizer.json"), "{}");
  EXPECT_THAT(Tokenizer::ForModel(directory.path(), ByteConfig(272)).status(),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("brings tokenizer.json")));
}

TEST(Tokenizer, ControlsAreEscapedAndAllElseStays) {
  EXPECT_EQ(EscapeControls("a\tb\nc"), "a\tb\nc");
  EXPECT_EQ(EscapeControls(std::string("\0\x1b[2J\r\x7f", 7)), "\\x00\\x1b[2J\\x0d\\x7f");
  EXPECT_EQ(EscapeControls("\xc3\xa9\xff"), "\xc3\xa9\xff");
}

}  // namespace
}  // namespace terrace::frontend
