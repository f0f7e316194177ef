// Which seeds a simulation runs, and how to run one of them again.
#ifndef TERRACE_TESTS_SIM_SIM_SEEDS_H_
#define TERRACE_TESTS_SIM_SIM_SEEDS_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/time/time.h"
#include "absl/types/span.h"

namespace terrace::testing {

struct SimPlan {
  // Seeds that once found something. They run first, always.
  absl::Span<const uint64_t> known;
  // Fresh ones, other ones each time: so many, or as many as there is time for.
  uint64_t fresh = 0;
  absl::Duration time = absl::InfiniteDuration();
};

// Runs the plan up to the first seed that fails the test, and then prints the command that runs
// that one alone. From the environment, instead of the plan:
//   TERRACE_SIM_SEED=N     this seed alone; threads of the store keep their own time, so it may
//   TERRACE_SIM_TIMES=N    take some repetitions until it fails again
//   TERRACE_SIM_SEEDS=N    so many fresh ones, however long they take
void RunSeeds(const SimPlan& plan, const std::function<void(uint64_t)>& run);

// A folder in memory where the system has one, for simulations open thousands of databases.
std::string FastFolder();

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_SIM_SIM_SEEDS_H_
