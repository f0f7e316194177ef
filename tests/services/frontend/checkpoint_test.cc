// Checkpoints that cannot be used: each error names the file, the thing and what is wrong.
#include "services/frontend/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "services/frontend/llama_model.h"
#include "services/frontend/safetensors.h"
#include "tests/services/frontend/checkpoint_writer.h"
#include "tests/status_matchers.h"

namespace terrace::frontend {
namespace {

using ::terrace::testing::StatusIs;
using ::testing::AllOf;
using testing::FloatTensors;
using ::testing::HasSubstr;
using testing::SafetensorsBytes;
using testing::SmallConfig;
using testing::SmallWeights;
using testing::TestDirectory;
using testing::WriteCheckpoint;
using testing::WriteFile;

struct BadFile {
  const char* name;
  std::string bytes;
  absl::StatusCode code;
  const char* message;
};

std::string LengthOnly(uint64_t length) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes;
}

// One tensor "a" with the given entry, over 8 bytes of data.
std::string OneTensor(const std::string& entry) {
  return SafetensorsBytes("{\"a\":" + entry + "}", std::string(8, 'x'));
}

std::vector<BadFile> BadFiles() {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  constexpr auto kLoss = absl::StatusCode::kDataLoss;
  return {
      {"empty", "", kLoss, "0 bytes, at least 8 expected"},
      {"seven_bytes", "1234567", kLoss, "7 bytes, at least 8 expected"},
      {"header_cut", LengthOnly(5) + "{}", kLoss, "header has 5 bytes, but the file holds only 2"},
      {"header_length_absurd", LengthOnly(100'000'001), kInvalid,
       "not a safetensors file: header length 100000001, at most 100000000"},
      {"header_length_overflows", LengthOnly(~uint64_t{0}) + "{}", kInvalid,
       "header length 18446744073709551615"},
      {"foreign", "PK\3\4 this is a zip file", kInvalid, "not a safetensors file"},
      {"header_no_json", SafetensorsBytes("{\"a\":", ""), kInvalid, "not a JSON object"},
      {"header_array", SafetensorsBytes("[]", ""), kInvalid, "not a JSON object"},
      {"entry_no_object", OneTensor("3"), kInvalid, "tensor a: header entry is not an object"},
      {"no_dtype", OneTensor(R"({"shape":[2],"data_offsets":[0,8]})"), kInvalid,
       "tensor a: no dtype"},
      {"no_shape", OneTensor(R"({"dtype":"F32","data_offsets":[0,8]})"), kInvalid, "no shape"},
      {"dtype_unknown", OneTensor(R"({"dtype":"F31","shape":[2],"data_offsets":[0,8]})"), kInvalid,
       "tensor a: unknown dtype \"F31\""},
      {"shape_negative", OneTensor(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"),
       kInvalid, "shape entry -2"},
      {"shape_fraction", OneTensor(R"({"dtype":"F32","shape":[2.5],"data_offsets":[0,8]})"),
       kInvalid, "shape entry 2.5"},
      {"shape_overflow",
       OneTensor(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]})"),
       kInvalid, "far more expected"},
      {"shape_too_large", OneTensor(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})"),
       kInvalid, "8 bytes, 12 expected for F32 [3]"},
      {"shape_too_small", OneTensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,8]})"),
       kInvalid, "8 bytes, 4 expected for F32 [1]"},
      {"offsets_missing", OneTensor(R"({"dtype":"F32","shape":[2]})"), kInvalid, "data_offsets"},
      {"offsets_negative", OneTensor(R"({"dtype":"F32","shape":[2],"data_offsets":[-8,0]})"),
       kInvalid, "data_offsets"},
      {"offsets_backwards", OneTensor(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})"),
       kInvalid, "[8, 0) run backwards"},
      {"data_cut", OneTensor(R"({"dtype":"F32","shape":[3],"data_offsets":[0,12]})"), kLoss,
       "tensor a: ends at byte 12 of the data, but the file holds only 8"},
      {"hole", OneTensor(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})"), kInvalid,
       "tensor a begins at 4, 0 expected"},
      {"bytes_behind", OneTensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})"), kInvalid,
       "4 bytes behind the last tensor"},
      {"overlap",
       SafetensorsBytes(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                        R"("b":{"dtype":"U8","shape":[5],"data_offsets":[3,8]}})",
                        std::string(8, 'x')),
       kInvalid, "tensors a and b overlap"},
      {"named_twice",
       SafetensorsBytes(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                        R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                        std::string(8, 'x')),
       kInvalid, "tensor a is named twice"},
  };
}

class BadSafetensors : public ::testing::TestWithParam<BadFile> {};

TEST_P(BadSafetensors, IsRefusedWithFileAndReason) {
  const TestDirectory directory;
  const std::string path = directory.File("bad.safetensors");
  WriteFile(path, GetParam().bytes);
  EXPECT_THAT(SafetensorsFile::Open(path).status(),
              StatusIs(GetParam().code, AllOf(HasSubstr(path), HasSubstr(GetParam().message))));
}

