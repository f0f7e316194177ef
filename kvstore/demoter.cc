#include "kvstore/demoter.h"

#include "absl/time/clock.h"

namespace terrace::kvstore {
namespace {

// Rounds of eviction under one hold of the mutex: some 40 us.
constexpr int kBatchRounds = 4;
// When nothing may leave: the writer, or who holds pins, needs a while.
constexpr absl::Duration kRetry = absl::Milliseconds(10);

}  // namespace

Demoter::Demoter(StoreCore& core) : core_(core), thread_([this] { Run(); }) {}

Demoter::~Demoter() {
  {
    MutexLock lock(core_.mu);
    stopping_ = true;
    core_.crowded.NotifyAll();
  }
  thread_.join();
}

void Demoter::Run() {
  MutexLock lock(core_.mu);
  while (!stopping_) {
    if (!core_.host.crowded()) {
      core_.crowded.WaitUntil(core_.mu, absl::InfiniteFuture());
      continue;
    }
    bool evicting = true;
    while (evicting && !stopping_) {
      bool evicted = false;
      for (int i = 0; i < kBatchRounds && evicting; ++i) {
        evicting = core_.host.Demote();
        evicted = evicted || evicting;
      }
      if (evicted) core_.room.NotifyAll();
      core_.mu.Unlock();
      core_.mu.Lock();
    }
    if (core_.host.crowded()) core_.crowded.WaitUntil(core_.mu, absl::Now() + kRetry);
  }
}

}  // namespace terrace::kvstore
