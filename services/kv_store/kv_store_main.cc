// terrace-kv-store: one shard of tiered KV cache.
#include <grpcpp/impl/codegen/service_type.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <cstdio>
#include <string>

#include "services/admin/admin_service.h"
#include "services/kv_store/kv_store_service.h"
#include "services/runtime/daemon.h"
#include "services/runtime/message_limit.h"
#include "services/runtime/parting_flush.h"

namespace terrace {
namespace {

struct Flags {
  runtime::ServerFlags server;
  engine::EmbeddedOptions engine;
  bool shard_from_hostname = false;
};

absl::Status Validate(Flags& flags) {
  if (flags.shard_from_hostname) {
    std::array<char, 256> host{};
    gethostname(host.data(), host.size() - 1);
    const absl::StatusOr<uint16_t> shard = runtime::ShardFromHostname(host.data());
    if (!shard.ok()) return shard.status();
    flags.engine.store.shard = *shard;
  }
  absl::Status status = flags.server.Validate();
  if (status.ok()) status = flags.engine.Validate();
  return status;
}

absl::Status Run(const Flags& flags) {
  const absl::Time start = absl::Now();
  absl::StatusOr<std::unique_ptr<engine::EmbeddedEngine>> engine =
      engine::EmbeddedEngine::Open(flags.engine);
  if (!engine.ok()) return engine.status();
  spdlog::info("event=recovered sequences={} values={} time_to_ready={}",
               (*engine)->sequence_count(), (*engine)->values().size(),
               absl::FormatDuration(absl::Now() - start));
  for (const std::string& message : (*engine)->damaged()) {
    spdlog::error("event=damaged_sequence message=\"{}\"", message);
  }
  runtime::Drain drain;
  runtime::Executor executor(flags.server.threads, static_cast<size_t>(flags.server.queue_max));
  const std::unique_ptr<grpc::Service> store =
      kv_store::MakeKvStoreService(**engine, executor, drain, flags.server.max_message_bytes);
  const std::unique_ptr<grpc::Service> admin = admin::MakeAdminService(**engine, executor);
  runtime::ServerFlags server = flags.server;
  server.max_message_bytes += runtime::kHopBytes;
  absl::Status status =
      runtime::Serve(server, "terrace-kv-store", {store.get(), admin.get()}, drain);
  runtime::FlushBeforeExit(**engine, flags.engine.store, absl::Now() + server.drain_timeout);
  runtime::FinishRecording(**engine);
  return status;
}

}  // namespace
}  // namespace terrace

// Only a mistake in our own options throws, and then the process may end.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
  terrace::Flags flags;
  flags.server.listen = "127.0.0.1:7401";
  CLI::App app(
      "terrace-kv-store: rows of K and V in host memory and on disk, near-data selection "
      "and attention, behind KvStoreService and AdminService.");
  terrace::runtime::AddServerFlags(app, flags.server);
  terrace::runtime::AddEngineFlags(app, flags.engine);
  app.add_flag("--shard-from-hostname", flags.shard_from_hostname,
               "Take --shard from the number after the last '-' of the host name");
  terrace::runtime::AddEnvironment(app);
  return terrace::runtime::Main(
      app, argc, argv, flags.server, [&flags] { return terrace::Validate(flags); },
      [&flags] { return terrace::Run(flags); });
}
