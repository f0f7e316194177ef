// Texts through the fake service: scores, generated text, and what happens when it goes away.
#include "services/frontend/policy_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "services/frontend/run_report.h"
#include "services/frontend/token_stream.h"
#include "tests/services/frontend/checkpoint_writer.h"
#include "tests/services/frontend/fake_attention_service.h"
#include "tests/services/frontend/row_store_attention.h"
#include "tests/status_matchers.h"

namespace terrace::frontend {
namespace {

using ::terrace::testing::StatusIs;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using testing::FakeServer;
using testing::Fault;
using testing::FaultPlan;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::RowStoreAttention;
using ::testing::SizeIs;
using testing::SmallConfig;
using testing::SmallWeights;
using testing::TestDirectory;
using testing::WriteCheckpoint;

constexpr char kPrompt[] = "It was a dark and stormy night";
constexpr int64_t kPromptTokens = sizeof(kPrompt);  // with bos
constexpr char kContinuation[] = "; the rain";
constexpr int kLayers = 3;

attention::Policy Sparse() {
  attention::SparqPolicy policy;
  policy.r = 16;
  policy.k = 8;
  return policy;
}

class PolicyRunTest : public ::testing::Test {
 protected:
  void SetUp() override {
    WriteCheckpoint(directory_.path(), SmallConfig(), SmallWeights(SmallConfig(), 1));
    auto model = LlamaModel::Load(directory_.path(), 1);
    ASSERT_OK(model);
    model_ = *std::move(model);
    auto tokenizer = Tokenizer::ForModel(directory_.path(), model_->config());
    ASSERT_OK(tokenizer);
    tokenizer_ = *std::move(tokenizer);
    SequenceSpec spec = SpecOf(model_->config(), model_->fingerprint());
    spec.storage = attention::Dtype::kFloat32;
    TerraceOptions options;
    options.address = server_.address();
    auto backend = TerraceBackend::Connect(options, spec);
    ASSERT_OK(backend);
    backend_ = *std::move(backend);
    stream_options_.chunk_tokens = 7;
    stream_options_.retry_interval = absl::Milliseconds(1);
    stream_options_.notice = [this](absl::string_view line) { notices_.emplace_back(line); };
  }

  // Prefills a new stream and runs one policy on it.
  absl::Status Run(const attention::Policy& policy, PolicyResult& result, bool keep = false) {
    auto base = TokenStream::Open(model_.get(), backend_.get(), stream_options_);
    if (!base.ok()) return base.status();
    std::vector<float> logits(static_cast<size_t>(model_->config().vocab_size));
    absl::Status status =
        base->Prefill(tokenizer_.EncodeDocument(kPrompt), absl::MakeSpan(logits), nullptr);
    if (!status.ok()) return status;
    PolicyRun run;
    run.base = &*base;
    run.logits = logits;
    run.tokenizer = &tokenizer_;
    run.token_bytes = backend_->spec().token_bytes();
    run.score_tokens = tokenizer_.Encode(kContinuation);
    run.generate_tokens = 12;
    run.keep_sequence = keep;
    status = run.Try(policy, result);
    base->Close(status);
    return status;
  }

  void ExpectSame(const PolicyResult& got, const PolicyResult& expected) {
    EXPECT_EQ(got.text, expected.text);
    EXPECT_EQ(got.bits_per_byte, expected.bits_per_byte);
    EXPECT_EQ(got.score.account.rows(), expected.score.account.rows());
    EXPECT_EQ(got.generate.account.rows(), expected.generate.account.rows());
    EXPECT_EQ(got.generate.account.answers, expected.generate.account.answers);
    EXPECT_THAT(server_.service().complaints(), IsEmpty());
  }

