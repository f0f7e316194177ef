// terrace-attention-worker: what frontends call. Its tiers are in this process (embedded) or in
// kv-store shards (remote).
#include <grpcpp/impl/codegen/service_type.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/admin/admin_service.h"
#include "services/attention_worker/attention_service.h"
#include "services/kv_store/remote_engine.h"
#include "services/runtime/daemon.h"
#include "services/runtime/endpoint.h"
#include "services/runtime/engine_life.h"

namespace terrace {
namespace {

// Stores may start after their workers; this long the worker waits for the first before it serves.
constexpr absl::Duration kConnectTimeout = absl::Seconds(5);
// Of a remote engine: they mostly wait for stores.
constexpr int kRemoteThreads = 64;

struct Flags {
  runtime::ServerFlags server;
  engine::EmbeddedOptions embedded;
  kv_store::RemoteOptions remote;
  std::string engine = "embedded";
  engine::RemoteMode mode = engine::RemoteMode::kAuto;
};

void AddWorkerFlags(CLI::App& app, Flags& flags) {
  app.add_option("--engine", flags.engine, "Where the tiers are: embedded (here) or remote")
      ->check(CLI::IsMember({"embedded", "remote"}))
      ->capture_default_str();
  app.add_option("--stores", flags.remote.stores, "kv-store addresses, for --engine=remote")
      ->delimiter(',');
  app.add_option("--remote-mode", flags.mode,
                 "What crosses the network for a sparse step: rows, partial, or auto (the faster)")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, engine::RemoteMode>{{"auto", engine::RemoteMode::kAuto},
                                                    {"rows", engine::RemoteMode::kRows},
                                                    {"partial", engine::RemoteMode::kPartial}}))
      ->default_str("auto");
  runtime::AddSize(app, "--row-cache-bytes", flags.remote.row_cache_bytes,
                   "Rows of last steps to keep, for --engine=remote");
  app.get_option("--threads")
      ->description(
          "Threads that run calls; " + std::to_string(kRemoteThreads) +
          " by default with --engine=remote, where they mostly wait: with several stores, "
          "each gets an equal share");
}

absl::Status Validate(CLI::App& app, Flags& flags) {
  CLI::Option* threads = app.get_option("--threads");
  if (flags.engine == "remote" && threads->count() == 0) threads->default_val(kRemoteThreads);
  if (absl::Status status = flags.server.Validate(); !status.ok()) return status;
  flags.remote.max_message_bytes = flags.server.max_message_bytes;
  flags.remote.threads = flags.server.threads;
  if (flags.engine == "embedded") {
    if (!flags.remote.stores.empty()) {
      return absl::InvalidArgumentError("stores: got some with --engine=embedded, expected none");
    }
    return flags.embedded.Validate();
  }
  if (flags.remote.stores.empty()) {
    return absl::InvalidArgumentError(
        "stores: got none with --engine=remote, expected HOST:PORT[,HOST:PORT…]");
  }
  for (const std::string& store : flags.remote.stores) {
    if (absl::Status status = runtime::ValidateEndpoint(store); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("stores: ", status.message()));
    }
  }
  return runtime::RefuseEngineFlags(app, "with --engine=remote");
}

absl::Status RunService(const Flags& flags, engine::KvEngine& engine, uint32_t shard,
                        runtime::Around around) {
  runtime::Drain drain;
  runtime::Executor executor(flags.server.threads, static_cast<size_t>(flags.server.queue_max),
                             flags.server.inflight_bytes);
  const std::unique_ptr<grpc::Service> attention =
      attention_worker::MakeAttentionService(engine, executor, drain,
                                             {.max_message_bytes = flags.server.max_message_bytes,
                                              .shard = shard,
                                              .default_mode = flags.mode});
  const std::unique_ptr<grpc::Service> admin = admin::MakeAdminService(engine, executor);
  return runtime::Serve(flags.server, {.name = "terrace-attention-worker",
                                       .services = {attention.get(), admin.get()},
                                       .executor = executor,
                                       .drain = drain,
                                       .around = std::move(around)});
}

absl::Status RunEmbedded(const Flags& flags) {
  const auto engine = engine::EmbeddedEngine::Unopened(flags.embedded);
  return RunService(flags, *engine, flags.embedded.store.shard,
                    runtime::AroundEngine(*engine, flags.embedded.store));
}

// Stores that do not answer are asked again when they are needed.
absl::Status Connect(kv_store::RemoteEngine& engine) {
  const absl::Status status = engine.Connect(absl::Now() + kConnectTimeout);
  if (absl::IsFailedPrecondition(status)) return status;
  for (const absl::Status& error : engine.Unreachable()) {
    spdlog::warn("event=no_store message=\"{}\"", std::string(error.message()));
  }
  return absl::OkStatus();
}

absl::Status RunRemote(const Flags& flags) {
  kv_store::RemoteEngine engine(flags.remote);
  return RunService(flags, engine, /*shard=*/0,
                    {.start = [&] { return Connect(engine); },
                     .cancel = [&] { engine.Cancel(); },
                     .finish = nullptr});
}

absl::Status Run(const Flags& flags) {
  return flags.engine == "embedded" ? RunEmbedded(flags) : RunRemote(flags);
}

}  // namespace
}  // namespace terrace

// Only a mistake in our own options throws, and then the process may end.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
  terrace::Flags flags;
  flags.server.listen = "127.0.0.1:7400";
  CLI::App app(
      "terrace-attention-worker: GQA attention over a tiered KV cache, behind "
      "AttentionService and AdminService.");
  terrace::runtime::AddServerFlags(app, flags.server);
  terrace::AddWorkerFlags(app, flags);
  terrace::runtime::AddEngineFlags(app, flags.embedded);
  terrace::runtime::AddEnvironment(app);
  return terrace::runtime::Main(
      app, argc, argv, flags.server, [&] { return terrace::Validate(app, flags); },
      [&flags] { return terrace::Run(flags); });
}
