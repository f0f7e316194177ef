// Who comes in, what is held meanwhile, and what ends: calls and streams over handlers that wait
// until they are let go.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "services/engine/error.h"
#include "services/runtime/call.h"
#include "services/runtime/step_stream.h"
#include "terrace/v1/attention.grpc.pb.h"
#include "tests/services/engine/rpc_server.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using ::testing::HasSubstr;

using Stream = grpc::ClientReaderWriter<v1::AttendRequest, v1::AttendResponse>;

std::string ReasonOf(const absl::Status& status) {
  return engine::DetailOf(status).value_or(engine::ErrorDetail()).reason;
}

// Counts those who come, and lets them pass when it is open.
class Gate {
 public:
  void Pass() {
    const absl::MutexLock lock(&mu_);
    ++came_;
    mu_.Await(absl::Condition(&open_));
  }
  void Open() {
    const absl::MutexLock lock(&mu_);
    open_ = true;
  }
  int came() const {
    const absl::MutexLock lock(&mu_);
    return came_;
  }
  bool AwaitCame(int count) const {
    const absl::MutexLock lock(&mu_);
    const auto there = [this, count]()
                           ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return came_ >= count; };
    return mu_.AwaitWithTimeout(absl::Condition(&there), absl::Seconds(30));
  }

 private:
  mutable absl::Mutex mu_;
  bool open_ ABSL_GUARDED_BY(mu_) = false;
  int came_ ABSL_GUARDED_BY(mu_) = 0;
};

// Steps and GetSequence pass the gate; answers of steps have so many bytes.
class GatedService final : public v1::AttentionService::CallbackService {
 public:
  GatedService(runtime::Executor& executor, runtime::Drain& drain, Gate& gate, size_t answer_bytes)
      : executor_(executor), drain_(drain), gate_(gate), answer_bytes_(answer_bytes) {}

  grpc::ServerUnaryReactor* GetSequence(grpc::CallbackServerContext* context,
                                        const v1::GetSequenceRequest* request,
                                        v1::GetSequenceResponse* /*response*/) override {
    return runtime::RunUnary(context, executor_, *request, [this] {
      gate_.Pass();
      return absl::OkStatus();
    });
  }
  grpc::ServerUnaryReactor* GetLimits(grpc::CallbackServerContext* context,
                                      const v1::GetLimitsRequest* /*request*/,
                                      v1::GetLimitsResponse* /*response*/) override {
    return runtime::RunInline(context, executor_, [] { return absl::OkStatus(); });
  }
  grpc::ServerBidiReactor<v1::AttendRequest, v1::AttendResponse>* AttendStream(
      grpc::CallbackServerContext* context) override {
    return new runtime::StepStream<v1::AttendRequest, v1::AttendResponse>(
        context, executor_, drain_,
        [this](const v1::AttendRequest&, absl::Time, v1::AttendResponse* response) {
          gate_.Pass();
          response->add_results()->mutable_output()->mutable_data()->resize(answer_bytes_);
        });
  }

 private:
  runtime::Executor& executor_;
  runtime::Drain& drain_;
  Gate& gate_;
  const size_t answer_bytes_;
};

class AdmissionTest : public ::testing::Test {
 protected:
  ~AdmissionTest() override { gate_.Open(); }

  void Serve(const RpcServer::Room& room, size_t answer_bytes = 0) {
    server_ = std::make_unique<RpcServer>(
        [&](runtime::Executor& executor, runtime::Drain& drain) {
          std::vector<std::unique_ptr<grpc::Service>> services;
          services.push_back(std::make_unique<GatedService>(executor, drain, gate_, answer_bytes));
          return services;
        },
        0, room);
    stub_ = v1::AttentionService::NewStub(server_->Channel());
  }