  TestDirectory directory_;
  FakeServer server_{directory_.File("socket")};
  std::unique_ptr<LlamaModel> model_;
  Tokenizer tokenizer_;
  std::unique_ptr<TerraceBackend> backend_;
  StreamOptions stream_options_;
  std::vector<std::string> notices_;
};

TEST_F(PolicyRunTest, ScoresAndGeneratesLikeTheModelAlone) {
  PolicyResult result;
  ASSERT_OK(Run(attention::DensePolicy(), result));
  // The same text in process, in one pass per token.
  RowStoreAttention attention(model_->config(), attention::Dtype::kFloat32);
  const auto vocab = static_cast<size_t>(model_->config().vocab_size);
  const std::vector<uint32_t> tokens =
      tokenizer_.EncodeDocument(std::string(kPrompt) + kContinuation);
  std::vector<float> logits(tokens.size() * vocab);
  ASSERT_OK(model_->Forward(tokens, 0, attention, absl::MakeSpan(logits)));
  double bits = 0;
  for (size_t i = kPromptTokens; i < tokens.size(); ++i) {
    bits += TokenBits(absl::MakeConstSpan(logits).subspan((i - 1) * vocab, vocab), tokens[i]);
  }
  ASSERT_TRUE(result.bits_per_byte.has_value());
  // One pass here, chunks and steps there: equal to rounding.
  EXPECT_NEAR(*result.bits_per_byte, bits / static_cast<double>(tokens.size() - kPromptTokens),
              1e-5);
  std::string text;
  std::vector<float> next(logits.begin() + (kPromptTokens - 1) * vocab,
                          logits.begin() + kPromptTokens * vocab);
  for (int64_t i = 0; i < 12; ++i) {
    const uint32_t token = GreedyToken(next);
    if (token == 257) break;
    text += tokenizer_.Decode(token);
    ASSERT_OK(model_->Forward({token}, kPromptTokens + i, attention, absl::MakeSpan(next)));
  }
  EXPECT_EQ(result.text, text);
  EXPECT_THAT(server_.service().complaints(), IsEmpty());
}

TEST_F(PolicyRunTest, PrefillRunsInChunksAndTheRestInSingleSteps) {
  PolicyResult result;
  ASSERT_OK(Run(Sparse(), result));
  const std::vector<int64_t> steps = server_.service().step_tokens();
  ASSERT_GT(steps.size(), 5U);
  EXPECT_THAT(std::vector<int64_t>(steps.begin(), steps.begin() + 5), ElementsAre(7, 7, 7, 7, 3));
  EXPECT_THAT(std::vector<int64_t>(steps.begin() + 5, steps.end()), Each(1));
}

TEST_F(PolicyRunTest, DenseReadsWhatDenseReadsAndSparseLess) {
  PolicyResult dense;
  ASSERT_OK(Run(attention::DensePolicy(), dense));
  EXPECT_EQ(dense.score.steps, static_cast<int64_t>(sizeof(kContinuation)) - 1);
  EXPECT_DOUBLE_EQ(dense.score.ratio_to_dense(), 1.0);
  EXPECT_DOUBLE_EQ(dense.generate.ratio_to_dense(), 1.0);
  PolicyResult sparse;
  ASSERT_OK(Run(Sparse(), sparse));
  // 8 rows of each of 2 KV heads in each layer.
  EXPECT_EQ(sparse.score.account.rows(), static_cast<uint64_t>(sparse.score.steps) * kLayers * 16);
  EXPECT_EQ(sparse.score.dense_bytes, dense.score.dense_bytes);
  EXPECT_LT(sparse.score.ratio_to_dense(), 0.3);
  EXPECT_DOUBLE_EQ(sparse.score.account.alpha_mean(), 0.75);
  EXPECT_NE(sparse.bits_per_byte, dense.bits_per_byte);
}

TEST_F(PolicyRunTest, SequencesAreClosedUnlessTheyAreKept) {
  PolicyResult result;
  ASSERT_OK(Run(Sparse(), result));
  EXPECT_THAT(server_.service().open_handles(), IsEmpty());
  EXPECT_EQ(result.handle, "");
  PolicyResult kept;
  ASSERT_OK(Run(Sparse(), kept, /*keep=*/true));
  EXPECT_THAT(server_.service().open_handles(), ElementsAre(kept.handle));
}

TEST_F(PolicyRunTest, WithoutReconnectTheErrorSaysWhatToDo) {
  FaultPlan plan;
  plan.step = 20;
  server_.service().Plan(plan);
  PolicyResult result;
  const absl::Status status = Run(Sparse(), result);
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable,
                               AllOf(HasSubstr("killed"), HasSubstr("Sequence sequence-2 had 32"),
                                     HasSubstr("--reconnect"))));
  EXPECT_THAT(notices_, IsEmpty());
}

