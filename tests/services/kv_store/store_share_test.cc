// Stores share a worker's threads: one that hangs keeps its own part of them, and nobody else's
// items wait for it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "services/engine/error.h"
#include "services/engine/handle.h"
#include "services/kv_store/shard_set.h"
#include "tests/services/kv_store/mute_store.h"
#include "tests/services/kv_store/store_server.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::SequenceInfo;
using engine::StepResult;
using kv_store::CallSlots;
using kv_store::RemoteEngine;
using kv_store::Shard;
using kv_store::ShardSet;
using ::testing::HasSubstr;

constexpr uint64_t kSeed = 1;

// Without waiting.
std::vector<CallSlots::Slot> TakeAll(Shard& shard, size_t at_most) {
  std::vector<CallSlots::Slot> slots;
  while (slots.size() < at_most) {
    absl::StatusOr<CallSlots::Slot> slot = shard.Admit(absl::InfinitePast());
    if (!slot.ok()) break;
    slots.push_back(*std::move(slot));
  }
  return slots;
}

TEST(CallSlotsTest, EachOfSeveralStoresHasAnEqualShareOfTheThreadsAndAtLeastOne) {
  struct Case {
    size_t stores;
    int threads;
    size_t share;
  };
  for (const Case& c : {Case{2, 1, 1}, Case{2, 2, 1}, Case{2, 3, 1}, Case{2, 4, 2}, Case{3, 2, 1},
                        Case{3, 64, 21}, Case{64, 64, 1}}) {
    SCOPED_TRACE(::testing::Message() << c.threads << " threads, " << c.stores << " stores");
    ShardSet shards(std::vector<std::string>(c.stores, "127.0.0.1:1"), 1 << 20, c.threads);
    for (Shard* shard : shards.Preferred()) {
      std::vector<CallSlots::Slot> slots = TakeAll(*shard, 1000);
      EXPECT_EQ(slots.size(), c.share);
      // What is given back can be taken again, and no more.
      slots.pop_back();
      EXPECT_EQ(TakeAll(*shard, 1000).size(), 1u);
    }
  }
}

TEST(CallSlotsTest, AnOnlyStoreHasAllThreads) {
  ShardSet shards({"127.0.0.1:1"}, 1 << 20, 1);
  EXPECT_EQ(TakeAll(*shards.Preferred()[0], 1000).size(), 1000u);
}

TEST(CallSlotsTest, AreWaitedForWhileTheStoreAnswers) {
  CallSlots slots(1);
  CallSlots::Slot first = slots.Take(absl::InfinitePast());
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(slots.Take(absl::InfinitePast()), nullptr);
  EXPECT_EQ(slots.Take(absl::Now() + absl::Milliseconds(1)), nullptr);
  // Longer than a store that says nothing would be waited for.
  std::thread answers([&] {
    for (int i = 0; i < 15; ++i) {
      absl::SleepFor(absl::Milliseconds(100));
      slots.Answered();
    }
    first = nullptr;
  });
  EXPECT_NE(slots.Take(absl::InfiniteFuture()), nullptr);
  answers.join();
}

TEST(CallSlotsTest, AStoreThatSaysNothingIsWaitedForOnceAndThenRefusedUntilItDoes) {
  CallSlots slots(1);
  const CallSlots::Slot held = slots.Take(absl::InfinitePast());
  EXPECT_EQ(slots.Take(absl::InfiniteFuture()), nullptr);
  // By now at once: a thousand waits of a second would outlast the test.
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(slots.Take(absl::InfiniteFuture()), nullptr);
  slots.Answered();
  const absl::Time deadline = absl::Now() + absl::Milliseconds(1);
  EXPECT_EQ(slots.Take(deadline), nullptr);
  EXPECT_GE(absl::Now(), deadline);
}

class StoreShareTest : public ::testing::Test {
 protected:
  // A worker of so many threads over a good store, shard 1, and a mute one, shard 2.
  void Connect(int threads) {
    kv_store::RemoteOptions options = OptionsFor({mute_.endpoint(), good_.server->endpoint()});
    options.threads = threads;
    remote_ = std::make_unique<RemoteEngine>(options);
    ASSERT_OK(remote_->Connect(Soon()));
    ASSERT_TRUE(remote_->Unreachable().empty());
  }
  void SetUp() override {
    // A sequence of the good store, past the worker.
    served_ = *good_.engine->Create({}, Spec(SmallGeometry()));
    ASSERT_OK(AppendSeed(*good_.engine, served_, kSeed, 0, 20));
    hung_.handle = engine::NewHandle(2);
    hung_.spec = served_.spec;
  }

  static Step StepOf(const SequenceInfo& info) {
    return ReadStep(info, kSeed, 0, 19, 1, Sparq(4, 10));
  }
  std::vector<StepResult> Both(RemoteEngine& remote, absl::Time deadline = absl::InfiniteFuture()) {
    const Step hung = StepOf(hung_);
    const Step served = StepOf(served_);
    return remote.Attend({}, 0, std::vector<engine::StepRequest>{hung.request(), served.request()},
                         {.deadline = deadline});
  }

  Store good_{OnShard(1)};
  MuteStore mute_{2, MuteStore::Names::kItself};
  SequenceInfo served_;
  SequenceInfo hung_;
  std::unique_ptr<RemoteEngine> remote_;
};

