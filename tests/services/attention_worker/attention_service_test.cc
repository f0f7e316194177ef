// AttentionService as a frontend sees it: streams of steps, bulk appends, drain, and clients that
// go away.
#include "services/attention_worker/attention_service.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "services/engine/error.h"
#include "services/runtime/convert.h"
#include "services/runtime/status_convert.h"
#include "terrace/v1/attention.grpc.pb.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/services/engine/rpc_server.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::SequenceInfo;
using engine::StepResult;
using ::testing::HasSubstr;

constexpr uint64_t kSeed = 1;

using Stream = grpc::ClientReaderWriter<v1::AttendRequest, v1::AttendResponse>;

v1::AttendRequest RequestOf(uint64_t id, int layer, const std::vector<Step>& steps) {
  v1::AttendRequest request;
  request.set_request_id(id);
  request.set_layer(static_cast<uint32_t>(layer));
  for (const Step& step : steps) runtime::ToProto(step.request(), request.add_items());
  return request;
}

std::vector<float> OutputOf(const v1::StepResult& result) {
  std::vector<float> output(result.output().data().size() / sizeof(float));
  if (!output.empty()) {
    std::memcpy(output.data(), result.output().data().data(), result.output().data().size());
  }
  return output;
}

absl::Status StatusOf(const google::rpc::Status& status) { return runtime::FromRpcStatus(status); }

std::string ReasonOf(const absl::Status& status) {
  const std::optional<engine::ErrorDetail> detail = engine::DetailOf(status);
  return detail.has_value() ? detail->reason : "no detail";
}

class AttentionServiceTest : public ::testing::Test {
 protected:
  explicit AttentionServiceTest(int threads = 4, size_t queue_max = 256)
      : server_(
            [this](runtime::Executor& executor, runtime::Drain& drain) {
              std::vector<std::unique_ptr<grpc::Service>> services;
              services.push_back(attention_worker::MakeAttentionService(
                  *engine_, executor, drain,
                  {.max_message_bytes = RpcServer::kMessageBytesMax, .shard = 0}));
              return services;
            },
            0, {.threads = threads, .queue_max = queue_max}) {}

  SequenceInfo Create() { return *engine_->Create({}, Spec(SmallGeometry())); }
  SequenceInfo CreateWith(int64_t length) {
    const SequenceInfo info = Create();
    EXPECT_OK(AppendSeed(*engine_, info, kSeed, 0, length));
    return info;
  }

  std::unique_ptr<engine::EmbeddedEngine> engine_ = OpenEngine(MemoryOptions());
  RpcServer server_;
  std::unique_ptr<v1::AttentionService::Stub> stub_ =
      v1::AttentionService::NewStub(server_.Channel());
};

TEST_F(AttentionServiceTest, ASequencesLifeOverUnaryCalls) {
  v1::OpenSequenceResponse opened;
  {
    grpc::ClientContext context;
    v1::OpenSequenceRequest request;
    runtime::ToProto(Spec(SmallGeometry()), request.mutable_new_sequence());
    ASSERT_TRUE(stub_->OpenSequence(&context, request, &opened).ok());
  }
  SequenceInfo info = *runtime::FromProto(opened.sequence());
  {
    grpc::ClientContext context;
    v1::AttendResponse response;
    const Step step = AppendStep(info, kSeed, 0, 0, 3, Sparq(4, 4));
    ASSERT_TRUE(stub_->Attend(&context, RequestOf(42, 0, {step}), &response).ok());
    EXPECT_EQ(response.request_id(), 42u);
    ASSERT_EQ(response.results_size(), 1);
    EXPECT_EQ(response.results(0).status().code(), 0);
    EXPECT_TRUE(response.results(0).appended());
    EXPECT_EQ(response.results(0).layer_length(), 3u);
    EXPECT_EQ(response.results(0).output().shape(0), 3u);
    EXPECT_EQ(response.results(0).output().shape(1), 4u);
    EXPECT_EQ(response.results(0).output().shape(2), 16u);
    EXPECT_EQ(OutputOf(response.results(0)), RunOne(*engine_, 0, step).output);
  }
  {
    grpc::ClientContext context;
    v1::OpenSequenceRequest request;
    v1::OpenSequenceResponse response;
    const absl::Status status =
        runtime::FromGrpcStatus(stub_->OpenSequence(&context, request, &response));
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("source")));
  }
  {
    grpc::ClientContext context;
    v1::TruncateRequest request;
    request.set_handle(info.handle);
    request.set_writer_epoch(info.writer_epoch);
    request.set_length(UINT64_MAX);
    v1::TruncateResponse response;
    EXPECT_THAT(runtime::FromGrpcStatus(stub_->Truncate(&context, request, &response)),
                StatusIs(absl::StatusCode::kOutOfRange));
  }
  for (const grpc::StatusCode code : {grpc::StatusCode::OK, grpc::StatusCode::NOT_FOUND}) {
    grpc::ClientContext context;
    v1::CloseRequest request;
    request.set_handle(info.handle);
    v1::CloseResponse response;
    EXPECT_EQ(stub_->Close(&context, request, &response).error_code(), code);
  }
}

