#include "services/runtime/flags.h"

#include <arpa/inet.h>

#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "services/runtime/quantity.h"
#include "services/runtime/version.h"

namespace terrace::runtime {
namespace {

constexpr char kEngineGroup[] = "Tiers";
constexpr uint64_t kMessageBytesMin = 64 << 10;
constexpr uint64_t kMessageBytesMax = uint64_t{1} << 30;
// Also keeps now + timeout within gRPC's clock.
constexpr absl::Duration kDrainTimeoutMax = absl::Hours(24);

template <typename Value, typename Parse>
CLI::Option* AddParsed(CLI::App& app, const std::string& name, Value& value,
                       const std::string& type, const std::string& shown, const std::string& help,
                       Parse parse) {
  return app
      .add_option_function<std::string>(
          name,
          [&value, name, parse](const std::string& text) {
            const absl::StatusOr<Value> parsed = parse(text);
            if (!parsed.ok()) {
              throw CLI::ValidationError(name, std::string(parsed.status().message()));
            }
            value = *parsed;
          },
          help)
      ->type_name(type)
      ->default_str(shown);
}

}  // namespace

CLI::Option* AddSize(CLI::App& app, const std::string& name, uint64_t& bytes,
                     const std::string& help) {
  return AddParsed(app, name, bytes, "SIZE", FormatSize(bytes), help, ParseSize);
}

CLI::Option* AddDuration(CLI::App& app, const std::string& name, absl::Duration& duration,
                         const std::string& help) {
  return AddParsed(app, name, duration, "DURATION", absl::FormatDuration(duration), help,
                   ParseDuration);
}

absl::Status RefuseEngineFlags(const CLI::App& app, absl::string_view why) {
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_group() != kEngineGroup || option->count() == 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(option->get_name().substr(2), ": got one ", why, ", expected none"));
  }
  return absl::OkStatus();
}

absl::Status ServerFlags::Validate() const {
  if (threads < 1 || threads > 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads: got ", threads, ", expected 1 to 1024"));
  }
  if (queue_max < 1 || queue_max > 65536) {
    return absl::InvalidArgumentError(
        absl::StrCat("queue-max: got ", queue_max, ", expected 1 to 65536"));
  }
  if (max_streams < 1 || max_streams > 65536) {
    return absl::InvalidArgumentError(
        absl::StrCat("max-streams: got ", max_streams, ", expected 1 to 65536"));
  }
  if (max_message_bytes < kMessageBytesMin || max_message_bytes > kMessageBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("max-message-bytes: got ", FormatSize(max_message_bytes), ", expected ",
                     FormatSize(kMessageBytesMin), " to ", FormatSize(kMessageBytesMax)));
  }
  if (inflight_bytes < max_message_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("inflight-bytes: got ", FormatSize(inflight_bytes),
                     ", expected at least max-message-bytes, ", FormatSize(max_message_bytes)));
  }
  if (drain_timeout > kDrainTimeoutMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("drain-timeout: got ", absl::FormatDuration(drain_timeout),
                     ", expected at most ", absl::FormatDuration(kDrainTimeoutMax)));
  }
  if (!IsLocal(listen) && !allow_plaintext) {
    return absl::InvalidArgumentError(
        absl::StrCat("listen: got ", listen,
                     ", expected a loopback address or unix:PATH; give --allow-plaintext to serve "
                     "plain text to other machines"));
  }
  return absl::OkStatus();
}

void AddServerFlags(CLI::App& app, ServerFlags& flags) {
  app.set_version_flag("--version", std::string(kVersion));
  app.set_config("--config", "", "Read settings from a TOML file; flags win over it");
  app.allow_config_extras(false);
  app.add_option("--listen", flags.listen,
                 "Address to serve: HOST:PORT or unix:PATH; port 0 "
                 "picks a free one")
      ->capture_default_str();
  app.add_option("--port-file", flags.port_file, "Write the bound port to this file when serving");
  app.add_flag("--allow-plaintext", flags.allow_plaintext,
               "Serve plain text beyond loopback and Unix sockets");
  app.add_option("--log-level", flags.log_level, "What to log")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error"}))
      ->capture_default_str();
  app.add_flag("--check-config", flags.check_config,
               "Validate, print the effective settings and exit: 0 when they are good, 1 when not")
      ->configurable(false);
  app.add_option("--threads", flags.threads, "Threads that run calls")->capture_default_str();
  app.add_option("--queue-max", flags.queue_max,
                 "Calls that may wait for a thread before new ones are refused")
      ->capture_default_str();
  app.add_option("--max-streams", flags.max_streams,
                 "Calls and streams of one connection at once; more wait at its client")
      ->capture_default_str();
  AddSize(app, "--max-message-bytes", flags.max_message_bytes, "Largest message, either way");
  AddSize(app, "--inflight-bytes", flags.inflight_bytes,
          "Bytes of requests that run or wait before new ones are refused");
  AddDuration(app, "--drain-timeout", flags.drain_timeout,
              "Time that running calls get after SIGTERM");
}

