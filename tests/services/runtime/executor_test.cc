#include "services/runtime/executor.h"

#include <gtest/gtest.h>

#include <atomic>
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
