#include "tests/e2e/cluster.h"

#include <gtest/gtest.h>

#include "absl/strings/numbers.h"

namespace terrace::testing {
namespace {

using Flags = std::vector<std::string>;

// A flag that is given twice is refused, so defaults give way.
Flags WithDefaults(Flags flags, const Flags& defaults) {
  for (size_t i = 0; i + 1 < defaults.size(); i += 2) {
    bool given = false;
    for (const std::string& flag : flags) given = given || flag == defaults[i];
    if (!given) flags.insert(flags.end(), {defaults[i], defaults[i + 1]});
  }
  return flags;
}

}  // namespace

Cluster::Cluster(Flags store_flags, Flags worker_flags)
    : disk_path_(folder_.File("disk")),
      store_(kStoreProgram,
             WithDefaults(std::move(store_flags), {"--host-bytes", "64MiB", "--disk-path",
                                                   disk_path_, "--disk-bytes", "256MiB"})),
      worker_(kWorkerProgram, WithDefaults(std::move(worker_flags),
                                           {"--engine", "remote", "--stores", store_.address()})) {}

nlohmann::json AskAdmin(const Daemon& daemon, const std::vector<std::string>& words) {
  std::vector<std::string> arguments = {"--endpoint", daemon.address(), "-o", "json"};
  arguments.insert(arguments.end(), words.begin(), words.end());
  const Outcome outcome = RunProgram(kCtlProgram, arguments);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  const nlohmann::json answer = nlohmann::json::parse(outcome.out, nullptr, false);
  EXPECT_TRUE(answer.is_object()) << outcome.out;
  return answer;
}

nlohmann::json TierOf(const Daemon& daemon, const std::string& name) {
  const nlohmann::json answer = AskAdmin(daemon, {"tiers"});
  for (const nlohmann::json& tier : answer.value("tiers", nlohmann::json::array())) {
    if (tier.value("tier", "") == name) return tier;
  }
  ADD_FAILURE() << "no " << name << " in " << answer.dump();
  return {};
}

uint64_t Number(const nlohmann::json& field) {
  if (field.is_number()) return field.get<uint64_t>();
  uint64_t number = 0;
  EXPECT_TRUE(field.is_string() && absl::SimpleAtoi(field.get<std::string>(), &number)) << field;
  return number;
}

}  // namespace terrace::testing