TEST_F(AttentionServiceTest, ManyRequestsInFlightAreAllAnsweredRightly) {
  const SequenceInfo info = CreateWith(100);
  grpc::ClientContext context;
  const std::unique_ptr<Stream> stream = stub_->AttendStream(&context);
  constexpr uint64_t kRequests = 100;
  std::thread writer([&] {
    for (uint64_t id = 1; id <= kRequests; ++id) {
      const auto position = static_cast<int64_t>(id - 1);
      EXPECT_TRUE(
          stream->Write(RequestOf(id, 0, {ReadStep(info, kSeed, 0, position, 1, Sparq(5, 20))})));
    }
    stream->WritesDone();
  });
  std::map<uint64_t, std::vector<float>> outputs;
  v1::AttendResponse response;
  while (stream->Read(&response)) {
    EXPECT_EQ(response.status().code(), 0);
    ASSERT_EQ(response.results_size(), 1);
    outputs[response.request_id()] = OutputOf(response.results(0));
  }
  writer.join();
  EXPECT_TRUE(stream->Finish().ok());
  ASSERT_EQ(outputs.size(), kRequests);
  for (const auto& [id, output] : outputs) {
    const auto position = static_cast<int64_t>(id - 1);
    EXPECT_EQ(output,
              RunOne(*engine_, 0, ReadStep(info, kSeed, 0, position, 1, Sparq(5, 20))).output);
  }
}

// I9.
TEST_F(AttentionServiceTest, ItemsFailAlone) {
  const SequenceInfo a = Create();
  const SequenceInfo b = Create();
  grpc::ClientContext context;
  const std::unique_ptr<Stream> stream = stub_->AttendStream(&context);
  v1::AttendRequest request = RequestOf(
      1, 0,
      {AppendStep(a, kSeed, 0, 0, 1, Sparq(4, 4)), AppendStep(b, kSeed, 0, 7, 1, Sparq(4, 4)),
       AppendStep(b, kSeed, 0, 0, 2, attention::DensePolicy())});
  request.mutable_items()->Add()->mutable_q()->set_dtype(static_cast<v1::Dtype>(9));
  ASSERT_TRUE(stream->Write(request));
  v1::AttendResponse response;
  ASSERT_TRUE(stream->Read(&response));
  ASSERT_EQ(response.results_size(), 4);
  EXPECT_EQ(response.results(0).status().code(), 0);
  EXPECT_EQ(response.results(2).status().code(), 0);
  EXPECT_TRUE(response.results(2).appended());
  EXPECT_THAT(StatusOf(response.results(3).status()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("q.dtype")));
  // Items run side by side: the gap may be seen before or after the other item filled it in part.
  const absl::Status gap = StatusOf(response.results(1).status());
  EXPECT_EQ(ReasonOf(gap), "POSITION_GAP");
  EXPECT_FALSE(response.results(1).has_output());
}

TEST_F(AttentionServiceTest, CallsOfNoItemsOrTooManyAreRefused) {
  const SequenceInfo info = CreateWith(1);
  const Step step = ReadStep(info, kSeed, 0, 0, 1, Sparq(4, 4));
  grpc::ClientContext context;
  const std::unique_ptr<Stream> stream = stub_->AttendStream(&context);
  v1::AttendResponse response;
  for (const size_t count : {size_t{0}, size_t{257}, size_t{256}, size_t{1}}) {
    ASSERT_TRUE(stream->Write(RequestOf(count + 1, 0, std::vector<Step>(count, step))));
    ASSERT_TRUE(stream->Read(&response));
    EXPECT_EQ(response.request_id(), count + 1);
    if (count == 0 || count > 256) {
      EXPECT_THAT(StatusOf(response.status()),
                  StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("items")));
      EXPECT_EQ(response.results_size(), 0);
    } else {
      EXPECT_EQ(response.results_size(), static_cast<int>(count));
    }
  }
}

