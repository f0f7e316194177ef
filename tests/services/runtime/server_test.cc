// A daemon's life: it listens before it is ready, and its end has a bound.
#include "services/runtime/server.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "services/engine/error.h"
#include "services/runtime/call.h"
#include "services/runtime/status_convert.h"
#include "terrace/v1/attention.grpc.pb.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using runtime::Drain;
using runtime::Executor;

class LimitsService final : public v1::AttentionService::CallbackService {
 public:
  explicit LimitsService(Executor& executor) : executor_(executor) {}
  grpc::ServerUnaryReactor* GetLimits(grpc::CallbackServerContext* context,
                                      const v1::GetLimitsRequest* /*request*/,
                                      v1::GetLimitsResponse* /*response*/) override {
    return runtime::RunInline(context, executor_, [] { return absl::OkStatus(); });
  }

 private:
  Executor& executor_;
};

class ServerTest : public ::testing::Test {
 protected:
  // Before there are threads, those of the executor too: only Serve is to see SIGTERM.
  static void SetUpTestSuite() { runtime::InitProcess("off"); }

  ServerTest() {
    flags_.listen =
        "unix:" + ::testing::TempDir() + "terrace-server-test-" + std::to_string(::getpid());
    flags_.drain_timeout = absl::Seconds(1);
  }
  ~ServerTest() override {
    if (serving_.joinable()) serving_.join();
  }

  void Serve(runtime::Around around) {
    serving_ = std::thread([this, around = std::move(around)] {
      end_ = runtime::Serve(flags_, {.name = "test",
                                     .services = {&service_},
                                     .executor = executor_,
                                     .drain = drain_,
                                     .around = around});
    });
    stub_ = v1::AttentionService::NewStub(
        grpc::CreateChannel(flags_.listen, grpc::InsecureChannelCredentials()));
  }
  absl::Status Call() {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    v1::GetLimitsResponse response;
    return runtime::FromGrpcStatus(stub_->GetLimits(&context, {}, &response));
  }
  void Stop() {
    // An idle client answers to the end of its connection seconds later.
    stub_.reset();
    ::kill(::getpid(), SIGTERM);
    serving_.join();
  }

  runtime::ServerFlags flags_;
  Drain drain_;
  Executor executor_{2, 16};
  LimitsService service_{executor_};
  std::thread serving_;
  absl::Status end_;
  std::unique_ptr<v1::AttentionService::Stub> stub_;
};

TEST_F(ServerTest, ListensWhileItStartsAndRefusesCallsUntilItHas) {
  absl::Notification go_on;
  Serve({.start =
             [&] {
               go_on.WaitForNotification();
               return absl::OkStatus();
             },
         .cancel = nullptr,
         .finish = nullptr});
  const absl::Status early = Call();
  EXPECT_THAT(early, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(engine::DetailOf(early).value_or(engine::ErrorDetail()).reason, "RECOVERING");
  go_on.Notify();
  const absl::Time end = absl::Now() + absl::Seconds(30);
  absl::Status status = Call();
  while (absl::IsUnavailable(status) && absl::Now() < end) status = Call();
  EXPECT_OK(status);
  Stop();
  EXPECT_OK(end_);
}

TEST_F(ServerTest, EndsWithTheErrorOfItsStart) {
  Serve({.start = [] { return absl::DataLossError("no disk"); },
         .cancel = nullptr,
         .finish = nullptr});
  serving_.join();
  EXPECT_THAT(end_, StatusIs(absl::StatusCode::kDataLoss, "no disk"));
}

// Even when calls took all of the drain.
TEST_F(ServerTest, WhatHasToBeWrittenAtTheEndGetsTheRestOfTheDrainButFiveSecondsAtLeast) {
  const absl::Time begin = absl::Now();
  absl::Time deadline;
  absl::Time asked;
  Serve({.start = [] { return absl::OkStatus(); },
         .cancel = nullptr,
         .finish =
             [&](absl::Time until) {
               deadline = until;
               asked = absl::Now();
             }});
  ASSERT_THAT(Call(), ::testing::AnyOf(IsOk(), StatusIs(absl::StatusCode::kUnavailable)));
  Stop();
  EXPECT_LE(deadline - asked, absl::Seconds(5));
  EXPECT_GE(deadline - begin, absl::Seconds(5));
}

TEST_F(ServerTest, ALongDrainIsSharedByCallsAndWhatIsWrittenAfterThem) {
  flags_.drain_timeout = absl::Hours(1);
  const absl::Time begin = absl::Now();
  absl::Time deadline;
  Serve({.start = [] { return absl::OkStatus(); },
         .cancel = nullptr,
         .finish = [&](absl::Time until) { deadline = until; }});
  ASSERT_THAT(Call(), ::testing::AnyOf(IsOk(), StatusIs(absl::StatusCode::kUnavailable)));
  Stop();
  EXPECT_GE(deadline, begin + flags_.drain_timeout);
  EXPECT_LE(deadline, absl::Now() + flags_.drain_timeout);
}

}  // namespace
}  // namespace terrace::testing
