#include "services/runtime/executor.h"

#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <memory>
#include <vector>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "services/runtime/drain.h"

namespace terrace::runtime {
namespace {

TEST(ExecutorTest, TasksOfOneThreadRunInOrder) {
  std::vector<int> ran;
  {
    Executor executor(1, 1000);
    for (int i = 0; i < 100; ++i) {
      EXPECT_TRUE(executor.Submit([&ran, i] { ran.push_back(i); }));
    }
  }
  // Its end waits for what was submitted.
  ASSERT_EQ(ran.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(ran[i], i);
}

TEST(ExecutorTest, AFullQueueRefusesAndRecovers) {
  absl::Notification running;
  absl::Notification release;
  std::atomic<int> done = 0;
  Executor executor(1, 2);
  ASSERT_TRUE(executor.Submit([&] {
    running.Notify();
    release.WaitForNotification();
  }));
  running.WaitForNotification();
  absl::BlockingCounter counter(2);
  const auto count = [&] {
    ++done;
    counter.DecrementCount();
  };
  EXPECT_TRUE(executor.Submit(count));
  EXPECT_TRUE(executor.Submit(count));
  EXPECT_FALSE(executor.Submit([&] { done += 100; }));
  release.Notify();
  counter.Wait();
  EXPECT_EQ(done, 2);
  EXPECT_TRUE(executor.Submit([] {}));
}

TEST(ExecutorTest, WhatIsUnderWayFindsItsPlaceInAFullQueue) {
  absl::Notification running;
  absl::Notification release;
  std::vector<int> ran;
  {
    Executor executor(1, 1);
    ASSERT_TRUE(executor.Submit([&] {
      running.Notify();
      release.WaitForNotification();
    }));
    running.WaitForNotification();
    EXPECT_TRUE(executor.Submit([&] { ran.push_back(1); }));
    EXPECT_FALSE(executor.Submit([&] { ran.push_back(2); }));
    executor.Continue([&] { ran.push_back(3); });
    executor.Continue([&] { ran.push_back(4); });
    release.Notify();
  }
  EXPECT_EQ(ran, (std::vector<int>{1, 3, 4}));
}

TEST(ExecutorTest, SaysWhyCallsAreRefused) {
  Executor executor(1, 1);
  EXPECT_TRUE(executor.refusal().ok());
  executor.Refuse(absl::UnavailableError("not yet"));
  EXPECT_EQ(executor.refusal().message(), "not yet");
  executor.Refuse(absl::OkStatus());
  EXPECT_TRUE(executor.refusal().ok());
}

TEST(ByteBudgetTest, HasRoomUpToItsLimitAndAloneForAnything) {
  constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max();
  struct Case {
    uint64_t taken;
    uint64_t wanted;
    bool fits;
    bool room_before;
  };
  for (const Case& c :
       {Case{0, 0, true, true}, Case{0, 100, true, true}, Case{0, 101, true, true},
        Case{0, kHuge, true, true}, Case{1, 98, true, true}, Case{1, 99, true, true},
        Case{1, 100, false, true}, Case{1, kHuge, false, true}, Case{99, 1, true, true},
        Case{100, 1, false, false}, Case{200, 1, false, false}, Case{200, kHuge, false, false}}) {
    SCOPED_TRACE(::testing::Message() << c.wanted << " beside " << c.taken);
    ByteBudget budget(100);
    budget.Take(c.taken);
    EXPECT_EQ(budget.HasRoom(), c.room_before);
    EXPECT_EQ(budget.TryTake(c.wanted), c.fits);
    if (c.fits) budget.Give(c.wanted);
    budget.Give(c.taken);
    EXPECT_TRUE(budget.TryTake(100));
    EXPECT_FALSE(budget.HasRoom());
  }
}

TEST(ExecutorTest, ThreadsWorkSideBySide) {
  // Each waits for the other.
  absl::Notification first;
  absl::Notification second;
  Executor executor(2, 10);
  ASSERT_TRUE(executor.Submit([&] {
    first.Notify();
    second.WaitForNotification();
  }));
  ASSERT_TRUE(executor.Submit([&] {
    first.WaitForNotification();
    second.Notify();
  }));
}

TEST(DrainTest, ListenersHearOfItOnce) {
  Drain drain;
  int before = 0;
  int removed = 0;
  int after = 0;
  drain.Add([&] { ++before; });
  const uint64_t id = drain.Add([&] { ++removed; });
  drain.Remove(id);
  drain.Remove(id);
  drain.Remove(12345);
  EXPECT_FALSE(drain.started());
  drain.Start();
  EXPECT_TRUE(drain.started());
  drain.Start();
  drain.Add([&] { ++after; });
  EXPECT_EQ(before, 1);
  EXPECT_EQ(removed, 0);
  EXPECT_EQ(after, 1);
}

}  // namespace
}  // namespace terrace::runtime
