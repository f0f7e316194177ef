// The client side of AttentionService against a fake service that checks every request.
#include "services/frontend/terrace_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "services/frontend/llama_model.h"
#include "tests/services/frontend/checkpoint_writer.h"
#include "tests/services/frontend/fake_attention_service.h"
#include "tests/services/frontend/row_store_attention.h"
#include "tests/status_matchers.h"

namespace terrace::frontend {
namespace {

using ::terrace::testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::FakeServer;
using testing::Fault;
using testing::FaultPlan;
using ::testing::FloatNear;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pointwise;
using testing::RowStoreAttention;
using testing::SmallConfig;
using testing::SmallWeights;
using testing::TestDirectory;
using testing::WriteCheckpoint;

class TerraceBackendTest : public ::testing::Test {
 protected:
  void SetUp() override {
    WriteCheckpoint(directory_.path(), SmallConfig(), SmallWeights(SmallConfig(), 1));
    auto model = LlamaModel::Load(directory_.path(), 1);
    ASSERT_OK(model);
    model_ = *std::move(model);
    options_.address = server_.address();
  }

  void Connect(attention::Dtype storage = attention::Dtype::kBFloat16) {
    SequenceSpec spec = SpecOf(model_->config(), model_->fingerprint());
    spec.storage = storage;
    auto backend = TerraceBackend::Connect(options_, spec);
    ASSERT_OK(backend);
    backend_ = *std::move(backend);
    auto sequence = backend_->Open();
    ASSERT_OK(sequence);
    sequence_ = *std::move(sequence);
    backend_->Bind(sequence_, attention::DensePolicy());
  }

  // Logits of all of `tokens`, `chunk` at a time.
  absl::StatusOr<std::vector<float>> Run(AttentionBackend& attention, size_t chunk) {
    const auto vocab = static_cast<size_t>(model_->config().vocab_size);
    std::vector<float> logits(kTokens.size() * vocab);
    for (size_t at = 0; at < kTokens.size(); at += chunk) {
      const size_t count = std::min(chunk, kTokens.size() - at);
      absl::Status status =
          model_->Forward(absl::MakeConstSpan(kTokens).subspan(at, count), static_cast<int64_t>(at),
                          attention, absl::MakeSpan(logits).subspan(at * vocab, count * vocab));
      if (!status.ok()) return status;
    }
    return logits;
  }

  // The error of a run whose step number `step` suffers `fault`.
  absl::Status RunWith(Fault fault, int64_t step) {
    FaultPlan plan;
    plan.step = step;
    plan.fault = fault;
    server_.service().Plan(plan);
    return Run(*backend_, 4).status();
  }