// The service dies at every step in turn, with nothing lost, with all but a prefix lost and with
// everything lost: the output is the one of an undisturbed run.
TEST_F(PolicyRunTest, TheOutputDoesNotDependOnALostService) {
  PolicyResult undisturbed;
  ASSERT_OK(Run(Sparse(), undisturbed));
  const int64_t steps = server_.service().steps();
  stream_options_.reconnect = absl::Minutes(1);
  int variant = 0;
  for (int64_t step = 0; step < steps; step += 4) {
    for (const Fault fault : {Fault::kLost, Fault::kDrain}) {
      FaultPlan plan;
      plan.step = server_.service().steps() + step;
      plan.fault = fault;
      plan.unanswered_calls = variant % 3;
      const int64_t kept[] = {1 << 30, kPromptTokens + 3, kPromptTokens, 20, 1, 0};
      plan.tokens_kept = kept[variant % 6];
      plan.forget = variant % 7 == 6;
      ++variant;
      SCOPED_TRACE(::testing::Message() << "step " << step << ", kept " << plan.tokens_kept
                                        << ", forget " << plan.forget);
      server_.service().Plan(plan);
      notices_.clear();
      PolicyResult result;
      ASSERT_OK(Run(Sparse(), result));
      ASSERT_NO_FATAL_FAILURE(ExpectSame(result, undisturbed));
      EXPECT_GE(notices_.size(), 2U);
      EXPECT_THAT(notices_.front(), HasSubstr("waiting up to 1m"));
      EXPECT_THAT(notices_.back(), HasSubstr("is back"));
    }
  }
}

// The listening socket itself goes away and comes back, between two steps of one stream.
TEST_F(PolicyRunTest, AStreamSurvivesARestartOfTheServer) {
  auto stream = TokenStream::Open(model_.get(), backend_.get(), stream_options_);
  ASSERT_OK(stream);
  std::vector<float> logits(static_cast<size_t>(model_->config().vocab_size));
  ASSERT_OK(stream->Prefill({256, 1, 2, 3}, absl::MakeSpan(logits), nullptr));
  server_.Stop();
  EXPECT_THAT(stream->Step(4, absl::MakeSpan(logits)),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("--reconnect")));
  stream_options_.reconnect = absl::Minutes(1);
  server_.Start();
  stream = TokenStream::Open(model_.get(), backend_.get(), stream_options_);
  ASSERT_OK(stream);
  ASSERT_OK(stream->Prefill({256, 1, 2, 3}, absl::MakeSpan(logits), nullptr));
  server_.Stop();
  server_.Start();
  ASSERT_OK(stream->Step(4, absl::MakeSpan(logits)));
  EXPECT_THAT(notices_.back(), HasSubstr("is back"));
  EXPECT_THAT(server_.service().complaints(), IsEmpty());
}

TEST_F(PolicyRunTest, AServiceThatStaysAwayIsGivenUp) {
  stream_options_.reconnect = absl::Milliseconds(20);
  FaultPlan plan;
  plan.step = 4;
  plan.unanswered_calls = 1 << 30;
  server_.service().Plan(plan);
  PolicyResult result;
  EXPECT_THAT(Run(Sparse(), result),
              StatusIs(absl::StatusCode::kUnavailable,
                       AllOf(HasSubstr("starting"), HasSubstr("did not come back within 20ms"))));
}

