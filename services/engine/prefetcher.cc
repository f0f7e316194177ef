#include "services/engine/prefetcher.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"

namespace terrace::engine {
namespace {

// How far ahead of a step: one layer may be reading when the next is asked for.
constexpr int kLayersAhead = 2;
// Some layers of a few sequences; more would only come late.
constexpr size_t kJobsMax = 64;
// Blocks that are remembered, 16 bytes each.
constexpr size_t kWantedMax = size_t{1} << 20;
// A sequence that somebody changes is not worth waiting for; a disk that is slow, a little.
constexpr absl::Duration kGateWait = absl::Milliseconds(1);
constexpr absl::Duration kReadWait = absl::Seconds(1);

}  // namespace

Prefetcher::Prefetcher(kvstore::BlockStore& store) : store_(store), thread_([this] { Run(); }) {}

Prefetcher::~Prefetcher() {
  {
    const kvstore::MutexLock lock(mu_);
    stopping_ = true;
    queued_.NotifyAll();
  }
  thread_.join();
}

Prefetcher::Memory& Prefetcher::Remember(Sequence& sequence) {
  const auto [found, unknown] = memories_.try_emplace(&sequence);
  Memory& memory = found->second;
  if (!unknown) {
    order_.splice(order_.end(), order_, memory.place);
    // Another one may have had the address.
    if (!memory.sequence.expired()) return memory;
    wanted_count_ -= memory.count;
  } else {
    memory.place = order_.insert(order_.end(), &sequence);
  }
  memory.sequence = sequence.weak_from_this();
  memory.layers.assign(sequence.spec.geometry.layers, {});
  memory.count = 0;
  return memory;
}

void Prefetcher::DropMemory(const Sequence* sequence) {
  const auto found = memories_.find(sequence);
  wanted_count_ -= found->second.count;
  order_.erase(found->second.place);
  memories_.erase(found);
}

void Prefetcher::Forget(const Sequence& sequence, absl::Time deadline) {
  deadline = std::min(deadline, absl::Now() + kReadWait);
  const kvstore::MutexLock lock(mu_);
  if (memories_.contains(&sequence)) DropMemory(&sequence);
  const auto is_its = [&](const Job& job) { return job.sequence.lock().get() == &sequence; };
  jobs_.erase(std::remove_if(jobs_.begin(), jobs_.end(), is_its), jobs_.end());
  while (running_ == &sequence && done_.WaitUntil(mu_, deadline)) continue;
}

void Prefetcher::NoteStep(Sequence& sequence, int layer,
                          absl::Span<const kvstore::ReadRequest> requests) {
  std::vector<Wanted> wanted;
  wanted.reserve(requests.size());
  for (const kvstore::ReadRequest& request : requests) {
    wanted.push_back({.cells = request.cells, .block = request.index, .head = request.head});
  }
  const kvstore::MutexLock lock(mu_);
  Memory& memory = Remember(sequence);
  const auto is_past = [&](const Job& job) {
    return job.layer == layer && job.sequence.lock().get() == &sequence;
  };
  jobs_.erase(std::remove_if(jobs_.begin(), jobs_.end(), is_past), jobs_.end());
  memory.count += wanted.size() - memory.layers[layer].size();
  wanted_count_ += wanted.size() - memory.layers[layer].size();
  memory.layers[layer] = std::move(wanted);
  const auto layers = static_cast<int>(memory.layers.size());
  const int next = (layer + std::min(kLayersAhead, layers)) % layers;
  if (next != layer && !memory.layers[next].empty()) {
    if (jobs_.size() == kJobsMax) jobs_.pop_front();
    jobs_.push_back({.sequence = memory.sequence,
                     .layer = static_cast<uint16_t>(next),
                     .wanted = memory.layers[next]});
    queued_.NotifyAll();
  }
  while (wanted_count_ > kWantedMax) DropMemory(order_.front());
}

void Prefetcher::Run() {
  while (true) {
    Job job;
    {
      const kvstore::MutexLock lock(mu_);
      while (jobs_.empty() && !stopping_) queued_.Wait(mu_);
      if (stopping_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
      running_ = job.sequence.lock().get();
    }
    ReadAhead(job);
    const kvstore::MutexLock lock(mu_);
    running_ = nullptr;
    done_.NotifyAll();
  }
}

void Prefetcher::ReadAhead(const Job& job) {
  std::vector<kvstore::ReadRequest> requests;
  // Keep what is read, without the gate: nobody waits for the disk here.
  std::vector<kvstore::SegmentRef> segments;
  {
    const std::shared_ptr<Sequence> sequence = job.sequence.lock();
    if (sequence == nullptr) return;
    const SharedHold gate(sequence->gate, absl::Now() + kGateWait);
    if (!gate.held() || sequence->closed) return;
    for (const kvstore::SegmentRange& range : sequence->ranges) segments.push_back(range.segment);
    for (const Wanted& wanted : job.wanted) {
      requests.push_back({.segment = sequence->RangeOf(wanted.block).segment.get(),
                          .layer = job.layer,
                          .head = wanted.head,
                          .index = wanted.block,
                          .cells = wanted.cells});
    }
  }
  store_.ReadAhead(requests, absl::Now() + kReadWait);
}

}  // namespace terrace::engine
