// Steps to a store that hangs: what was given up is never sent, nothing piles up, and the worker
// can leave.
#include "services/kv_store/step_channel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "services/engine/error.h"
#include "services/kv_store/step_stub.h"
#include "tests/services/kv_store/gated_store.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using kv_store::PendingStep;
using kv_store::StepAnswer;
using kv_store::StepChannel;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// More than gRPC takes in when nobody reads.
constexpr size_t kLargeBytes = size_t{2} << 20;

class StepChannelTest : public ::testing::Test {
 protected:
  void Connect(bool answers, StepChannel::QueueLimits limits = {}) {
    channel_.reset();
    store_ = std::make_unique<GatedStore>(answers);
    stub_ = v1::KvStoreService::NewStub(store_->Channel());
    step_stub_ = std::make_unique<kv_store::StepStub>(*stub_);
    channel_ = std::make_unique<StepChannel>(*step_stub_, store_->endpoint(), limits);
  }

  std::shared_ptr<PendingStep> Start(absl::Time deadline = absl::InfiniteFuture(),
                                     size_t bytes = 0) {
    v1::StoreStepRequest request;
    request.set_tenant(std::string(bytes, 'x'));
    return channel_->Start(std::move(request), deadline, absl::InfiniteFuture());
  }
  // A step that is being written for as long as the store does not read.
  std::shared_ptr<PendingStep> StartLarge() { return Start(absl::InfiniteFuture(), kLargeBytes); }

  absl::Status Outcome(const std::shared_ptr<PendingStep>& step) {
    return channel_->Wait(*step).response.status();
  }
  std::vector<uint64_t> ReceivedIds() const {
    std::vector<uint64_t> ids;
    for (const v1::StoreStepRequest& request : store_->requests()) {
      ids.push_back(request.request_id());
    }
    return ids;
  }
  static absl::Time Past() { return absl::Now() - absl::Seconds(1); }
  static absl::Time Shortly() { return absl::Now() + absl::Milliseconds(20); }

  std::unique_ptr<GatedStore> store_;
  std::unique_ptr<v1::KvStoreService::Stub> stub_;
  std::unique_ptr<kv_store::StepStub> step_stub_;
  std::unique_ptr<StepChannel> channel_;
};

TEST_F(StepChannelTest, AStepThatWasGivenUpBeforeItWasSentIsNeverSent) {
  Connect(/*answers=*/true);
  const auto first = StartLarge();
  const auto late = Start(Shortly());
  const auto last = Start();
  EXPECT_THAT(Outcome(late), StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("was sent")));
  store_->Open();
  EXPECT_OK(Outcome(first));
  EXPECT_OK(Outcome(last));
  EXPECT_THAT(ReceivedIds(), ElementsAre(first->id(), last->id()));
}

TEST_F(StepChannelTest, AStepWhoseDeadlinePassesInTheQueueIsAnsweredUnsent) {
  Connect(/*answers=*/true);
  const auto first = StartLarge();
  const auto late = Start(Past());
  const auto last = Start();
  store_->Open();
  EXPECT_OK(Outcome(last));
  // Nobody has asked for it so far: the queue has noticed by itself.
  EXPECT_TRUE(late->Await());
  EXPECT_THAT(Outcome(late), StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("was sent")));
  EXPECT_OK(Outcome(first));
  EXPECT_THAT(ReceivedIds(), ElementsAre(first->id(), last->id()));
}

TEST_F(StepChannelTest, TheTimeThatIsLeftIsThatOfTheWrite) {
  Connect(/*answers=*/true);
  const auto first = StartLarge();
  const absl::Time deadline = absl::Now() + absl::Hours(1);
  v1::StoreStepRequest request;
  const auto second = channel_->Start(request, deadline, deadline + absl::Hours(1));
  const auto endless = Start();
  const absl::Duration left = deadline - absl::Now();
  store_->Open();
  EXPECT_OK(Outcome(endless));
  const std::vector<v1::StoreStepRequest> received = store_->requests();
  ASSERT_EQ(received.size(), 3u);
  EXPECT_GT(received[1].step_deadline_us(), 0u);
  EXPECT_LE(absl::Microseconds(received[1].step_deadline_us()), left);
  EXPECT_LE(absl::Microseconds(received[1].row_deadline_us()), left + absl::Hours(1));
  EXPECT_GT(absl::Microseconds(received[1].row_deadline_us()), absl::Hours(1));
  EXPECT_EQ(received[2].step_deadline_us(), 0u);
  EXPECT_EQ(received[2].row_deadline_us(), 0u);
}

// So that normally the store's own answer comes, which knows whether the rows stand.
TEST(PendingStepTest, TheStoreIsToldALittleLessTimeThanIsLeft) {
  struct Case {
    absl::Duration left;
    absl::Duration told;
  };
  for (const Case& c : {Case{absl::Microseconds(1), absl::Microseconds(1)},
                        Case{absl::Microseconds(20), absl::Microseconds(19)},
                        Case{absl::Milliseconds(1), absl::Microseconds(950)},
                        Case{absl::Milliseconds(100), absl::Milliseconds(95)},
                        Case{absl::Milliseconds(120), absl::Milliseconds(115)},
                        Case{absl::Hours(1), absl::Hours(1) - absl::Milliseconds(5)}}) {
    const absl::Time now = absl::Now();
    PendingStep step({}, now + c.left, now + c.left, nullptr);
    const v1::StoreStepRequest request = step.TakeRequest(now);
    EXPECT_EQ(absl::Microseconds(request.step_deadline_us()), c.told);
    EXPECT_EQ(absl::Microseconds(request.row_deadline_us()), c.left);
    EXPECT_EQ(step.deadline(), now + c.left);
  }
}

