#include "services/runtime/daemon.h"

#include <spdlog/spdlog.h>

#include <cstdio>
#include <string>

#include "absl/strings/str_replace.h"

namespace terrace::runtime {
namespace {

constexpr int kStopped = 0;
constexpr int kFailed = 1;
constexpr int kWrongCommandLine = 2;

constexpr char kFooter[] =
    "Every setting (all but --config and --check-config) can be given as TERRACE_<NAME> in the\n"
    "environment or by its name in the file of --config.\n"
    "SIGTERM and SIGINT drain: calls get --drain-timeout. During the start, when there are none,\n"
    "they end the process at once.\n"
    "\n"
    "Exit codes: 0 stopped on request; 1 the settings are bad or the daemon failed; 2 wrong "
    "command\n"
    "line, environment or configuration file.";

}  // namespace

int Main(CLI::App& app, int argc, char** argv, const ServerFlags& flags,
         const std::function<absl::Status()>& validate, const std::function<absl::Status()>& run) {
  app.footer(kFooter);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // The parser's own codes are many, and mean nothing to who reads ours.
    return app.exit(error) == 0 ? kStopped : kWrongCommandLine;
  }
  InitProcess(flags.log_level);
  if (absl::Status status = validate(); !status.ok()) {
    std::fprintf(stderr, "%s: %s\n", app.get_name().c_str(), std::string(status.message()).c_str());
    return kFailed;
  }
  const std::string settings = app.config_to_str(true, false);
  if (flags.check_config) {
    std::fputs(settings.c_str(), stdout);
    return kStopped;
  }
  spdlog::info("event=starting settings=\"{}\"",
               absl::StrReplaceAll(settings, {{"\n", " "}, {"\"", "'"}}));
  if (absl::Status status = run(); !status.ok()) {
    spdlog::error("event=failed code={} message=\"{}\"", absl::StatusCodeToString(status.code()),
                  std::string(status.message()));
    return kFailed;
  }
  return kStopped;
}

}  // namespace terrace::runtime
