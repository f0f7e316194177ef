// PutBlocks and GetBlocks of a kv-store beside SET and GET of Redis: the same values, connections
// and transport (TCP over loopback), run in turn. README.md beside this has the figures.
#include <malloc.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <functional>
#include <iostream>
#include <latch>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "tests/bench/bench_args.h"
#include "tests/bench/block_client.h"
#include "tests/bench/byte_pool.h"
#include "tests/bench/comparison.h"
#include "tests/bench/data_folder.h"
#include "tests/bench/redis_client.h"
#include "tests/bench/require.h"
#include "tests/bench/server_process.h"
#include "tests/bench/sheet.h"
#include "tests/bench/trial.h"

namespace terrace::bench {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

struct Load {
  size_t value_bytes = 0;
  int connections = 0;
  // Of all connections together.
  int values = 0;
  // Ours shall be faster.
  bool is_target = false;

  std::string size() const {
    return absl::StrCat(value_bytes >= kMiB ? absl::StrCat(value_bytes / kMiB, " MiB")
                                            : absl::StrCat(value_bytes / 1024, " KiB"),
                        " x ", connections);
  }
};

// The connections to one server, a thread each.
class Clients {
 public:
  using Connect = std::function<std::unique_ptr<KeyValueClient>()>;

  Clients(const ServerProcess& server, const Connect& connect, const Load& load,
          const BytePool& pool)
      : server_(server), load_(load), pool_(pool) {
    for (int i = 0; i < load.connections; ++i) clients_.push_back(connect());
    outs_.resize(clients_.size(), std::vector<std::byte>(load.value_bytes));
  }

  // MiB/s, of values that are not there.
  double Put() {
    return Run(
        [this](size_t client, int value) { clients_[client]->Put(Key(value), Bytes(value)); });
  }
  double Get() {
    return Run([this](size_t client, int value) {
      clients_[client]->Get(Key(value), absl::MakeSpan(outs_[client]));
    });
  }
  void Delete() {
    for (int value = 0; value < load_.values; ++value) clients_[0]->Delete(Key(value));
  }
  void Verify() {
    Put();
    Run([this](size_t client, int value) {
      std::vector<std::byte>& out = outs_[client];
      clients_[client]->Get(Key(value), absl::MakeSpan(out));
      Require(std::memcmp(out.data(), Bytes(value).data(), out.size()) == 0, "a value");
    });
    Delete();
  }

  // Both leave nothing, so that nobody works for them afterwards.
  double TimePut() {
    const double rate = Costing(put_costs_, [this] { return Put(); });
    Delete();
    return rate;
  }
  double TimeGet() {
    Put();
    const double rate = Costing(get_costs_, [this] { return Get(); });
    Delete();
    return rate;
  }
  // Processor seconds per GiB, of server and clients, in the runs that were timed.
  double put_cost() const { return Median(put_costs_); }
  double get_cost() const { return Median(get_costs_); }

 private:
  static std::string Key(int value) { return absl::StrCat("block-", value); }
  absl::Span<const std::byte> Bytes(int value) const {
    return {pool_.Of(static_cast<uint64_t>(value), load_.value_bytes), load_.value_bytes};
  }

  double Run(const std::function<void(size_t client, int value)>& operation) {
    std::latch ready(load_.connections);
    std::latch go(1);
    std::vector<std::thread> threads;
    for (size_t client = 0; client < clients_.size(); ++client) {
      threads.emplace_back([&, client] {
        ready.count_down();
        go.wait();
        for (auto value = static_cast<int>(client); value < load_.values;
             value += load_.connections) {
          operation(client, value);
        }
      });
    }
    ready.wait();
    const Stopwatch watch;
    go.count_down();
    for (std::thread& thread : threads) thread.join();
    return bytes() / static_cast<double>(kMiB) / watch.seconds();
  }

  double bytes() const {
    return static_cast<double>(load_.values) * static_cast<double>(load_.value_bytes);
  }
  double processor_seconds() const {
    rusage usage = {};
    ::getrusage(RUSAGE_SELF, &usage);
    const auto seconds = [](const timeval& time) {
      return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
    };
    return server_.processor_seconds() + seconds(usage.ru_utime) + seconds(usage.ru_stime);
  }
  double Costing(std::vector<double>& costs, const std::function<double()>& run) const {
    const double before = processor_seconds();
    const double rate = run();
    costs.push_back((processor_seconds() - before) / bytes() * static_cast<double>(kMiB) * 1024);
    return rate;
  }