TEST_F(StepChannelTest, AStepThatWasSentAndGivenUpIsForgotten) {
  Connect(/*answers=*/false);
  store_->Open();
  auto step = Start(absl::Now() + absl::Seconds(1));
  ASSERT_TRUE(store_->AwaitRequests(1));
  EXPECT_THAT(Outcome(step),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("did not answer")));
  const std::weak_ptr<PendingStep> forgotten = step;
  step = nullptr;
  EXPECT_TRUE(forgotten.expired());
}

TEST_F(StepChannelTest, TheQueueIsBoundedInSteps) {
  Connect(/*answers=*/true, {.steps = 2, .bytes = 1 << 20});
  const auto first = StartLarge();
  const auto second = Start(Shortly());
  const auto third = Start();
  const absl::Status full = Outcome(Start(absl::Now() + absl::Seconds(30)));
  EXPECT_THAT(full, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("2 of")));
  ASSERT_TRUE(engine::DetailOf(full).has_value());
  EXPECT_TRUE(engine::DetailOf(full)->retry_delay.has_value());
  // What is given up makes room.
  EXPECT_THAT(Outcome(second), StatusIs(absl::StatusCode::kDeadlineExceeded));
  const auto fourth = Start();
  store_->Open();
  for (const auto& step : {first, third, fourth}) EXPECT_OK(Outcome(step));
}

TEST_F(StepChannelTest, TheQueueIsBoundedInBytesButTakesOneStepOfAnySize) {
  constexpr size_t kLimit = 1000;
  // What a request of the smallest id weighs beside its text.
  v1::StoreStepRequest empty;
  empty.set_request_id(1);
  empty.set_tenant(std::string(kLimit - 100, 'x'));
  const size_t around = empty.ByteSizeLong() - (kLimit - 100);
  for (const auto& [bytes, taken] :
       std::vector<std::pair<size_t, bool>>{{kLimit - 501, true}, {kLimit - 500, false}}) {
    Connect(/*answers=*/true, {.steps = 100, .bytes = kLimit + around});
    const auto first = StartLarge();
    const auto second = Start(absl::InfiniteFuture(), 501 - around);
    const auto third = Start(absl::InfiniteFuture(), bytes);
    store_->Open();
    EXPECT_OK(Outcome(first));
    EXPECT_OK(Outcome(second));
    EXPECT_EQ(Outcome(third).code(),
              taken ? absl::StatusCode::kOk : absl::StatusCode::kResourceExhausted);
  }
  Connect(/*answers=*/true, {.steps = 100, .bytes = kLimit});
  const auto first = StartLarge();
  const auto huge = Start(absl::InfiniteFuture(), 2 * kLimit);
  EXPECT_THAT(Outcome(Start(absl::Now() + absl::Seconds(30))),
              StatusIs(absl::StatusCode::kResourceExhausted));
  store_->Open();
  EXPECT_OK(Outcome(first));
  EXPECT_OK(Outcome(huge));
}

TEST_F(StepChannelTest, AnAnswerIsStampedWhenItComes) {
  Connect(/*answers=*/true);
  store_->Open();
  const auto first = Start();
  const auto second = Start();
  const StepAnswer later = channel_->Wait(*second);
  ASSERT_OK(later.response);
  EXPECT_LE(channel_->Wait(*first).arrived, later.arrived);
}

TEST_F(StepChannelTest, ACancelAnswersWhatIsSentAndWhatIsQueuedAndWhatComesAfter) {
  Connect(/*answers=*/false);
  const auto sent = StartLarge();
  const auto queued = Start();
  std::thread waiting([&] {
    EXPECT_THAT(Outcome(sent), StatusIs(absl::StatusCode::kUnavailable));
    EXPECT_THAT(Outcome(queued), StatusIs(absl::StatusCode::kUnavailable));
  });
  channel_->Cancel();
  waiting.join();
  EXPECT_THAT(Outcome(Start()), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(StepChannelTest, ABreakIsCountedOnceAndTheNextStepTakesAFreshStream) {
  Connect(/*answers=*/true);
  store_->Open();
  EXPECT_EQ(channel_->breaks(), 0u);
  EXPECT_OK(Outcome(Start()));
  EXPECT_EQ(channel_->breaks(), 0u);
  store_->Stop();
  const absl::Time end = absl::Now() + absl::Seconds(30);
  while (channel_->breaks() == 0 && absl::Now() < end) std::this_thread::yield();
  EXPECT_EQ(channel_->breaks(), 1u);
  EXPECT_EQ(channel_->breaks(), 1u);
  EXPECT_THAT(Outcome(Start()), StatusIs(absl::StatusCode::kUnavailable));
}

}  // namespace
}  // namespace terrace::testing