  const std::vector<uint32_t> kTokens = {256, 7, 99, 0, 255, 13, 14, 200, 31, 32, 33};
  TestDirectory directory_;
  FakeServer server_{directory_.File("socket")};
  std::unique_ptr<LlamaModel> model_;
  TerraceOptions options_;
  std::unique_ptr<TerraceBackend> backend_;
  SequenceState sequence_;
};

TEST_F(TerraceBackendTest, GivesTheBitsOfTheSameAttentionInProcess) {
  for (const auto storage :
       {attention::Dtype::kFloat32, attention::Dtype::kBFloat16, attention::Dtype::kFloat16}) {
    for (const size_t chunk : {1, 4, 11}) {
      Connect(storage);
      RowStoreAttention local(model_->config(), storage);
      const auto expected = Run(local, chunk);
      ASSERT_OK(expected);
      const auto got = Run(*backend_, chunk);
      ASSERT_OK(got);
      EXPECT_EQ(*got, *expected);
    }
  }
  EXPECT_THAT(server_.service().complaints(), IsEmpty());
}

TEST_F(TerraceBackendTest, DescribesTheSequenceAndTheStep) {
  options_.tenant = "alice";
  options_.mode = RemoteMode::kPartial;
  options_.step_deadline = absl::Milliseconds(90'250);
  Connect(attention::Dtype::kFloat16);
  EXPECT_EQ(server_.service().last_tenant(), "alice");
  const v1::SequenceSpec spec = server_.service().last_spec();
  EXPECT_EQ(spec.geometry().layers(), 3U);
  EXPECT_EQ(spec.geometry().query_heads(), 6U);
  EXPECT_EQ(spec.geometry().kv_heads(), 2U);
  EXPECT_EQ(spec.geometry().head_dim(), 32U);
  EXPECT_EQ(spec.geometry().storage_dtype(), v1::DTYPE_FLOAT16);
  EXPECT_EQ(spec.index_format(), v1::INDEX_FORMAT_INT8);
  EXPECT_EQ(spec.model_fingerprint(), model_->fingerprint());
  attention::SparqPolicy policy;
  policy.r = 16;
  policy.k = 128;
  policy.window = 32;
  policy.sinks = 4;
  policy.group_score = attention::GroupScore::kMaxProb;
  policy.value_mean = attention::ValueMean::kResidual;
  backend_->Bind(sequence_, policy);
  ASSERT_OK(Run(*backend_, 1));
  const v1::AttendRequest step = server_.service().last_request();
  EXPECT_EQ(step.layer(), 2U);
  EXPECT_EQ(step.mode(), v1::REMOTE_MODE_PARTIAL);
  EXPECT_EQ(step.step_deadline().seconds(), 90);
  EXPECT_EQ(step.step_deadline().nanos(), 250'000'000);
  EXPECT_EQ(step.items(0).position(), 10U);
  EXPECT_THAT(step.items(0).token_ids(), ElementsAre(33));
  const v1::SparqPolicy& sent = step.items(0).policy().sparq();
  EXPECT_EQ(sent.r(), 16U);
  EXPECT_EQ(sent.k(), 128U);
  EXPECT_EQ(sent.window(), 32U);
  EXPECT_EQ(sent.sinks(), 4U);
  EXPECT_EQ(sent.group_score(), v1::GROUP_SCORE_MAX_PROB);
  EXPECT_EQ(sent.value_mean(), v1::VALUE_MEAN_RESIDUAL);
}

TEST_F(TerraceBackendTest, AccountsAreSummedOnce) {
  Connect();
  ASSERT_OK(Run(*backend_, 1));
  const ReadAccount account = backend_->TakeAccount();
  // 3 layers, 2 KV heads, 1 + 2 + ... + 11 rows each.
  EXPECT_EQ(account.host.rows, 3U * 2U * 66U);
  EXPECT_EQ(account.host.row_bytes, account.host.rows * 2 * 32 * 2);
  EXPECT_EQ(account.logical_bytes(), account.host.row_bytes);
  EXPECT_EQ(account.answers, 33U);
  EXPECT_EQ(account.alpha_count, 33U * 6U);
  EXPECT_EQ(account.alpha_mean(), 1.0);
  EXPECT_EQ(backend_->TakeAccount().answers, 0U);
}

TEST_F(TerraceBackendTest, StepsFitTheLimitsOfTheService) {
  // One token: 6 query heads, 2 x 2 KV heads, 32 floats each, and its id.
  constexpr int64_t kToken = 10 * 32 * 4 + 8;
  constexpr int64_t kEnvelope = 64 * 1024;
  const struct {
    int64_t message_bytes;
    uint32_t step_tokens;
    int64_t wanted;
    int64_t expected;  // 0: an error
  } cases[] = {{1 << 26, 1024, 256, 256},
               {1 << 26, 256, 256, 256},
               {1 << 26, 255, 256, 255},
               {1 << 26, 1, 256, 1},
               {1 << 26, 0, 256, 0},
               {kEnvelope + 16 * kToken, 1024, 256, 16},
               {kEnvelope + 16 * kToken - 1, 1024, 256, 15},
               {kEnvelope + kToken, 1024, 256, 1},
               {kEnvelope + kToken - 1, 1024, 256, 0},
               {0, 1024, 256, 0}};
  for (const auto& c : cases) {
    SCOPED_TRACE(::testing::Message() << c.message_bytes << " bytes, " << c.step_tokens);
    v1::GetLimitsResponse limits;
    limits.set_max_message_bytes(static_cast<uint64_t>(c.message_bytes));
    limits.set_max_step_tokens(c.step_tokens);
    server_.service().SetLimits(limits);
    Connect();
    const auto tokens = backend_->StepTokens(c.wanted);
    if (c.expected > 0) {
      ASSERT_OK(tokens);
      EXPECT_EQ(*tokens, c.expected);
    } else {
      EXPECT_THAT(tokens.status(), StatusIs(absl::StatusCode::kResourceExhausted,
                                            HasSubstr(std::to_string(c.message_bytes))));
    }
  }
}

TEST_F(TerraceBackendTest, AddressesAreChecked) {
  for (const char* address : {"", "host", "host:", ":123", "host:port", "unix:", "host:12x"}) {
    options_.address = address;
    EXPECT_THAT(TerraceBackend::Connect(options_, {}).status(),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("host:port or unix:path")))
        << address;
  }
}

TEST_F(TerraceBackendTest, WithoutAServiceTheAddressIsNamed) {
  options_.address = "unix:" + directory_.File("nobody");
  EXPECT_THAT(
      TerraceBackend::Connect(options_, {}).status(),
      StatusIs(absl::StatusCode::kUnavailable,
               AllOf(HasSubstr(options_.address), HasSubstr("no attention service answers"))));
}

TEST_F(TerraceBackendTest, UnknownHandlesAreNamed) {
  Connect();
  SequenceState unknown{"nobody-has-this", 1, 5};
  const auto not_found =
      StatusIs(absl::StatusCode::kNotFound,
               AllOf(HasSubstr("nobody-has-this"), HasSubstr("unknown sequence")));
  EXPECT_THAT(backend_->Resume(unknown.handle).status(), not_found);
  EXPECT_THAT(backend_->Fork(unknown.handle, 0).status(), not_found);
  EXPECT_THAT(backend_->Truncate(unknown, 0), not_found);
  EXPECT_THAT(backend_->Close(unknown.handle), not_found);
  backend_->Bind(unknown, attention::DensePolicy());
  EXPECT_THAT(Run(*backend_, 1).status(), not_found);
}

TEST_F(TerraceBackendTest, AFailedStepNamesLayerPositionAndReason) {
  Connect();
  const std::string where = "step of sequence " + sequence_.handle + " at " + server_.address() +
                            ", layer 1, position 4: ";
  EXPECT_THAT(RunWith(Fault::kItemError, 4),
              StatusIs(absl::StatusCode::kResourceExhausted, where + "no room for 512 bytes"));
  Connect();
  EXPECT_THAT(RunWith(Fault::kCallError, server_.service().steps() + 1),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("queue full")));
}

// Attention rows of a step that is sent again are there once.
TEST_F(TerraceBackendTest, WhatTheServiceHasNoRoomForIsSentAgainWhenItSays) {
  Connect();
  const auto expected = Run(*backend_, 4);
  ASSERT_OK(expected);
  for (const Fault fault : {Fault::kBusyItem, Fault::kBusyCall}) {
    FaultPlan plan;
    plan.step = server_.service().steps() + 4;
    plan.fault = fault;
    plan.busy_steps = 3;
    plan.busy_calls = 2;
    server_.service().Plan(plan);
    Connect();
    const auto got = Run(*backend_, 4);
    ASSERT_OK(got);
    EXPECT_EQ(*got, *expected);
    EXPECT_EQ(backend_->TakeAccount().answers, 9U);
  }
  EXPECT_THAT(server_.service().complaints(), IsEmpty());
}

TEST_F(TerraceBackendTest, AServiceThatStaysBusyIsGivenUpInTimeAndWhenInterrupted) {
  options_.room_wait = absl::Milliseconds(50);
  Connect();
  FaultPlan plan;
  plan.step = 0;
  plan.fault = Fault::kBusyItem;
  plan.busy_steps = int64_t{1} << 40;
  server_.service().Plan(plan);
  EXPECT_THAT(Run(*backend_, 4).status(),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("busy")));
  // A step's own deadline may be nearer.
  options_.room_wait = absl::InfiniteDuration();
  options_.step_deadline = absl::Milliseconds(50);
  Connect();
  EXPECT_THAT(Run(*backend_, 4).status(), StatusIs(absl::StatusCode::kResourceExhausted));
  options_.step_deadline = absl::InfiniteDuration();
  const int64_t enough = server_.service().steps() + 3;
  options_.interrupted = [&] { return server_.service().steps() >= enough; };
  Connect();
  EXPECT_THAT(Run(*backend_, 4).status(), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(server_.service().steps(), enough);
  options_.interrupted = nullptr;
  options_.call_deadline = absl::Milliseconds(50);
  plan.busy_calls = 1 << 30;
  server_.service().Plan(plan);
  EXPECT_THAT(backend_->Open().status(), StatusIs(absl::StatusCode::kResourceExhausted));
}

// The service stops: nobody on this side has cancelled anything.
TEST_F(TerraceBackendTest, ACallThatTheServiceCancelsIsUnavailable) {
  Connect();
  FaultPlan plan;
  plan.cancelled_calls = 1;
  server_.service().Plan(plan);
  EXPECT_THAT(backend_->Open().status(),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("cancelled the call")));
  EXPECT_OK(backend_->Open());
}

