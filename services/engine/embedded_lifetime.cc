// How sequences of an EmbeddedEngine end: closed, retained, expired, or given up for room.
#include <algorithm>
#include <map>
#include <utility>

#include "services/engine/embedded_engine.h"
#include "services/engine/error.h"

namespace terrace::engine {
namespace {

// How long a sweep waits for the disk, for one sequence: the next sweep comes.
constexpr absl::Duration kSweepPatience = absl::Milliseconds(100);

// How long one who finds no room waits for another who makes some.
constexpr absl::Duration kShrinkPatience = absl::Seconds(1);
// What is given up beyond need, as a part of the quota or tier, so that puts need not look often.
constexpr uint64_t kSlackDivisor = 64;
// Values whose manifests are deleted at once.
constexpr size_t kValuesAtOnce = 64;

// Rows and index of a retained sequence, what it shares included.
uint64_t BytesOf(const Sequence& sequence) {
  const kvstore::BlockLayout& block = sequence.layout.block;
  const uint64_t blocks = static_cast<uint64_t>(sequence.length()) / block.block_tokens;
  return blocks * block.layers * block.heads * (block.rows_bytes() + block.piece_bytes());
}

}  // namespace

absl::Status EmbeddedEngine::DropLocked(Sequence& sequence, absl::Time deadline) {
  // Somebody else was first.
  if (sequence.ranges.empty()) return absl::OkStatus();
  if (absl::Status status = store_->DeleteManifest(sequence.handle, deadline); !status.ok())
    return status;
  sequence.closed = true;
  sequence.live = {};
  sequence.ranges.clear();
  prefixes_.Remove(sequence, sequence.CutTokens(0));
  const kvstore::MutexLock lock(mu_);
  sequences_.erase(sequence.handle);
  return absl::OkStatus();
}

absl::Status EmbeddedEngine::RetainLocked(Sequence& sequence, absl::Time deadline) {
  sequence.retained_until_us = absl::ToUnixMicros(options_.clock() + sequence.spec.retention);
  if (absl::Status status = KeepHashed(sequence, deadline); !status.ok()) {
    sequence.retained_until_us = INT64_MAX;
    return status;
  }
  sequence.closed = true;
  sequence.live = {};
  return absl::OkStatus();
}

absl::Status EmbeddedEngine::CloseLocked(Sequence& sequence, absl::Time deadline) {
  if (sequence.spec.retention > absl::ZeroDuration()) {
    absl::Status status = RetainLocked(sequence, deadline);
    // Whoever closes gives room, and must not need any.
    if (!absl::IsResourceExhausted(status)) return status;
  }
  return DropLocked(sequence, deadline);
}

absl::Status EmbeddedEngine::KeepHashed(Sequence& sequence, absl::Time deadline) {
  const int64_t length = sequence.HashedTokens();
  if (length == 0) return DropLocked(sequence, deadline);
  std::vector<kvstore::SegmentRange> ranges =
      sequence.CutRanges(static_cast<uint32_t>(length / sequence.block_tokens()));
  std::swap(sequence.ranges, ranges);
  if (absl::Status status = Commit(sequence, length, deadline); !status.ok()) {
    std::swap(sequence.ranges, ranges);
    return status;
  }
  for (std::atomic<int64_t>& layer : sequence.layer_length) layer = length;
  for (std::atomic<bool>& on_disk : sequence.tail_on_disk) on_disk = false;
  return absl::OkStatus();
}

void EmbeddedEngine::DeleteRetainedAside() {
  std::vector<std::string> handles;
  {
    const kvstore::MutexLock lock(mu_);
    for (const auto& [handle, aside] : set_aside_) {
      if (aside.retained) handles.push_back(handle);
    }
  }
  for (const std::string& handle : handles) {
    // What cannot be written now is deleted by the next sweep.
    DeleteAside(handle, absl::Now() + kSweepPatience).IgnoreError();
  }
}

std::vector<std::shared_ptr<Sequence>> EmbeddedEngine::AllSequences() const {
  const kvstore::MutexLock lock(mu_);
  std::vector<std::shared_ptr<Sequence>> all;
  all.reserve(sequences_.size());
  for (const auto& [handle, sequence] : sequences_) all.push_back(sequence);
  return all;
}

void EmbeddedEngine::Expire(Sequence& sequence, absl::Time now) {
  const absl::Duration ttl = sequence.spec.idle_ttl;
  const auto expired = [&] {
    if (sequence.retained()) return sequence.retained_until_us <= absl::ToUnixMicros(now);
    return ttl > absl::ZeroDuration() && absl::FromUnixMicros(sequence.last_used_us) + ttl <= now;
  };
  if (!expired()) return;
  const absl::Time deadline = absl::Now() + kSweepPatience;
  const SoleHold gate(sequence.gate, std::try_to_lock);
  // Who holds it uses it, and a step that ran meanwhile has.
  if (!gate.held() || !expired()) return;
  // What cannot be written now expires again.
  (sequence.retained() ? DropLocked(sequence, deadline) : CloseLocked(sequence, deadline))
      .IgnoreError();
}

void EmbeddedEngine::AddRetained(RetainedSet& set) const {
  for (const std::shared_ptr<Sequence>& sequence : AllSequences()) {
    if (!sequence->retained() || sequence->leased) continue;
    set.Add(
        sequence->tenant,
        {.last_used_us = sequence->last_used_us, .bytes = BytesOf(*sequence), .what = sequence});
  }
}

// Three quarters of a tier are for what lives. The rest is for what comes before somebody looks
// again, and on disk for garbage.
uint64_t EmbeddedEngine::ExcessBytes() const {
  const bool has_disk = !options_.store.disk_path.empty();
  const kvstore::TierStats tier = has_disk ? store_->DiskStats() : store_->HostStats();
  const uint64_t used = tier.resident_bytes + tier.index_bytes;
  const uint64_t full = tier.capacity_bytes / 4 * 3;
  return used <= full ? 0 : used - full + tier.capacity_bytes / kSlackDivisor;
}

bool EmbeddedEngine::DropFrom(RetainedSet& set,
                              const std::function<bool(uint64_t taken_bytes)>& needed) {
  const absl::Duration patience = kSweepPatience;
  std::vector<std::shared_ptr<StoredValue>> values;
  const auto drop_values = [&] {
    values_->GiveUp(values, absl::Now() + patience);
    values.clear();
  };
  uint64_t taken_bytes = 0;
  bool any = false;
  while (needed(taken_bytes)) {
    std::optional<Retained> taken = set.Take();
    if (!taken.has_value()) break;
    if (auto* value = std::get_if<std::shared_ptr<StoredValue>>(&taken->what)) {
      any = true;
      taken_bytes += taken->bytes;
      values.push_back(std::move(*value));
      if (values.size() == kValuesAtOnce) drop_values();
      continue;
    }
    // Outlives its gate.
    const auto sequence = std::get<std::shared_ptr<Sequence>>(std::move(taken->what));
    const SoleHold gate(sequence->gate, std::try_to_lock);
    if (!gate.held() || !DropLocked(*sequence, absl::Now() + patience).ok()) continue;
    any = true;
    taken_bytes += taken->bytes;
  }
  drop_values();
  return any;
}

bool EmbeddedEngine::ShrinkRetained(const RoomWanted& wanted) {
  // One at a time, lest many who find no room each make all of it.
  const SoleHold shrinking(shrinking_, std::min(wanted.deadline, absl::Now() + kShrinkPatience));
  if (!shrinking.held()) return false;
  bool any = false;
  const Limits& limits = options_.limits;
  const auto count_max = static_cast<uint64_t>(limits.max_sequences) / 8 * 7;
  if (uint64_t count = sequence_count(); count > count_max) {
    RetainedSet sequences;
    AddRetained(sequences);
    any |= DropFrom(sequences, [&](uint64_t) { return count-- > count_max; });
  }
  const auto values_max = static_cast<uint64_t>(limits.max_values) / 8 * 7;
  if (uint64_t count = values_->size(); count > values_max) {
    RetainedSet values;
    values_->AddTo(values);
    any |= DropFrom(values, [&](uint64_t) { return count-- > values_max; });
  }
  RetainedSet all;
  AddRetained(all);
  values_->AddTo(all);
  all.Count(wanted.tenant, wanted.quota_bytes);
  const uint64_t quota_max = options_.retained_bytes_max;
  const bool put_is_over = wanted.quota_bytes > 0 && all.MostBytes() > quota_max;
  const uint64_t quota = put_is_over ? quota_max - quota_max / kSlackDivisor : quota_max;
  // Memory that is written behind is made free by who writes and who evicts.
  const uint64_t memory_bytes = options_.writes_behind() ? 0 : wanted.memory_bytes;
  // What is shared frees less than it counts.
  for (bool again = true; again;) {
    const uint64_t excess = std::max(ExcessBytes(), memory_bytes);
    again = DropFrom(
        all, [&](uint64_t taken_bytes) { return taken_bytes < excess || all.MostBytes() > quota; });
    any |= again;
    again = again && ExcessBytes() > 0;
  }
  return any;
}

absl::Status EmbeddedEngine::WithRoom(const RoomWanted& wanted,
                                      const std::function<absl::Status()>& attempt) {
  absl::Status status = attempt();
  bool more = !options_.writes_behind();
  while (more && absl::IsResourceExhausted(status)) {
    more = ShrinkRetained(wanted);
    // Once more when nothing was left to drop: another may have made room meanwhile.
    status = attempt();
  }
  // What is idle may end, and what is retained on disk give way.
  if (absl::IsResourceExhausted(status)) SweepSoon();
  return status;
}

void EmbeddedEngine::Sweep() {
  const absl::Time now = options_.clock();
  DeleteRetainedAside();
  for (const std::shared_ptr<Sequence>& sequence : AllSequences()) Expire(*sequence, now);
  values_->Expire();
  ShrinkRetained({});
}

void EmbeddedEngine::RecordTokens(absl::Time deadline) {
  for (const std::shared_ptr<Sequence>& sequence : AllSequences()) {
    const SharedHold gate(sequence->gate, deadline);
    if (!gate.held()) return;
    const SoleHold writer(sequence->writer, deadline);
    if (!writer.held()) return;
    const int64_t length = sequence->length();
    if (sequence->closed || !sequence->KnowsMoreThanRecorded(length)) continue;
    // Without it, the sequence shares less after a restart.
    Commit(*sequence, length, deadline).IgnoreError();
  }
}

void EmbeddedEngine::SweepSoon() {
  const kvstore::MutexLock lock(sweep_mu_);
  sweep_now_ = true;
  sweep_changed_.NotifyAll();
}

void EmbeddedEngine::RunSweeps() {
  while (true) {
    {
      const kvstore::MutexLock lock(sweep_mu_);
      const absl::Time next = absl::Now() + options_.sweep_interval;
      while (!stopping_ && !sweep_now_ && sweep_changed_.WaitUntil(sweep_mu_, next)) continue;
      if (stopping_) return;
      sweep_now_ = false;
    }
    Sweep();
  }
}

}  // namespace terrace::engine
