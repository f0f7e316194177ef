#include "kvstore/reclaimer.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace terrace::kvstore {
namespace {

// Nobody has written for so long: idle.
constexpr absl::Duration kIdleTime = absl::Seconds(1);

}  // namespace

Reclaimer::Reclaimer(StoreCore& core)
    : core_(core), budget_bytes_(core.options.disk_bytes), thread_([this] { Run(); }) {}

Reclaimer::~Reclaimer() {
  Stop();
  thread_.join();
}

void Reclaimer::Watch() {
  MutexLock lock(mu_);
  watching_ = true;
  changed_.NotifyAll();
}

void Reclaimer::Stop() {
  MutexLock lock(mu_);
  stopping_ = true;
  cancelled_ = true;
  changed_.NotifyAll();
}

absl::Status Reclaimer::WithRoom(absl::Time deadline, absl::FunctionRef<absl::Status()> write) {
  absl::Status status = write();
  for (int pass = 0; pass < 2 && absl::IsResourceExhausted(status); ++pass) {
    if (!AwaitPass(deadline)) break;
    status = write();
  }
  return status;
}

bool Reclaimer::AwaitPass(absl::Time deadline) {
  const bool is_worth_it = Measure().garbage_bytes >= core_.disk->garbage_min_bytes();
  MutexLock lock(mu_);
  if (!working_) {
    if (!is_worth_it) return false;
    wanted_ = true;
    changed_.NotifyAll();
  }
  const uint64_t passes = passes_;
  while (!stopping_ && passes_ == passes) {
    if (!changed_.WaitUntil(mu_, deadline) && passes_ == passes) return false;
  }
  return !stopping_;
}

Reclaimer::Usage Reclaimer::Measure() const {
  Usage usage{.used_bytes = core_.disk->used_bytes()};
  MutexLock lock(core_.mu);
  const uint64_t live_bytes = core_.disk_stats.resident_bytes + core_.disk_stats.index_bytes;
  usage.excess_bytes = usage.used_bytes - std::min(usage.used_bytes, live_bytes);
  usage.garbage_bytes =
      usage.excess_bytes - std::min<uint64_t>(usage.excess_bytes, overhead_bytes_);
  return usage;
}

void Reclaimer::Run() {
  while (true) {
    bool is_wanted = false;
    {
      MutexLock lock(mu_);
      const absl::Time look_at = absl::Now() + kIdleTime;
      while (!stopping_ && !wanted_ && (!watching_ || absl::Now() < look_at)) {
        changed_.WaitUntil(mu_, watching_ ? look_at : absl::InfiniteFuture());
      }
      if (stopping_) return;
      is_wanted = wanted_;
      wanted_ = false;
      working_ = is_wanted;
    }
    if (!is_wanted && !ShouldWork()) continue;
    {
      MutexLock lock(mu_);
      working_ = true;
    }
    // In the order that Stop does not.
    cancelled_ = false;
    if (stopping_) return;
    Pass();
    MutexLock lock(mu_);
    // The database was opened anew: whoever waits does so for a whole pass.
    wanted_ = wanted_ || cancelled_;
    working_ = cancelled_;
    if (!cancelled_) ++passes_;
    changed_.NotifyAll();
  }
}

bool Reclaimer::ShouldWork() {
  const uint64_t writes = core_.disk->write_count();
  const bool is_idle = writes == woken_at_write_;
  woken_at_write_ = writes;
  if (writes == looked_at_write_) return false;
  const Usage usage = Measure();
  // Deletions eat what is left for them: not to be put off.
  const bool is_crowded = usage.used_bytes > core_.disk->budget_for_blocks();
  if (!is_idle && !is_crowded) return false;
  looked_at_write_ = writes;
  return usage.garbage_bytes >= (is_crowded ? core_.disk->garbage_min_bytes() : watermark_bytes());
}

void Reclaimer::Pass() {
  const Usage before = Measure();
  // Somebody may wait for some room, not for all there is to be had; and the last quarter would
  // cost the rewriting of nearly everything that lives.
  const uint64_t wanted = std::min(before.garbage_bytes / 4 * 3, watermark_bytes());
  absl::StatusOr<bool> is_complete = core_.disk->Reclaim(before.used_bytes - wanted, cancelled_);
  if (absl::IsDataLoss(is_complete.status()) && MoveCorrupt()) {
    is_complete = core_.disk->Reclaim(before.used_bytes - wanted, cancelled_);
  }
  if (cancelled_) return;
  if (!is_complete.ok()) {
    MutexLock lock(core_.mu);
    core_.CountDiskError(is_complete.status());
    return;
  }
  if (*is_complete) overhead_bytes_ = Measure().excess_bytes;
  // There may be more.
  looked_at_write_ = UINT64_MAX;
}

bool Reclaimer::MoveCorrupt() {
  const absl::StatusOr<std::vector<std::string>> keys = core_.disk->FindCorrupt(cancelled_);
  if (!keys.ok() || keys->empty() || cancelled_) return false;
  // In batches, and others in between.
  for (absl::Span<const std::string> rest = *keys; !rest.empty();) {
    DiskTurn turn(core_);
    {
      MutexLock lock(core_.mu);
      turn.Take(absl::InfiniteFuture());
    }
    const absl::StatusOr<size_t> moved = core_.disk->Rewrite(rest);
    if (!moved.ok() || cancelled_) return false;
    rest.remove_prefix(*moved);
  }
  return true;
}

}  // namespace terrace::kvstore
