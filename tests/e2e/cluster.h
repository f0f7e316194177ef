// A store and a worker over it, each a process, with a folder for the disk tier.
#ifndef TERRACE_TESTS_E2E_CLUSTER_H_
#define TERRACE_TESTS_E2E_CLUSTER_H_

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/e2e/client.h"
#include "tests/e2e/process.h"

namespace terrace::testing {

inline constexpr char kStoreProgram[] = "terrace-kv-store";
inline constexpr char kWorkerProgram[] = "terrace-attention-worker";
inline constexpr char kGenerateProgram[] = "terrace-generate";
inline constexpr char kCtlProgram[] = "terracectl";

class Cluster {
 public:
  // 64 MiB of host memory and 256 MiB of disk unless `store_flags` say otherwise.
  explicit Cluster(std::vector<std::string> store_flags = {},
                   std::vector<std::string> worker_flags = {});

  Daemon& store() { return store_; }
  Daemon& worker() { return worker_; }
  // Both serve.
  bool serving() const { return store_.serving() && worker_.serving(); }
  const std::string& disk_path() const { return disk_path_; }
  // A client of the worker.
  Client NewClient(const std::string& tenant = "") { return Client(worker_.address(), tenant); }

 private:
  const Folder folder_;
  const std::string disk_path_;
  Daemon store_;
  Daemon worker_;
};

// What terracectl says about the daemon as JSON; the test fails unless it exits with 0.
nlohmann::json AskAdmin(const Daemon& daemon, const std::vector<std::string>& words);
// The tier of `terracectl tiers` with this name ("TIER_HOST"); null without one.
nlohmann::json TierOf(const Daemon& daemon, const std::string& name);
// A 64-bit number of protobuf's JSON.
uint64_t Number(const nlohmann::json& field);

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_E2E_CLUSTER_H_