TEST_F(StoreShareTest, WhatExceedsAHungStoresShareIsRefusedAndOthersAreServed) {
  Connect(/*threads=*/4);
  std::thread step([&] {
    EXPECT_THAT(RunOne(*remote_, 0, StepOf(hung_)).status,
                StatusIs(absl::StatusCode::kUnavailable));
  });
  std::thread call([&] {
    EXPECT_THAT(remote_->Get({}, hung_.handle), StatusIs(absl::StatusCode::kUnavailable));
  });
  EXPECT_TRUE(mute_.AwaitSteps(1));
  EXPECT_TRUE(mute_.AwaitCalls(1));
  // Steps and calls alike.
  const std::vector<StepResult> both = Both(*remote_);
  for (const absl::Status& refused : {both[0].status, RunOne(*remote_, 0, StepOf(hung_)).status,
                                      remote_->Get({}, hung_.handle).status()}) {
    EXPECT_THAT(refused,
                StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr(mute_.endpoint())));
    EXPECT_TRUE(engine::DetailOf(refused).value_or(engine::ErrorDetail()).retry_delay.has_value());
  }
  EXPECT_FALSE(both[0].appended);
  EXPECT_OK(both[1].status);
  EXPECT_OK(remote_->Get({}, served_.handle));
  EXPECT_OK(remote_->Create({}, Spec(SmallGeometry())));
  remote_->Cancel();
  step.join();
  call.join();
}

// Two stores that answer have more callers than threads to wait with: nobody is refused.
TEST_F(StoreShareTest, StoresThatAnswerServeAnyNumberOfCallers) {
  Store other(OnShard(3));
  kv_store::RemoteOptions options =
      OptionsFor({other.server->endpoint(), good_.server->endpoint()});
  options.threads = 2;
  RemoteEngine remote(options);
  ASSERT_OK(remote.Connect(Soon()));
  const SequenceInfo elsewhere = *other.engine->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*other.engine, elsewhere, kSeed, 0, 20));
  std::vector<std::thread> callers;
  for (int i = 0; i < 8; ++i) {
    callers.emplace_back([&] {
      const Step here = StepOf(served_);
      const Step there = StepOf(elsewhere);
      for (int turn = 0; turn < 20; ++turn) {
        for (const StepResult& result : remote.Attend(
                 {}, 0, std::vector<engine::StepRequest>{there.request(), here.request()}, {})) {
          EXPECT_OK(result.status);
        }
        EXPECT_OK(remote.Get({}, served_.handle));
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

// A step that has waited for its turn until its deadline was never sent.
TEST_F(StoreShareTest, AStepWhoseTurnDoesNotComeInTimeWasNotSent) {
  Connect(/*threads=*/2);
  std::thread step([&] {
    EXPECT_THAT(RunOne(*remote_, 0, StepOf(hung_)).status,
                StatusIs(absl::StatusCode::kUnavailable));
  });
  EXPECT_TRUE(mute_.AwaitSteps(1));
  const StepResult late =
      RunOne(*remote_, 0, StepOf(hung_), {.deadline = absl::Now() + absl::Milliseconds(50)});
  EXPECT_THAT(late.status,
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("before it was sent")));
  EXPECT_THAT(late.status.message(), HasSubstr(mute_.endpoint()));
  EXPECT_FALSE(late.appended);
  remote_->Cancel();
  step.join();
}

// The batch waits for the hung store, but no longer for the other.
TEST_F(StoreShareTest, ABatchGivesAStoresSlotBackWhenThatStoreHasAnswered) {
  Connect(/*threads=*/2);
  const Step hung = StepOf(hung_);
  const Step served = AppendStep(served_, kSeed, 0, 20, 1, Sparq(4, 10));
  std::thread batch([&] {
    const std::vector<StepResult> both = remote_->Attend(
        {}, 0, std::vector<engine::StepRequest>{hung.request(), served.request()}, {});
    EXPECT_THAT(both[0].status, StatusIs(absl::StatusCode::kUnavailable));
    EXPECT_OK(both[1].status);
  });
  // Both parts have their slots.
  EXPECT_TRUE(mute_.AwaitSteps(1));
  const absl::Time end = Soon();
  while (good_.engine->Get({}, served_.handle)->layer_lengths[0] == 20 && absl::Now() < end) {
    std::this_thread::yield();
  }
  absl::Status status;
  do {
    status = RunOne(*remote_, 0, StepOf(served_)).status;
  } while (absl::IsResourceExhausted(status) && absl::Now() < end);
  EXPECT_OK(status);
  remote_->Cancel();
  batch.join();
}

class UnnamedStoreTest : public StoreShareTest {
 protected:
  MuteStore unnamed_{2, MuteStore::Names::kNothing};
};

// It gets two seconds to say who it is: who waited for that would be late.
TEST_F(UnnamedStoreTest, HoldsUpNobodyElsesItems) {
  std::vector<std::string> stores(5, unnamed_.endpoint());
  stores.push_back(good_.server->endpoint());
  RemoteEngine remote(OptionsFor(stores));
  const std::vector<StepResult> both = Both(remote, absl::Now() + absl::Milliseconds(1900));
  EXPECT_OK(both[1].status);
  EXPECT_THAT(both[0].status,
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr(unnamed_.endpoint())));
}

TEST_F(UnnamedStoreTest, IsWaitedForUntilTheStepsDeadline) {
  RemoteEngine remote(OptionsFor({unnamed_.endpoint()}));
  const StepResult late =
      RunOne(remote, 0, StepOf(hung_), {.deadline = absl::Now() + absl::Milliseconds(50)});
  EXPECT_THAT(late.status,
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("before it was sent")));
  EXPECT_THAT(late.status.message(), HasSubstr(unnamed_.endpoint()));
  EXPECT_FALSE(late.appended);
}

}  // namespace
}  // namespace terrace::testing
