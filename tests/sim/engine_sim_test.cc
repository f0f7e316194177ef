// Random verbs, faults and deaths on an engine and on plain arrays. See engine_sim.h for what is
// verified, sim_seeds.h for how a seed is run again.
#include "tests/sim/engine_sim.h"

#include <gtest/gtest.h>

#include "tests/sim/sim_seeds.h"

namespace terrace::testing {
namespace {

// Found something once.
constexpr uint64_t kKnownSeeds[] = {1, 2, 3};

// I1, I5, I6, I7, I8.
TEST(EngineSimTest, AnyOperationsAnswerAsPlainArrays) {
  RunSeeds({.known = kKnownSeeds, .fresh = 1000, .time = absl::Seconds(20)},
           [](uint64_t seed) { EngineSim(seed).Run(); });
}

}  // namespace
}  // namespace terrace::testing