  absl::Status Call(size_t bytes) {
    grpc::ClientContext context;
    v1::GetSequenceRequest request;
    request.mutable_handle()->resize(bytes);
    v1::GetSequenceResponse response;
    return runtime::FromGrpcStatus(stub_->GetSequence(&context, request, &response));
  }
  absl::Status CallInline() {
    grpc::ClientContext context;
    v1::GetLimitsResponse response;
    return runtime::FromGrpcStatus(stub_->GetLimits(&context, {}, &response));
  }
  static v1::AttendRequest StepOf(uint64_t id, size_t bytes = 0) {
    v1::AttendRequest request;
    request.set_request_id(id);
    if (bytes > 0) request.add_items()->mutable_q()->mutable_data()->resize(bytes);
    return request;
  }

  Gate gate_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<v1::AttentionService::Stub> stub_;
};

TEST_F(AdmissionTest, CallsBeyondTheBytesInFlightAreRefusedAndComeInAgainAfterwards) {
  Serve({.threads = 4, .bytes_max = 100'000});
  // Alone any request comes in.
  std::thread large([&] { EXPECT_OK(Call(200'000)); });
  ASSERT_TRUE(gate_.AwaitCame(1));
  const absl::Status refused = Call(1);
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("bytes")));
  EXPECT_EQ(ReasonOf(refused), "LIMIT_EXCEEDED");
  EXPECT_TRUE(engine::DetailOf(refused)->retry_delay.has_value());
  gate_.Open();
  large.join();
  EXPECT_OK(Call(99'000));
}

TEST_F(AdmissionTest, CallsAreRefusedBeforeAndAfterButWhatCameInIsAnswered) {
  Serve({});
  server_->executor().Refuse(engine::Recovering());
  for (const absl::Status& status : {Call(1), CallInline()}) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable));
    EXPECT_EQ(ReasonOf(status), "RECOVERING");
    EXPECT_TRUE(engine::DetailOf(status)->retry_delay.has_value());
  }
  grpc::ClientContext context;
  const std::unique_ptr<Stream> stream = stub_->AttendStream(&context);
  v1::AttendResponse response;
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(ReasonOf(runtime::FromRpcStatus(response.status())), "RECOVERING");
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(ReasonOf(runtime::FromGrpcStatus(stream->Finish())), "RECOVERING");
  EXPECT_EQ(gate_.came(), 0);

  server_->executor().Refuse(absl::OkStatus());
  std::thread running([&] { EXPECT_OK(Call(1)); });
  ASSERT_TRUE(gate_.AwaitCame(1));
  EXPECT_OK(CallInline());
  server_->StartDrain();
  for (const absl::Status& status : {Call(1), CallInline()}) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable));
    EXPECT_EQ(ReasonOf(status), "DRAINING");
  }
  gate_.Open();
  running.join();
  EXPECT_EQ(gate_.came(), 1);
}

// Whatever else runs: a worker asks so whether a store is alive.
TEST_F(AdmissionTest, AnInlineCallNeedsNoThread) {
  Serve({.threads = 1, .queue_max = 1, .bytes_max = 1});
  std::thread running([&] { EXPECT_OK(Call(1)); });
  ASSERT_TRUE(gate_.AwaitCame(1));
  EXPECT_OK(CallInline());
  gate_.Open();
  running.join();
}

TEST_F(AdmissionTest, AStreamWhoseClientDoesNotReadHoldsABoundedNumberOfAnswers) {
  gate_.Open();
  // More than flow control lets out unread.
  constexpr size_t kAnswerBytes = 1 << 20;
  constexpr int kRequests = 200;
  // In flight, one on the wire, one that gRPC has taken over.
  constexpr int kUnreadMax = 16 + 2;
  Serve({}, kAnswerBytes);
  // The window stays at 64 KiB: what is larger waits until it is read.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  stub_ = v1::AttentionService::NewStub(grpc::CreateCustomChannel(
      server_->endpoint(), grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  const std::unique_ptr<Stream> stream = stub_->AttendStream(&context);
  for (int id = 1; id <= kRequests; ++id) ASSERT_TRUE(stream->Write(StepOf(id)));
  stream->WritesDone();
  ASSERT_TRUE(gate_.AwaitCame(16));
  v1::AttendResponse response;
  for (int read = 0; read < kRequests; ++read) {
    ASSERT_LE(gate_.came(), read + kUnreadMax);
    ASSERT_TRUE(stream->Read(&response));
  }
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(gate_.came(), kRequests);
}

