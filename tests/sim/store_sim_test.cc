// Random verbs, faults and deaths on a block store and on a model of it. See store_sim.h for what
// is verified, sim_seeds.h for how a seed is run again.
#include "tests/sim/store_sim.h"

#include <gtest/gtest.h>

#include "tests/sim/sim_seeds.h"

namespace terrace::kvstore {
namespace {

// Each found something once.
constexpr uint64_t kKnownSeeds[] = {
    1590937599,  // a log with a broken end was written to again
    2994415588,  // a cut of a tail that a failed flush had left behind wrote nothing
    3681821690,  // a bare sync of a log with a broken end
};

// I1, I3, I5, I6, I8.
TEST(StoreSim, AgreesWithItsModel) {
  terrace::testing::RunSeeds({.known = kKnownSeeds, .fresh = 2000, .time = absl::Seconds(20)},
                             [](uint64_t seed) { StoreSim(seed).Run(); });
}

}  // namespace
}  // namespace terrace::kvstore
