#include "services/frontend/llama_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "services/frontend/weight_matrix.h"
#include "tests/services/frontend/checkpoint_writer.h"
#include "tests/services/frontend/plain_llama.h"
#include "tests/services/frontend/row_store_attention.h"
#include "tests/status_matchers.h"

namespace terrace::frontend {
namespace {

using ::terrace::testing::StatusIs;
using ::testing::AllOf;
using testing::FloatTensors;
using ::testing::HasSubstr;
using testing::PlainLlama;
using testing::RowStoreAttention;
using testing::SmallConfig;
using testing::SmallWeights;
using testing::TestDirectory;
using testing::WriteCheckpoint;

constexpr char kTinyModel[] = TERRACE_SOURCE_DIR "/services/frontend/model/tiny";

std::vector<uint32_t> RandomTokens(size_t count, uint32_t vocab, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint32_t> tokens;
  for (size_t i = 0; i < count; ++i) tokens.push_back(random() % vocab);
  return tokens;
}

// Logits of all tokens, `chunk` tokens at a time.
std::vector<float> AllLogits(LlamaModel& model, const std::vector<uint32_t>& tokens, size_t chunk) {
  RowStoreAttention attention(model.config(), attention::Dtype::kFloat32);
  const size_t vocab = static_cast<size_t>(model.config().vocab_size);
  std::vector<float> logits(tokens.size() * vocab);
  for (size_t at = 0; at < tokens.size(); at += chunk) {
    const size_t count = std::min(chunk, tokens.size() - at);
    EXPECT_OK(model.Forward(absl::MakeConstSpan(tokens).subspan(at, count),
                            static_cast<int64_t>(at), attention,
                            absl::MakeSpan(logits).subspan(at * vocab, count * vocab)));
  }
  return logits;
}

void ExpectLikePlain(const nlohmann::json& config, uint32_t seed) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  const TestDirectory directory;
  const FloatTensors weights = SmallWeights(config, seed);
  WriteCheckpoint(directory.path(), config, weights);
  auto model = LlamaModel::Load(directory.path(), 1);
  ASSERT_OK(model);
  const auto tokens = RandomTokens(37, config["vocab_size"].get<uint32_t>(), seed);
  const std::vector<float> got = AllLogits(**model, tokens, tokens.size());
  const testing::Matrix expected = PlainLlama(config, weights).Logits(tokens);
  const size_t vocab = expected[0].size();
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_NEAR(got[i], expected[i / vocab][i % vocab], 2e-4) << "token " << i / vocab;
  }
}

// BLAS may sum in another order for another number of tokens or rows: equal but for fp32 rounding
// of logits of magnitude 10.
void ExpectClose(const std::vector<float>& got, const std::vector<float>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 2e-4) << "at " << i;
}

TEST(LlamaModel, MatchesAPlainForwardPassInDouble) { ExpectLikePlain(SmallConfig(), 1); }

TEST(LlamaModel, MatchesAPlainForwardPassInOtherShapes) {
  nlohmann::json config = SmallConfig();
  config["tie_word_embeddings"] = true;
  config["num_key_value_heads"] = 1;
  config["head_dim"] = 8;
  config["intermediate_size"] = 17;
  config["hidden_size"] = 33;
  ExpectLikePlain(config, 2);
  config["num_key_value_heads"] = 6;
  config["num_hidden_layers"] = 1;
  config["rope_theta"] = 500000.0;
  ExpectLikePlain(config, 3);
}

TEST(LlamaModel, ChunksGiveWhatSingleStepsGive) {
  auto model = LlamaModel::Load(kTinyModel, 1);
  ASSERT_OK(model);
  const auto tokens = RandomTokens(75, 256, 4);
  const std::vector<float> single = AllLogits(**model, tokens, 1);
  for (const size_t chunk : {2, 8, 31, 75}) {
    SCOPED_TRACE(chunk);
    ExpectClose(AllLogits(**model, tokens, chunk), single);
  }
}

TEST(LlamaModel, ThreadsChangeNothingButRounding) {
  const auto tokens = RandomTokens(64, 256, 5);
  std::vector<std::vector<float>> logits;
  for (const int threads : {1, 2, 3}) {
    auto model = LlamaModel::Load(kTinyModel, threads);
    ASSERT_OK(model);
    logits.push_back(AllLogits(**model, tokens, 64));
  }
  ExpectClose(logits[0], logits[1]);
  ExpectClose(logits[0], logits[2]);
}

TEST(LlamaModel, FewerLogitRowsAreTheLastOnes) {
  auto model = LlamaModel::Load(kTinyModel, 1);
  ASSERT_OK(model);
  const auto tokens = RandomTokens(9, 256, 6);
  const std::vector<float> all = AllLogits(**model, tokens, 9);
  const size_t vocab = static_cast<size_t>((*model)->config().vocab_size);
  for (const size_t rows : {0, 1, 8}) {
    RowStoreAttention attention((*model)->config(), attention::Dtype::kFloat32);
    std::vector<float> logits(rows * vocab);
    ASSERT_OK((*model)->Forward(tokens, 0, attention, absl::MakeSpan(logits)));
    ExpectClose(logits,
                std::vector<float>(all.end() - static_cast<int64_t>(logits.size()), all.end()));
  }
}

