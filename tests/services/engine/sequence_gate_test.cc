#include "services/engine/sequence_gate.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "absl/time/clock.h"

namespace terrace::engine {
namespace {

constexpr absl::Time kNever = absl::InfiniteFuture();

// Soon enough to wait for.
absl::Time Soon() { return absl::Now() + absl::Milliseconds(1); }
// Late enough that only somebody in the way is a reason to get nothing by then.
absl::Time Later() { return absl::Now() + absl::Milliseconds(50); }

TEST(SequenceGateTest, SharingExcludesHoldingItAloneAndNothingElse) {
  SequenceGate gate;
  ASSERT_TRUE(gate.LockShared(kNever));
  EXPECT_TRUE(gate.LockShared(Soon()));
  EXPECT_FALSE(gate.Lock(Soon()));
  gate.UnlockShared();
  EXPECT_FALSE(gate.Lock(Soon()));
  gate.UnlockShared();
  EXPECT_TRUE(gate.Lock(Soon() + absl::Hours(1)));
  EXPECT_FALSE(gate.Lock(Soon()));
  EXPECT_FALSE(gate.LockShared(Soon()));
  gate.Unlock();
  EXPECT_TRUE(gate.LockShared(Soon() + absl::Hours(1)));
  gate.UnlockShared();
}

TEST(SequenceGateTest, ADeadlineThatHasPassedGetsNothing) {
  SequenceGate gate;
  for (const absl::Time past : {absl::InfinitePast(), absl::UnixEpoch(), absl::Now()}) {
    EXPECT_FALSE(gate.LockShared(past));
    EXPECT_FALSE(gate.Lock(past));
    EXPECT_FALSE(SharedHold(gate, past).held());
    EXPECT_FALSE(SoleHold(gate, past).held());
  }
  // Nor did it leave anything behind.
  EXPECT_TRUE(SoleHold(gate, kNever).held());
  EXPECT_TRUE(SharedHold(gate, kNever).held());
}

TEST(SequenceGateTest, WhoWaitsToHoldItAloneKeepsNewcomersOut) {
  SequenceGate gate;
  ASSERT_TRUE(gate.LockShared(kNever));
  std::thread writer([&] {
    const SoleHold hold(gate, kNever);
    EXPECT_TRUE(hold.held());
  });
  // Only a writer that waits can keep them out: it cannot hold the gate yet.
  while (gate.LockShared(Later())) gate.UnlockShared();
  gate.UnlockShared();
  writer.join();
  EXPECT_TRUE(SharedHold(gate, kNever).held());
}

TEST(SequenceGateTest, AWriterThatGivesUpLetsNewcomersIn) {
  SequenceGate gate;
  ASSERT_TRUE(gate.LockShared(kNever));
  std::atomic<bool> done = false;
  std::thread writer([&] {
    while (!done) EXPECT_FALSE(gate.Lock(Later() + absl::Milliseconds(200)));
  });
  while (gate.LockShared(Later())) gate.UnlockShared();
  done = true;
  // Without a deadline: it comes back only because the writer gave up.
  EXPECT_TRUE(gate.LockShared(kNever));
  gate.UnlockShared();
  writer.join();
  gate.UnlockShared();
}

TEST(SequenceGateTest, WhoTriesGetsItOnlyWhereNobodyIsInTheWay) {
  SequenceGate gate;
  {
    const SharedHold other(gate, kNever);
    EXPECT_FALSE(SoleHold(gate, std::try_to_lock).held());
  }
  {
    const SoleHold mine(gate, std::try_to_lock);
    EXPECT_TRUE(mine.held());
    EXPECT_FALSE(SoleHold(gate, std::try_to_lock).held());
  }
  EXPECT_TRUE(gate.LockShared(kNever));
  gate.UnlockShared();
}

TEST(SequenceGateTest, NobodyIsInsideWithOneWhoHoldsItAlone) {
  SequenceGate gate;
  // Unprotected but by the gate: a sanitizer would say so.
  int64_t count = 0;
  std::atomic<int64_t> expected = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 2000; ++i) {
        // Every deadline from one that has passed to one that never does.
        const absl::Time deadline = i % 3 == 0 ? kNever : absl::Now() + absl::Microseconds(i % 100);
        if ((t + i) % 4 == 0) {
          const SoleHold hold(gate, deadline);
          if (!hold.held()) continue;
          ++count;
          ++expected;
        } else {
          const SharedHold hold(gate, deadline);
          EXPECT_TRUE(!hold.held() || count == expected);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(count, expected);
  EXPECT_GT(count, 0);
}

}  // namespace
}  // namespace terrace::engine