INSTANTIATE_TEST_SUITE_P(Files, BadSafetensors, ::testing::ValuesIn(BadFiles()),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(Safetensors, ReadsTensorsAtAnyAlignment) {
  const TestDirectory directory;
  const std::string path = directory.File("odd.safetensors");
  const float values[] = {1.5F, -2.25F};
  std::string data = "!";
  data.append(reinterpret_cast<const char*>(values), sizeof(values));
  WriteFile(path, SafetensorsBytes(R"({"__metadata__":{"format":"pt"},)"
                                   R"("b":{"dtype":"U8","shape":[],"data_offsets":[0,1]},)"
                                   R"("f":{"dtype":"F32","shape":[2,1],"data_offsets":[1,9]},)"
                                   R"("none":{"dtype":"F32","shape":[0],"data_offsets":[9,9]}})",
                                   data));
  const auto file = SafetensorsFile::Open(path);
  ASSERT_OK(file);
  EXPECT_EQ(file->tensors().size(), 3U);
  ASSERT_NE(file->Find("f"), nullptr);
  std::vector<float> read(2);
  ASSERT_OK(ReadFloats(*file->Find("f"), absl::MakeSpan(read)));
  EXPECT_THAT(read, ::testing::ElementsAre(1.5F, -2.25F));
  EXPECT_THAT(ReadFloats(*file->Find("b"), absl::MakeSpan(read).subspan(1)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("tensor b: dtype U8")));
  EXPECT_EQ(file->Find("__metadata__"), nullptr);
}

TEST(Safetensors, AnyCutOfAFileIsRefused) {
  const TestDirectory directory;
  const std::string path = directory.File("cut.safetensors");
  const std::string whole = SafetensorsBytes(FloatTensors{{"a", {{2}, {1, 2}}}, {"b", {{1}, {3}}}});
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    WriteFile(path, whole.substr(0, bytes));
    EXPECT_THAT(SafetensorsFile::Open(path).status(), StatusIs(absl::StatusCode::kDataLoss))
        << bytes << " bytes";
  }
  WriteFile(path, whole);
  EXPECT_OK(SafetensorsFile::Open(path));
}

// A flipped bit may give another readable file, but never a crash (the sanitizers watch).
TEST(Safetensors, FlippedBitsInTheHeaderNeverCrash) {
  const TestDirectory directory;
  const std::string path = directory.File("flip.safetensors");
  const std::string whole = SafetensorsBytes(FloatTensors{{"a", {{2}, {1, 2}}}, {"b", {{1}, {3}}}});
  size_t refused = 0;
  for (size_t bit = 0; bit < (whole.size() - 12) * 8; ++bit) {
    std::string flipped = whole;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    WriteFile(path, flipped);
    const auto file = SafetensorsFile::Open(path);
    refused += file.ok() ? 0 : 1;
    if (!file.ok()) continue;
    for (const auto& [name, tensor] : file->tensors()) {
      std::vector<float> values(static_cast<size_t>(tensor.elements()));
      ReadFloats(tensor, absl::MakeSpan(values)).IgnoreError();
    }
  }
  EXPECT_GT(refused, 100U);
}

struct BadModel {
  const char* name;
  std::function<void(nlohmann::json&, FloatTensors&)> spoil;
  absl::StatusCode code;
  std::vector<const char*> message;
};

std::vector<BadModel> BadModels() {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  return {
      {"tensor_missing",
       [](auto&, auto& t) { t.erase("model.layers.1.mlp.up_proj.weight"); },
       absl::StatusCode::kNotFound,
       {"model.layers.1.mlp.up_proj.weight is missing", "[100, 72] expected"}},
      {"head_missing",
       [](auto&, auto& t) { t.erase("lm_head.weight"); },
       absl::StatusCode::kNotFound,
       {"lm_head.weight is missing"}},
      {"norm_missing",
       [](auto&, auto& t) { t.erase("model.norm.weight"); },
       absl::StatusCode::kNotFound,
       {"model.norm.weight is missing", "[72] expected"}},
      {"shape_turned",
       [](auto&, auto& t) {
         t["model.layers.0.mlp.down_proj.weight"].shape = {100, 72};
       },
       kInvalid,
       {"model.safetensors: tensor model.layers.0.mlp.down_proj.weight", "shape [100, 72]",
        "[72, 100] expected"}},
      {"rank_wrong",
       [](auto&, auto& t) {
         t["model.norm.weight"].shape = {1, 72};
       },
       kInvalid,
       {"tensor model.norm.weight: shape [1, 72], [72] expected"}},
      {"heads_disagree_with_config",
       [](auto& c, auto&) { c["num_key_value_heads"] = 3; },
       kInvalid,
       {"self_attn.k_proj.weight", "[96, 72] expected"}},
      {"layers_disagree_with_config",
       [](auto& c, auto&) { c["num_hidden_layers"] = 4; },
       absl::StatusCode::kNotFound,
       {"model.layers.3."}},
      {"bias",
       [](auto&, auto& t) {
         t["model.layers.0.self_attn.q_proj.bias"] = {{1}, {0}};
       },
       absl::StatusCode::kUnimplemented,
       {"model.layers.0.self_attn.q_proj.bias", "biases are not supported"}},
  };
}

