// A trace run through a tier of a bounded number of blocks.
#ifndef TERRACE_SERVICES_REPLAY_REPLAY_H_
#define TERRACE_SERVICES_REPLAY_REPLAY_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "kvstore/placement_policy.h"
#include "services/replay/reference_trace.h"

namespace terrace::replay {

// A policy of the store, or Belady's optimum.
struct ReplayPolicy {
  // None for Belady.
  std::optional<kvstore::PolicyKind> kind = kvstore::kDefaultPolicy;

  friend bool operator==(const ReplayPolicy&, const ReplayPolicy&) = default;
};

// "belady", or the name of the store's policy.
std::string Name(const ReplayPolicy& policy);
std::optional<ReplayPolicy> ParseReplayPolicy(const std::string& name);

struct ReplayRun {
  ReplayPolicy policy;
  uint64_t capacity_blocks = 0;
};

// Told the references replayed so far, now and then.
using ReplayProgress = absl::FunctionRef<void(uint64_t references)>;

// References that found their block in the tier, which is empty at first.
// Requires: run.capacity_blocks is at least 1.
uint64_t CountHits(const ReferenceTrace& trace, const ReplayRun& run,
                   const kvstore::PlacementOptions& options, ReplayProgress progress);

}  // namespace terrace::replay

#endif  // TERRACE_SERVICES_REPLAY_REPLAY_H_
