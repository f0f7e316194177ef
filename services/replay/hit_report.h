// What a replay found out, as text. Pure functions.
#ifndef TERRACE_SERVICES_REPLAY_HIT_REPORT_H_
#define TERRACE_SERVICES_REPLAY_HIT_REPORT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "services/replay/reference_trace.h"
#include "services/replay/replay.h"

namespace terrace::replay {

struct HitCounts {
  // Neither is empty.
  std::vector<ReplayPolicy> policies;
  std::vector<uint64_t> capacities;
  // By policy, and there by capacity.
  std::vector<std::vector<uint64_t>> hits;
};

// What the trace consists of, then a line for each policy with a column for each capacity.
std::string HitTable(const ReferenceTrace& trace, const HitCounts& counts);

// A list of {"policy", "capacity_blocks", "hit_rate"}: every policy at every capacity, in order.
std::string HitJson(const ReferenceTrace& trace, const HitCounts& counts);

}  // namespace terrace::replay

#endif  // TERRACE_SERVICES_REPLAY_HIT_REPORT_H_