TEST(LlamaModel, RefusesTokensAndLogitsThatDoNotFit) {
  auto model = LlamaModel::Load(kTinyModel, 1);
  ASSERT_OK(model);
  RowStoreAttention attention((*model)->config(), attention::Dtype::kFloat32);
  std::vector<float> logits(272);
  const auto room = absl::MakeSpan(logits);
  EXPECT_OK((*model)->Forward({271}, 0, attention, room));
  EXPECT_THAT((*model)->Forward({272}, 0, attention, room),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("token 272"), HasSubstr("272 expected"))));
  EXPECT_THAT((*model)->Forward({1}, 0, attention, room.subspan(1)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("271 logits")));
  EXPECT_THAT((*model)->Forward({}, 0, attention, room),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("up to 0 rows")));
}

class FailingAttention : public AttentionBackend {
 public:
  absl::Status Attend(int layer, int64_t, absl::Span<const uint32_t>, absl::Span<const float>,
                      absl::Span<const float>, absl::Span<const float>,
                      absl::Span<float>) override {
    return layer < 2 ? absl::OkStatus() : absl::UnavailableError("layer 2 is away");
  }
};

TEST(LlamaModel, ErrorsOfTheAttentionComeBackAsTheyAre) {
  auto model = LlamaModel::Load(kTinyModel, 1);
  ASSERT_OK(model);
  FailingAttention attention;
  EXPECT_THAT((*model)->Forward({1}, 0, attention, {}),
              StatusIs(absl::StatusCode::kUnavailable, "layer 2 is away"));
}

TEST(LlamaModel, FingerprintFollowsWeightsAndRope) {
  auto fingerprint = [](const nlohmann::json& config, uint32_t seed) {
    const TestDirectory directory;
    WriteCheckpoint(directory.path(), config, SmallWeights(config, seed));
    auto model = LlamaModel::Load(directory.path(), 1);
    return model.ok() ? (*model)->fingerprint() : std::string(model.status().message());
  };
  nlohmann::json config = SmallConfig();
  const std::string first = fingerprint(config, 1);
  EXPECT_EQ(first, fingerprint(config, 1));
  EXPECT_NE(first, fingerprint(config, 2));
  EXPECT_LE(first.size(), 64U);
  config["rope_theta"] = 10001.0;
  EXPECT_NE(first, fingerprint(config, 1));
}

// A matrix of each kind against plain sums, over extents around vector widths.
TEST(WeightMatrix, MultipliesLikePlainLoops) {
  std::mt19937 random(7);
  std::normal_distribution<float> values;
  Workers workers(2);
  for (const bool bfloat16 : {false, true}) {
    for (const int64_t rows : {1, 15, 16, 17, 63, 64, 130}) {
      for (const int64_t tokens : {1, 2, 7, 8, 9, 17}) {
        const int64_t cols = 1 + static_cast<int64_t>(random() % 40);
        std::vector<uint32_t> bits(static_cast<size_t>(rows * cols));
        std::vector<float> weights(bits.size());
        std::vector<std::byte> bytes;
        for (size_t i = 0; i < weights.size(); ++i) {
          weights[i] = values(random);
          std::memcpy(&bits[i], &weights[i], 4);
          if (bfloat16) bits[i] &= 0xffff0000U;
          std::memcpy(&weights[i], &bits[i], 4);
          const auto* raw = reinterpret_cast<const std::byte*>(&bits[i]);
          bytes.insert(bytes.end(), raw + (bfloat16 ? 2 : 0), raw + 4);
        }
        TensorView tensor{"w", bfloat16 ? "BF16" : "F32", {rows, cols}, bytes};
        auto matrix = WeightMatrix::FromTensor(tensor);
        ASSERT_OK(matrix);
        std::vector<float> x(static_cast<size_t>(tokens * cols));
        for (float& value : x) value = values(random);
        std::vector<float> y(static_cast<size_t>(tokens * rows));
        matrix->Multiply(x.data(), tokens, y.data(), workers);
        for (size_t i = 0; i < y.size(); ++i) {
          double expected = 0;
          const size_t row = i % rows;
          for (int64_t c = 0; c < cols; ++c) {
            expected += static_cast<double>(weights[row * cols + c]) * x[i / rows * cols + c];
          }
          ASSERT_NEAR(y[i], expected, 1e-5 * cols) << rows << " x " << cols << ", " << tokens;
        }
        std::vector<float> last(static_cast<size_t>(cols));
        matrix->CopyRow(rows - 1, last.data());
        EXPECT_EQ(last, std::vector<float>(weights.end() - cols, weights.end()));
      }
    }
  }
}

}  // namespace
}  // namespace terrace::frontend