void AddEngineFlags(CLI::App& app, engine::EmbeddedOptions& options) {
  kvstore::StoreOptions& store = options.store;
  const auto group = kEngineGroup;
  AddSize(app, "--host-bytes", store.host_bytes, "Host memory for rows and score indexes")
      ->group(group);
  app.add_option("--disk-path", store.disk_path, "Folder of the disk tier; none without it")
      ->group(group);
  AddSize(app, "--disk-bytes", store.disk_bytes, "Physical bytes of the disk tier")->group(group);
  AddSize(app, "--retained-bytes", options.retained_bytes_max,
          "What one tenant's values, and its closed sequences for prefixes, may take")
      ->group(group);
  app.add_option("--tenant-sequences", options.limits.max_tenant_sequences,
                 "Open sequences that one tenant may have")
      ->capture_default_str()
      ->group(group);
  app.add_option("--durability", store.durability,
                 "When rows reach the disk: none (on flush), async, sync")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, kvstore::Durability>{{"none", kvstore::Durability::kNone},
                                                     {"async", kvstore::Durability::kAsync},
                                                     {"sync", kvstore::Durability::kSync}}))
      ->default_str("async")
      ->group(group);
  app.add_option("--shard", store.shard, "Number of this shard, 0 to 65535")
      ->capture_default_str()
      ->group(group);
  app.add_option("--reader-threads", store.reader_threads, "Threads that read the disk")
      ->capture_default_str()
      ->group(group);
  app.add_option("--direct-reads", store.direct_reads,
                 "Bypass the page cache on reads where the file system can")
      ->capture_default_str()
      ->group(group);
  app.add_option("--placement", store.placement,
                 "Who keeps its place in host memory: heat (captured mass), lru, s3fifo")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, kvstore::PolicyKind>{{"heat", kvstore::PolicyKind::kHeat},
                                                     {"lru", kvstore::PolicyKind::kLru},
                                                     {"s3fifo", kvstore::PolicyKind::kS3Fifo}}))
      ->default_str("heat")
      ->group(group);
  app.add_option("--prefetch", options.prefetch,
                 "Read ahead from disk what the next layers selected at the last token")
      ->capture_default_str()
      ->group(group);
  app.add_option("--record-steps", options.record_steps,
                 "Write the selections of SparQ steps to this file, for terrace-replay")
      ->group(group);
  AddSize(app, "--record-bytes", options.record_bytes, "Largest size of that file")->group(group);
  app.add_option("--block-tokens", options.block_tokens, "Rows that seal together")
      ->capture_default_str()
      ->group(group);
  app.add_option("--index-tokens", options.index_tokens, "Tokens of one score index stripe")
      ->capture_default_str()
      ->group(group);
  app.add_option("--compute-threads", options.compute_threads,
                 "Threads of one step; 0 means one per core")
      ->capture_default_str()
      ->group(group);
}

void AddEnvironment(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    const std::string name = option->get_name(false, false);
    if (!absl::StartsWith(name, "--") || !option->get_configurable()) continue;
    const std::string upper =
        absl::AsciiStrToUpper(absl::StrReplaceAll(name.substr(2), {{"-", "_"}}));
    option->envname(absl::StrCat("TERRACE_", upper));
  }
}

bool IsLocal(absl::string_view listen) {
  if (absl::StartsWith(listen, "unix:") || absl::StartsWith(listen, "localhost:") ||
      absl::StartsWith(listen, "[::1]:")) {
    return true;
  }
  // An address in 127.0.0.0/8; a name that starts so may be anybody's.
  const absl::string_view host = listen.substr(0, listen.rfind(':'));
  in_addr address{};
  return inet_pton(AF_INET, std::string(host).c_str(), &address) == 1 &&
         ntohl(address.s_addr) >> 24 == 127;
}

absl::StatusOr<uint16_t> ShardFromHostname(absl::string_view host_name) {
  const size_t dash = host_name.rfind('-');
  uint32_t ordinal = 0;
  if (dash == absl::string_view::npos || !absl::SimpleAtoi(host_name.substr(dash + 1), &ordinal) ||
      ordinal > UINT16_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("shard-from-hostname: got host name \"", host_name,
                     "\", expected one that ends in -N with N from 0 to 65535"));
  }
  return static_cast<uint16_t>(ordinal);
}

}  // namespace terrace::runtime