TEST_F(AdmissionTest, AStreamsRequestsAreRefusedOneByOneWhileTooManyBytesAreInFlight) {
  Serve({.threads = 4, .bytes_max = 1000});
  grpc::ClientContext context;
  const std::unique_ptr<Stream> full = stub_->AttendStream(&context);
  ASSERT_TRUE(full->Write(StepOf(1, 2000)));
  ASSERT_TRUE(gate_.AwaitCame(1));
  grpc::ClientContext other_context;
  const std::unique_ptr<Stream> other = stub_->AttendStream(&other_context);
  for (int id = 1; id <= 4; ++id) ASSERT_TRUE(other->Write(StepOf(id, 10)));
  v1::AttendResponse response;
  for (uint64_t id = 1; id <= 4; ++id) {
    ASSERT_TRUE(other->Read(&response));
    EXPECT_EQ(response.request_id(), id);
    const absl::Status refused = runtime::FromRpcStatus(response.status());
    EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("bytes")));
    EXPECT_EQ(ReasonOf(refused), "LIMIT_EXCEEDED");
  }
  EXPECT_EQ(gate_.came(), 1);
  gate_.Open();
  ASSERT_TRUE(full->Read(&response));
  EXPECT_THAT(runtime::FromRpcStatus(response.status()), IsOk());
  for (int id = 5; id <= 8; ++id) {
    ASSERT_TRUE(other->Write(StepOf(id, 10)));
    ASSERT_TRUE(other->Read(&response));
    EXPECT_THAT(runtime::FromRpcStatus(response.status()), IsOk());
  }
}

// The bytes of its own requests hold a stream back, and refuse none of them.
TEST_F(AdmissionTest, AStreamWhoseRequestsFillTheBytesReadsNoFurther) {
  Serve({.threads = 4, .bytes_max = 1000});
  grpc::ClientContext context;
  const std::unique_ptr<Stream> stream = stub_->AttendStream(&context);
  for (int id = 1; id <= 4; ++id) ASSERT_TRUE(stream->Write(StepOf(id, 2000)));
  ASSERT_TRUE(gate_.AwaitCame(1));
  // A thread is free, and a request lies in the socket: a call runs ahead of it.
  EXPECT_THAT(Call(1), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(gate_.came(), 1);
  gate_.Open();
  v1::AttendResponse response;
  for (uint64_t id = 1; id <= 4; ++id) {
    ASSERT_TRUE(stream->Read(&response));
    EXPECT_EQ(response.request_id(), id);
    EXPECT_THAT(runtime::FromRpcStatus(response.status()), IsOk());
  }
}

// Whatever was read when the drain came is answered; what was not, is not half done.
TEST_F(AdmissionTest, ADrainUnderLoadAnswersEveryRequestThatRan) {
  gate_.Open();
  int ran = 0;
  for (int round = 0; round < 10; ++round) {
    Serve({});
    grpc::ClientContext context;
    const std::unique_ptr<Stream> stream = stub_->AttendStream(&context);
    std::thread writer([&] {
      for (uint64_t id = 1; id <= 200; ++id) {
        if (!stream->Write(StepOf(id))) return;
        if (id == 20) server_->StartDrain();
      }
      stream->WritesDone();
    });
    v1::AttendResponse response;
    int answered = 0;
    while (stream->Read(&response)) {
      if (response.request_id() != 0) ++answered;
    }
    writer.join();
    EXPECT_EQ(ReasonOf(runtime::FromGrpcStatus(stream->Finish())), "DRAINING");
    EXPECT_EQ(answered, gate_.came() - ran);
    ran = gate_.came();
  }
}

}  // namespace
}  // namespace terrace::testing
