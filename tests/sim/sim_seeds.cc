#include "tests/sim/sim_seeds.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <random>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"

namespace terrace::testing {
namespace {

std::optional<uint64_t> FromEnvironment(const char* name) {
  const char* text = std::getenv(name);
  uint64_t value = 0;
  if (text == nullptr) return std::nullopt;
  if (absl::SimpleAtoi(text, &value)) return value;
  ADD_FAILURE() << name << ": got " << text << ", expected a number";
  return std::nullopt;
}

std::string ProgramPath() {
  char path[4096];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
  return length > 0 ? std::string(path, static_cast<size_t>(length)) : "this program";
}

// Whether it passed.
bool RunSeed(uint64_t seed, const std::function<void(uint64_t)>& run) {
  run(seed);
  if (!::testing::Test::HasFailure()) return true;
  std::printf("to run this one alone: TERRACE_SIM_SEED=%llu %s\n",
              static_cast<unsigned long long>(seed), ProgramPath().c_str());
  return false;
}

}  // namespace

void RunSeeds(const SimPlan& plan, const std::function<void(uint64_t)>& run) {
  if (const auto seed = FromEnvironment("TERRACE_SIM_SEED")) {
    const uint64_t times = FromEnvironment("TERRACE_SIM_TIMES").value_or(1);
    for (uint64_t i = 0; i < times && RunSeed(*seed, run); ++i) continue;
    return;
  }
  for (const uint64_t seed : plan.known) {
    if (!RunSeed(seed, run)) return;
  }
  const auto asked = FromEnvironment("TERRACE_SIM_SEEDS");
  const absl::Time end = asked ? absl::InfiniteFuture() : absl::Now() + plan.time;
  const uint64_t first = std::random_device{}();
  const uint64_t last = first + asked.value_or(plan.fresh);
  uint64_t seed = first;
  std::printf("fresh seeds from %llu on\n", static_cast<unsigned long long>(first));
  std::fflush(stdout);
  while (seed < last && absl::Now() < end) {
    if (!RunSeed(seed++, run)) return;
  }
  std::printf("%llu fresh seeds\n", static_cast<unsigned long long>(seed - first));
}

std::string FastFolder() {
  return access("/dev/shm", W_OK) == 0 ? "/dev/shm/" : ::testing::TempDir();
}

}  // namespace terrace::testing