TEST_F(PolicyRunTest, OtherErrorsAreNotRetried) {
  stream_options_.reconnect = absl::Minutes(1);
  FaultPlan plan;
  plan.step = 4;
  plan.fault = Fault::kItemError;
  server_.service().Plan(plan);
  PolicyResult result;
  EXPECT_THAT(Run(Sparse(), result), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(server_.service().steps(), 5);
}

TEST_F(PolicyRunTest, AnInterruptEndsTheRun) {
  int asked = 0;
  stream_options_.interrupted = [&asked] { return ++asked > 8; };
  PolicyResult result;
  EXPECT_THAT(Run(Sparse(), result), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(server_.service().steps(), 8 * kLayers);
}

TEST(TokenBits, AreTheLogarithmOfTheSoftmax) {
  const std::vector<float> logits = {0.0F, std::log(3.0F), 1000.0F - 1000.0F};
  EXPECT_NEAR(TokenBits(logits, 1), -std::log2(3.0 / 5.0), 1e-6);
  EXPECT_NEAR(TokenBits(logits, 0), -std::log2(1.0 / 5.0), 1e-6);
  EXPECT_NEAR(TokenBits(std::vector<float>{1000.0F, -1000.0F}, 1), 2000 / std::log(2.0), 1e-6);
  EXPECT_EQ(GreedyToken({1.0F, 3.0F, 3.0F}), 1U);
}

PolicyResult SampleResult(std::string text) {
  PolicyResult result;
  result.policy = "sparq:r=16,k=128";
  result.bits_per_byte = 1.25;
  result.score.steps = 4;
  result.score.wall = absl::Seconds(2);
  result.score.dense_bytes = 40960;
  result.score.account.host = {80, 4096, 1024, 0, 5120};
  result.score.account.answers = 12;
  result.score.account.alpha_sum = 9;
  result.score.account.alpha_count = 12;
  result.score.account.alpha_min = 0.5F;
  result.text = std::move(text);
  return result;
}

TEST(RunReport, JsonCarriesEveryFigurePerStep) {
  RunReport report;
  report.policies.push_back(SampleResult("caf\xc3\xa9"));
  const auto json = nlohmann::json::parse(report.Json());
  const auto& policy = json["policies"][0];
  EXPECT_EQ(policy["policy"], "sparq:r=16,k=128");
  EXPECT_EQ(policy["bits_per_byte"], 1.25);
  EXPECT_EQ(policy["tokens_per_second"], 2.0);
  EXPECT_EQ(policy["rows_per_step"]["host"], 20.0);
  EXPECT_EQ(policy["bytes_per_step"]["host"], 1280.0);
  EXPECT_EQ(policy["bytes_per_step"]["total"], 1280.0);
  EXPECT_EQ(policy["physical_bytes_per_step"]["host"], 1280.0);
  EXPECT_EQ(policy["dense_bytes_per_step"], 10240.0);
  EXPECT_EQ(policy["ratio_to_dense"], 0.125);
  EXPECT_EQ(policy["alpha_mean"], 0.75);
  EXPECT_EQ(policy["alpha_min"], 0.5);
  EXPECT_EQ(policy["generate"]["steps"], 0);
  EXPECT_EQ(policy["text"], "caf\xc3\xa9");
  EXPECT_EQ(policy["text_encoding"], "utf-8");
}

TEST(RunReport, JsonIsUtf8WhateverWasGenerated) {
  const char* broken[] = {"\xff",         "\xc3",
                          "a\x80z",       "\xed\xa0\x80",
                          "\xc0\x80",     "\xf4\x90\x80\x80",
                          "\xe0\x80\x80", "\xf0\x8f\xbf\xbf"};
  for (const char* text : broken) {
    RunReport report;
    report.policies.push_back(SampleResult(text));
    const auto json = nlohmann::json::parse(report.Json());
    const auto& policy = json["policies"][0];
    EXPECT_EQ(policy["text_encoding"], "latin-1");
    // Every byte comes back as the character of its number.
    std::string bytes;
    const std::string utf8 = policy["text"];
    for (size_t i = 0; i < utf8.size(); ++i) {
      const auto lead = static_cast<unsigned char>(utf8[i]);
      if (lead < 0x80) {
        bytes.push_back(utf8[i]);
      } else {
        bytes.push_back(static_cast<char>((lead & 3) << 6 | (utf8[++i] & 0x3f)));
      }
    }
    EXPECT_EQ(bytes, text);
  }
}

TEST(RunReport, TableHasAColumnPerPolicyAndNoIdleTiers) {
  RunReport report;
  report.policies.push_back(SampleResult(""));
  report.policies.push_back(SampleResult(""));
  report.policies[1].policy = "dense";
  report.policies[1].bits_per_byte.reset();
  const std::string table = report.Table();
  EXPECT_THAT(table,
              AllOf(HasSubstr("sparq:r=16,k=128     dense"), HasSubstr("1.2500         -"),
                    HasSubstr("rows per step, host"), HasSubstr("1.2 KiB"), HasSubstr("0.1250")));
  EXPECT_THAT(table, Not(HasSubstr("gpu")));
  EXPECT_THAT(table, Not(HasSubstr("disk")));
}

}  // namespace
}  // namespace terrace::frontend
