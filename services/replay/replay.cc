#include "services/replay/replay.h"

#include <memory>
#include <vector>

#include "services/replay/belady.h"

namespace terrace::replay {
namespace {

using kvstore::BlockId;

constexpr char kBelady[] = "belady";
// References between two reports of progress.
constexpr uint64_t kProgressPeriod = uint64_t{1} << 16;

}  // namespace

std::string Name(const ReplayPolicy& policy) {
  return policy.kind ? std::string(kvstore::PolicyName(*policy.kind)) : kBelady;
}

std::optional<ReplayPolicy> ParseReplayPolicy(const std::string& name) {
  if (name == kBelady) return ReplayPolicy{std::nullopt};
  const std::optional<kvstore::PolicyKind> kind = kvstore::ParsePolicyKind(name);
  if (!kind) return std::nullopt;
  return ReplayPolicy{kind};
}

uint64_t CountHits(const ReferenceTrace& trace, const ReplayRun& run,
                   const kvstore::PlacementOptions& options, ReplayProgress progress) {
  if (!run.policy.kind) return BeladyHits(trace.blocks, run.capacity_blocks);
  const std::unique_ptr<kvstore::PlacementPolicy> policy =
      kvstore::MakePlacementPolicy(*run.policy.kind, options);
  std::vector<bool> resident(trace.distinct_blocks);
  uint64_t resident_count = 0;
  uint64_t hits = 0;
  for (size_t i = 0; i < trace.blocks.size(); ++i) {
    if (i % kProgressPeriod == 0) progress(i);
    const uint32_t number = trace.blocks[i];
    const BlockId block{number};
    policy->Touch(block, trace.masses.empty() ? 1 : trace.masses[i]);
    if (resident[number]) {
      ++hits;
      continue;
    }
    if (resident_count == run.capacity_blocks) {
      const BlockId victim = policy->Coldest([](BlockId) { return true; }).value();
      if (!policy->Admits(block, victim)) continue;
      policy->Evict(victim);
      resident[static_cast<size_t>(victim)] = false;
      --resident_count;
    }
    policy->Insert(block);
    resident[number] = true;
    ++resident_count;
  }
  return hits;
}

}  // namespace terrace::replay
