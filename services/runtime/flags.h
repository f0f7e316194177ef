// One definition of every daemon's settings: flags, environment (TERRACE_…) and configuration file
// mean the same, are validated at start and printed in the start-up line.
#ifndef TERRACE_SERVICES_RUNTIME_FLAGS_H_
#define TERRACE_SERVICES_RUNTIME_FLAGS_H_

#include <CLI/CLI.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "services/engine/embedded_engine.h"

namespace terrace::runtime {

struct ServerFlags {
  std::string listen;
  std::string port_file;
  bool allow_plaintext = false;
  std::string log_level = "info";
  bool check_config = false;
  // Threads that run calls; they may wait for disk or for a store.
  int threads = 8;
  // Calls that wait for a thread before new ones are refused.
  int queue_max = 256;
  uint64_t max_message_bytes = uint64_t{64} << 20;
  // Calls and streams at once of one connection; its client makes more wait.
  int max_streams = 1024;
  // What requests that run or wait may hold before new ones are refused and streams read less. A
  // bulk stream that was let in goes on with one message at a time, which may come on top.
  uint64_t inflight_bytes = uint64_t{256} << 20;
  absl::Duration drain_timeout = absl::Seconds(10);

  absl::Status Validate() const;
};

// Adds an option whose value is a size or a duration.
CLI::Option* AddSize(CLI::App& app, const std::string& name, uint64_t& bytes,
                     const std::string& help);
CLI::Option* AddDuration(CLI::App& app, const std::string& name, absl::Duration& duration,
                         const std::string& help);

// Names, help, --config, --version and environment for a daemon.
void AddServerFlags(CLI::App& app, ServerFlags& flags);
// The tiers of an engine in this process.
void AddEngineFlags(CLI::App& app, engine::EmbeddedOptions& options);
// InvalidArgument when one of those was given, naming it and `why` it does not belong here.
absl::Status RefuseEngineFlags(const CLI::App& app, absl::string_view why);
// Gives every option without an environment variable TERRACE_<NAME>. Call it last.
void AddEnvironment(CLI::App& app);

// Whether only this machine can connect: a loopback address or a Unix socket.
bool IsLocal(absl::string_view listen);

// The shard that a StatefulSet's pod name gives: the number after the last '-' of `host_name`.
absl::StatusOr<uint16_t> ShardFromHostname(absl::string_view host_name);

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_FLAGS_H_