class BadCheckpoint : public ::testing::TestWithParam<BadModel> {};

TEST_P(BadCheckpoint, IsRefusedWithTensorAndReason) {
  nlohmann::json config = SmallConfig();
  FloatTensors weights = SmallWeights(config, 1);
  GetParam().spoil(config, weights);
  const TestDirectory directory;
  WriteCheckpoint(directory.path(), config, weights);
  const absl::Status status = LlamaModel::Load(directory.path(), 1).status();
  EXPECT_THAT(status, StatusIs(GetParam().code, HasSubstr(directory.path())));
  for (const char* part : GetParam().message) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, BadCheckpoint, ::testing::ValuesIn(BadModels()),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(Checkpoint, WithoutFilesTheExpectedOneIsNamed) {
  const TestDirectory directory;
  EXPECT_THAT(LlamaModel::Load(directory.path(), 1).status(),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr(directory.File("config.json"))));
  WriteFile(directory.File("config.json"), SmallConfig().dump());
  EXPECT_THAT(
      LlamaModel::Load(directory.path(), 1).status(),
      StatusIs(absl::StatusCode::kNotFound, HasSubstr(directory.File("model.safetensors"))));
}

TEST(Checkpoint, AnIntegerTensorIsNoWeight) {
  const TestDirectory directory;
  WriteFile(directory.File("model.safetensors"),
            SafetensorsBytes(R"({"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}})",
                             std::string(8, '\0')));
  const auto checkpoint = Checkpoint::Open(directory.path());
  ASSERT_OK(checkpoint);
  EXPECT_THAT(checkpoint->Get("a", {2}).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("tensor a: dtype I32, F32, BF16 or F16 expected")));
}

// Two files behind an index.
class ShardedCheckpoint : public ::testing::Test {
 protected:
  void SetUp() override {
    FloatTensors first = SmallWeights(SmallConfig(), 1);
    FloatTensors second;
    for (const char* name : {"lm_head.weight", "model.norm.weight"}) {
      second.insert(first.extract(name));
    }
    for (const auto& [name, tensor] : first) index_["weight_map"][name] = "one.safetensors";
    for (const auto& [name, tensor] : second) index_["weight_map"][name] = "two.safetensors";
    WriteFile(directory_.File("config.json"), SmallConfig().dump());
    WriteFile(directory_.File("one.safetensors"), SafetensorsBytes(first));
    WriteFile(directory_.File("two.safetensors"), SafetensorsBytes(second));
  }

  absl::Status Load() {
    WriteFile(directory_.File("model.safetensors.index.json"), index_.dump());
    return LlamaModel::Load(directory_.path(), 1).status();
  }

  TestDirectory directory_;
  nlohmann::json index_;
};

TEST_F(ShardedCheckpoint, HasTheDigestOfTheSameWeightsInOneFile) {
  ASSERT_OK(Load());
  const auto sharded = Checkpoint::Open(directory_.path());
  const TestDirectory whole_directory;
  WriteCheckpoint(whole_directory.path(), SmallConfig(), SmallWeights(SmallConfig(), 1));
  const auto whole = Checkpoint::Open(whole_directory.path());
  ASSERT_OK(sharded);
  ASSERT_OK(whole);
  EXPECT_EQ(sharded->Digest(), whole->Digest());
}

TEST_F(ShardedCheckpoint, MayNotNameFilesElsewhere) {
  index_["weight_map"]["lm_head.weight"] = "../two.safetensors";
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kInvalidArgument,
                               HasSubstr("lm_head.weight: \"../two.safetensors\"")));
}

TEST_F(ShardedCheckpoint, WithAMissingFileIsRefused) {
  std::filesystem::remove(directory_.File("two.safetensors"));
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kNotFound, HasSubstr("two.safetensors")));
}

TEST_F(ShardedCheckpoint, MustAgreeWithItsIndex) {
  index_["weight_map"]["model.extra"] = "two.safetensors";
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kInvalidArgument,
                               HasSubstr("tensor model.extra is not in two.safetensors")));
  index_ = {{"weight_map", nlohmann::json::object()}};
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no weight_map")));
}

TEST_F(ShardedCheckpoint, MayNotHoldATensorTwice) {
  WriteFile(directory_.File("two.safetensors"), SafetensorsBytes(SmallWeights(SmallConfig(), 1)));
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kInvalidArgument,
                               HasSubstr("stands in another file too")));
}

}  // namespace
}  // namespace terrace::frontend
