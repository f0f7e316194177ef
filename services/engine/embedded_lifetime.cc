// How sequences of an EmbeddedEngine end: closed, retained, expired, or given up for room.
#include <algorithm>
#include <map>
#include <utility>

#include "services/engine/embedded_engine.h"
#include "services/engine/error.h"

namespace terrace::engine {
namespace {

// How long a sweep waits for one sequence: the next sweep comes.
constexpr absl::Duration kSweepPatience = absl::Milliseconds(100);

// Whether what lives takes so much of a tier that retained sequences must give way. The rest is for
// what comes before the next sweep, and on disk for garbage.
bool IsFull(const kvstore::TierStats& tier) {
  return tier.resident_bytes + tier.index_bytes > tier.capacity_bytes / 4 * 3;
}

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
  return absl::OkStatus();
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
  const SoleHold gate(sequence.gate, deadline);
  // A step that ran meanwhile has used it.
  if (!gate.held() || !expired()) return;
  const bool retain = !sequence.retained() && sequence.spec.retention > absl::ZeroDuration();
  // What cannot be written now expires again.
  (retain ? RetainLocked(sequence, deadline) : DropLocked(sequence, deadline)).IgnoreError();
}

void EmbeddedEngine::ShrinkRetained() {
  std::map<std::string, uint64_t> bytes;
  // With their last use: they may be used while they are sorted.
  std::vector<std::pair<int64_t, std::shared_ptr<Sequence>>> retained;
  for (const std::shared_ptr<Sequence>& sequence : AllSequences()) {
    if (!sequence->retained() || sequence->leased) continue;
    bytes[sequence->tenant] += BytesOf(*sequence);
    retained.emplace_back(sequence->last_used_us.load(), sequence);
  }
  std::sort(retained.begin(), retained.end());
  const bool has_disk = !options_.store.disk_path.empty();
  size_t count = sequence_count();
  const auto count_max = static_cast<size_t>(options_.limits.max_sequences) / 8 * 7;
  for (size_t left = retained.size(); left > 0; --left) {
    // One tenant's content never costs another one more than it has itself (I11).
    const auto most =
        std::max_element(bytes.begin(), bytes.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    const bool full =
        IsFull(has_disk ? store_->DiskStats() : store_->HostStats()) || count > count_max;
    if (!full && most->second <= options_.retained_bytes_max) return;
    const auto victim = std::find_if(retained.begin(), retained.end(), [&](const auto& entry) {
      return entry.second != nullptr && entry.second->tenant == most->first;
    });
    if (victim == retained.end()) return;
    // Outlives its gate.
    const std::shared_ptr<Sequence> sequence = std::move(victim->second);
    most->second -= BytesOf(*sequence);
    const absl::Time deadline = absl::Now() + kSweepPatience;
    const SoleHold gate(sequence->gate, deadline);
    if (gate.held()) DropLocked(*sequence, deadline).IgnoreError();
    --count;
  }
}

void EmbeddedEngine::Sweep() {
  const absl::Time now = options_.clock();
  DeleteRetainedAside();
  for (const std::shared_ptr<Sequence>& sequence : AllSequences()) Expire(*sequence, now);
  ShrinkRetained();
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