  const ServerProcess& server_;
  const Load& load_;
  const BytePool& pool_;
  // Of each run.
  std::vector<double> put_costs_;
  std::vector<double> get_costs_;
  std::vector<std::unique_ptr<KeyValueClient>> clients_;
  std::vector<std::vector<std::byte>> outs_;
};

std::vector<std::string> RedisCommand(int port) {
  return {"redis-server", "--port", absl::StrCat(port), "--bind", "127.0.0.1", "--save", "",
          "--appendonly", "no",     "--daemonize",      "no"};
}

// From the folder that this program is in. Its memory has room for all values; a disk, where there
// is one, is written behind.
std::vector<std::string> StoreCommand(int port, const std::string& disk) {
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe");
  std::vector<std::string> command = {(self.parent_path() / "terrace-kv-store").string(),
                                      "--listen", absl::StrCat("127.0.0.1:", port), "--host-bytes",
                                      "2GiB"};
  if (!disk.empty()) {
    command.insert(command.end(), {"--disk-path", disk, "--disk-bytes", "8GiB"});
  }
  return command;
}

void Measure(const BenchArgs& args, const std::string& name, const std::string& disk,
             const std::vector<Load>& loads, const std::string& logs, Sheet& sheet) {
  const ServerProcess store([&](int port) { return StoreCommand(port, disk); },
                            logs + "/store.log");
  const ServerProcess redis(RedisCommand, logs + "/redis.log");
  size_t largest = 0;
  for (const Load& load : loads) largest = std::max(largest, load.value_bytes);
  const BytePool pool(2 * largest);
  for (const Load& load : loads) {
    std::cerr << "measuring: " << name << ", " << load.size() << std::endl;
    Clients ours(
        store, [&] { return std::make_unique<BlockClient>(store.port()); }, load, pool);
    Clients theirs(
        redis, [&] { return std::make_unique<RedisClient>(redis.port()); }, load, pool);
    ours.Verify();
    theirs.Verify();
    const std::vector<double> rates =
        Interleave(args.runs, {[&] { return ours.TimePut(); }, [&] { return theirs.TimePut(); },
                               [&] { return ours.TimeGet(); }, [&] { return theirs.TimeGet(); }});
    for (const bool put : {true, false}) {
      const std::string both = absl::StrCat(put ? "PutBlocks / SET, " : "GetBlocks / GET, ", name);
      sheet.Add(Comparison{.load = both,
                           .size = load.size(),
                           .unit = "MiB/s",
                           .ours = rates[put ? 0 : 2],
                           .baseline = rates[put ? 1 : 3],
                           .ratio_min = load.is_target ? std::optional<double>(1.0) : std::nullopt,
                           .ours_max = {}}
                    .Row());
      sheet.Add(Comparison{.load = "... processor time, server and clients",
                           .size = load.size(),
                           .unit = "s/GiB",
                           .ours = put ? ours.put_cost() : ours.get_cost(),
                           .baseline = put ? theirs.put_cost() : theirs.get_cost(),
                           .ratio_min = {},
                           .ours_max = {}}
                    .Row());
    }
  }
}

std::vector<Load> Loads(bool quick) {
  if (quick) {
    return {{.value_bytes = 100 << 10, .connections = 1, .values = 2},
            {.value_bytes = 3 * kMiB, .connections = 2, .values = 4}};
  }
  return {{.value_bytes = kMiB, .connections = 1, .values = 256},
          {.value_bytes = kMiB, .connections = 8, .values = 512, .is_target = true},
          {.value_bytes = 32 * kMiB, .connections = 1, .values = 16, .is_target = true},
          {.value_bytes = 32 * kMiB, .connections = 8, .values = 16, .is_target = true}};
}

}  // namespace
}  // namespace terrace::bench

int main(int argc, char** argv) {
  using namespace terrace::bench;
  const BenchArgs args = ParseBenchArgs(
      "Measures PutBlocks and GetBlocks of terrace-kv-store against SET and GET of redis-server, "
      "which must be on the PATH. Parts: memory (neither has a disk), disk (ours writes behind).",
      argc, argv);
  // As our daemons do.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  mallopt(M_MMAP_THRESHOLD, 256 << 20);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
  const DataFolder folder(args.folder);
  Sheet sheet;
  for (const char* name : {"memory", "disk"}) {
    if (!absl::StrContains(name, args.only)) continue;
    const bool disk = absl::string_view(name) == "disk";
    Measure(args, disk ? "ours with a disk" : "memory", disk ? folder.path() + "/disk" : "",
            Loads(args.quick), folder.path(), sheet);
  }
  sheet.Print(args);
}
