// terrace-attention-worker: what frontends call. Its tiers are in this process (embedded) or in
// kv-store shards (remote).
#include <grpcpp/impl/codegen/service_type.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <string>

#include "services/admin/admin_service.h"
#include "services/attention_worker/attention_service.h"
#include "services/kv_store/remote_engine.h"
#include "services/runtime/daemon.h"
#include "services/runtime/parting_flush.h"

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
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<engine::KvEngine>> OpenEngine(const Flags& flags) {
  if (flags.engine == "embedded") {
    absl::StatusOr<std::unique_ptr<engine::EmbeddedEngine>> engine =
        engine::EmbeddedEngine::Open(flags.embedded);
    if (!engine.ok()) return engine.status();
    for (const std::string& message : (*engine)->damaged()) {
      spdlog::error("event=damaged_sequence message=\"{}\"", message);
    }
    return std::unique_ptr<engine::KvEngine>(*std::move(engine));
  }
  auto engine = std::make_unique<kv_store::RemoteEngine>(flags.remote);
  const absl::Status status = engine->Connect(absl::Now() + kConnectTimeout);
  if (absl::IsFailedPrecondition(status)) return status;
  if (!status.ok()) {
    spdlog::warn("event=no_store message=\"{}\"", std::string(status.message()));
  }
  return std::unique_ptr<engine::KvEngine>(std::move(engine));
}

absl::Status Run(const Flags& flags) {
  absl::StatusOr<std::unique_ptr<engine::KvEngine>> engine = OpenEngine(flags);
  if (!engine.ok()) return engine.status();
  runtime::Drain drain;
  runtime::Executor executor(flags.server.threads, static_cast<size_t>(flags.server.queue_max));
  const uint32_t shard = flags.engine == "embedded" ? flags.embedded.store.shard : 0;
  const std::unique_ptr<grpc::Service> attention =
      attention_worker::MakeAttentionService(**engine, executor, drain,
                                             {.max_message_bytes = flags.server.max_message_bytes,
                                              .shard = shard,
                                              .default_mode = flags.mode});
  const std::unique_ptr<grpc::Service> admin = admin::MakeAdminService(**engine, executor);
  auto* remote = dynamic_cast<kv_store::RemoteEngine*>(engine->get());
  absl::Status status = runtime::Serve(flags.server, "terrace-attention-worker",
                                       {attention.get(), admin.get()}, drain, [remote] {
                                         if (remote != nullptr) remote->Cancel();
                                       });
  if (auto* embedded = dynamic_cast<engine::EmbeddedEngine*>(engine->get()); embedded != nullptr) {
    runtime::FlushBeforeExit(*embedded, flags.embedded.store,
                             absl::Now() + flags.server.drain_timeout);
    runtime::FinishRecording(*embedded);
  }
  return status;
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