TEST_F(AttentionServiceTest, EachRequestHasItsDeadline) {
  const SequenceInfo info = Create();
  grpc::ClientContext context;
  const std::unique_ptr<Stream> stream = stub_->AttendStream(&context);
  v1::AttendRequest late = RequestOf(1, 0, {AppendStep(info, kSeed, 0, 0, 1, Sparq(4, 4))});
  late.mutable_step_deadline()->set_seconds(-1);
  v1::AttendRequest timely = RequestOf(2, 0, {AppendStep(info, kSeed + 1, 0, 0, 1, Sparq(4, 4))});
  timely.mutable_step_deadline()->set_seconds(30);
  v1::AttendResponse response;
  ASSERT_TRUE(stream->Write(late));
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_THAT(StatusOf(response.results(0).status()),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_FALSE(response.results(0).appended());
  ASSERT_TRUE(stream->Write(timely));
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_THAT(StatusOf(response.results(0).status()), IsOk());
}

TEST_F(AttentionServiceTest, AMessageOverTheLimitEndsItsCallAndNothingElse) {
  const SequenceInfo info = CreateWith(10);
  {
    grpc::ClientContext context;
    const std::unique_ptr<Stream> stream = stub_->AttendStream(&context);
    v1::AttendRequest request = RequestOf(1, 0, {ReadStep(info, kSeed, 0, 9, 1, Sparq(4, 4))});
    request.mutable_items(0)->mutable_q()->mutable_data()->resize(RpcServer::kMessageBytesMax);
    stream->Write(request);
    v1::AttendResponse response;
    EXPECT_FALSE(stream->Read(&response));
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  }
  grpc::ClientContext context;
  v1::AttendResponse response;
  const Step step = ReadStep(info, kSeed, 0, 9, 1, Sparq(4, 4));
  EXPECT_TRUE(stub_->Attend(&context, RequestOf(2, 0, {step}), &response).ok());
}

// 600 queries that name some 2,700 rows of two heads each: more than a message holds.
TEST_F(AttentionServiceTest, AnAnswerOverTheLimitFailsAlone) {
  const SequenceInfo info = CreateWith(3000);
  grpc::ClientContext context;
  const std::unique_ptr<Stream> stream = stub_->AttendStream(&context);
  const Step large = ReadStep(info, kSeed, 0, 2400, 600, attention::DensePolicy());
  const Step small = ReadStep(info, kSeed, 0, 0, 1, attention::DensePolicy());
  v1::AttendRequest request = RequestOf(1, 0, {small, large, small});
  request.set_return_selection(true);
  ASSERT_TRUE(stream->Write(request));
  v1::AttendResponse response;
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_LE(response.ByteSizeLong(), RpcServer::kMessageBytesMax);
  ASSERT_EQ(response.results_size(), 3);
  EXPECT_EQ(response.results(0).status().code(), 0);
  EXPECT_EQ(ReasonOf(StatusOf(response.results(1).status())), "LIMIT_EXCEEDED");
  EXPECT_EQ(response.results(2).status().code(), 0);
  ASSERT_TRUE(stream->Write(RequestOf(2, 0, {small})));
  EXPECT_TRUE(stream->Read(&response));
}

TEST_F(AttentionServiceTest, ADrainSaysGoodbyeAnswersAndEndsTheStream) {
  const SequenceInfo info = CreateWith(100);
  grpc::ClientContext context;
  const std::unique_ptr<Stream> stream = stub_->AttendStream(&context);
  v1::AttendResponse response;
  // One answer: the server knows the stream.
  ASSERT_TRUE(stream->Write(RequestOf(1, 0, {ReadStep(info, kSeed, 0, 5, 1, Sparq(4, 4))})));
  ASSERT_TRUE(stream->Read(&response));
  server_.StartDrain();
  bool goodbye = false;
  while (stream->Read(&response)) {
    ASSERT_EQ(response.request_id(), 0u);
    EXPECT_EQ(ReasonOf(StatusOf(response.status())), "DRAINING");
    EXPECT_TRUE(engine::DetailOf(StatusOf(response.status()))->retry_delay.has_value());
    EXPECT_FALSE(goodbye);
    goodbye = true;
  }
  EXPECT_TRUE(goodbye);
  const absl::Status end = runtime::FromGrpcStatus(stream->Finish());
  EXPECT_THAT(end, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(ReasonOf(end), "DRAINING");
  // A stream that comes later is told at once, and so is a single call.
  grpc::ClientContext late_context;
  const std::unique_ptr<Stream> late = stub_->AttendStream(&late_context);
  ASSERT_TRUE(late->Read(&response));
  EXPECT_EQ(ReasonOf(StatusOf(response.status())), "DRAINING");
  EXPECT_FALSE(late->Read(&response));
  EXPECT_EQ(late->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  grpc::ClientContext unary_context;
  const Step step = ReadStep(info, kSeed, 0, 5, 1, Sparq(4, 4));
  EXPECT_EQ(ReasonOf(runtime::FromGrpcStatus(
                stub_->Attend(&unary_context, RequestOf(1, 0, {step}), &response))),
            "DRAINING");
}

TEST_F(AttentionServiceTest, ClientsThatVanishLeaveTheServerWell) {
  const SequenceInfo info = CreateWith(100);
  for (int round = 0; round < 20; ++round) {
    grpc::ClientContext context;
    const std::unique_ptr<Stream> stream = stub_->AttendStream(&context);
    for (uint64_t id = 1; id <= 10; ++id) {
      stream->Write(RequestOf(id, 0, {ReadStep(info, kSeed, 0, 99, 1, attention::DensePolicy())}));
    }
    v1::AttendResponse response;
    if (round % 2 == 0) stream->Read(&response);
    context.TryCancel();
    if (round % 3 == 0) continue;  // not even waiting for the end
    while (stream->Read(&response)) {
    }
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  grpc::ClientContext context;
  v1::AttendResponse response;
  const Step step = ReadStep(info, kSeed, 0, 99, 1, Sparq(4, 4));
  EXPECT_TRUE(stub_->Attend(&context, RequestOf(1, 0, {step}), &response).ok());
}

TEST_F(AttentionServiceTest, TheTenantIsInTheMetadata) {
  engine::Caller mine;
  mine.tenant = "mine";
  const SequenceInfo info = *engine_->Create(mine, Spec(SmallGeometry()));
  for (const bool named : {false, true}) {
    grpc::ClientContext context;
    if (named) context.AddMetadata("terrace-tenant", "mine");
    v1::GetSequenceRequest request;
    request.set_handle(info.handle);
    v1::GetSequenceResponse response;
    EXPECT_EQ(stub_->GetSequence(&context, request, &response).error_code(),
              named ? grpc::StatusCode::OK : grpc::StatusCode::NOT_FOUND);
  }
  // An empty name is none.
  const SequenceInfo everybodys = Create();
  grpc::ClientContext context;
  context.AddMetadata("terrace-tenant", "");
  v1::GetSequenceRequest request;
  request.set_handle(everybodys.handle);
  v1::GetSequenceResponse response;
  EXPECT_TRUE(stub_->GetSequence(&context, request, &response).ok());
}

// Text that a client chose comes back in an error whatever its length.
TEST_F(AttentionServiceTest, AnErrorOfLongTextIsStillReadable) {
  std::string handle;
  for (int i = 0; i < 5000; ++i) handle += "\u00e9";
  for (const std::string& prefix : {std::string(), std::string("x")}) {
    v1::AttendRequest request =
        RequestOf(1, 0, {ReadStep(CreateWith(1), kSeed, 0, 0, 1, Sparq(4, 4))});
    request.mutable_items(0)->set_handle(prefix + handle);
    grpc::ClientContext context;
    v1::AttendResponse response;
    ASSERT_TRUE(stub_->Attend(&context, request, &response).ok());
    EXPECT_THAT(StatusOf(response.results(0).status()), StatusIs(absl::StatusCode::kNotFound));
  }
}

// One thread and a queue of one: what cannot wait is refused, and told when to come back.
class CrowdedServiceTest : public AttentionServiceTest {
 protected:
  CrowdedServiceTest() : AttentionServiceTest(1, 1) {}
};

TEST_F(CrowdedServiceTest, AFullQueueRefusesAndTheStreamGoesOn) {
  const SequenceInfo info = CreateWith(500);
  grpc::ClientContext context;
  const std::unique_ptr<Stream> stream = stub_->AttendStream(&context);
  std::thread writer([&] {
    for (uint64_t id = 1; id <= 60; ++id) {
      stream->Write(RequestOf(id, 0, {ReadStep(info, kSeed, 0, 460, 40, Sparq(5, 20))}));
    }
    stream->WritesDone();
  });
  int done = 0;
  v1::AttendResponse response;
  int answered = 0;
  while (stream->Read(&response)) {
    ++answered;
    const absl::Status status = StatusOf(response.status());
    if (status.ok()) {
      ++done;
      continue;
    }
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted));
    EXPECT_EQ(ReasonOf(status), "LIMIT_EXCEEDED");
  }
  writer.join();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(answered, 60);
  EXPECT_GT(done, 0);
}

}  // namespace
}  // namespace terrace::testing