TEST_F(TerraceBackendTest, ALostServiceIsUnavailableAndALaterStepConnectsAgain) {
  Connect();
  EXPECT_THAT(RunWith(Fault::kLost, 4),
              StatusIs(absl::StatusCode::kUnavailable,
                       AllOf(HasSubstr("killed"), HasSubstr(sequence_.handle))));
  EXPECT_THAT(RunWith(Fault::kDrain, server_.service().steps()),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("draining")));
  Connect();
  EXPECT_OK(Run(*backend_, 4));
}

TEST_F(TerraceBackendTest, BrokenAnswersAreInternalErrors) {
  Connect();
  EXPECT_THAT(RunWith(Fault::kWrongId, 4),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("answered request")));
  Connect();
  EXPECT_THAT(RunWith(Fault::kShortOutput, server_.service().steps()),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("of 4 bytes")));
}

TEST_F(TerraceBackendTest, AHangingServiceEndsWithTheStepDeadline) {
  options_.step_deadline = absl::Milliseconds(1);
  options_.answer_grace = absl::Milliseconds(100);
  Connect();
  FaultPlan plan;
  plan.step = 0;
  plan.fault = Fault::kHang;
  server_.service().Plan(plan);
  EXPECT_THAT(Run(*backend_, 4).status(),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("no answer in time")));
}

TEST_F(TerraceBackendTest, ATruncatedSequenceGoesOnFromThere) {
  Connect();
  const auto expected = Run(*backend_, 11);
  ASSERT_OK(expected);
  ASSERT_OK(backend_->Truncate(sequence_, 6));
  EXPECT_EQ(sequence_.length, 6);
  const auto vocab = static_cast<size_t>(model_->config().vocab_size);
  std::vector<float> logits(5 * vocab);
  ASSERT_OK(model_->Forward(absl::MakeConstSpan(kTokens).subspan(6), 6, *backend_,
                            absl::MakeSpan(logits)));
  // The first pass had 11 tokens at once, this one 5: equal to rounding.
  const size_t first = expected->size() - logits.size();
  for (size_t i = 0; i < logits.size(); ++i) ASSERT_NEAR(logits[i], (*expected)[first + i], 1e-4);
  EXPECT_THAT(backend_->Truncate(sequence_, 12),
              StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("to 12")));
}

}  // namespace
}  // namespace terrace::frontend
