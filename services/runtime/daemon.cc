#include "services/runtime/daemon.h"

#include <spdlog/spdlog.h>

#include <cstdio>
#include <string>

#include "absl/strings/str_replace.h"

namespace terrace::runtime {

int Main(CLI::App& app, int argc, char** argv, const ServerFlags& flags,
         const std::function<absl::Status()>& validate, const std::function<absl::Status()>& run) {
  CLI11_PARSE(app, argc, argv);
  InitProcess(flags.log_level);
  if (absl::Status status = validate(); !status.ok()) {
    std::fprintf(stderr, "%s: %s\n", app.get_name().c_str(), std::string(status.message()).c_str());
    return 1;
  }
  const std::string settings = app.config_to_str(true, false);
  if (flags.check_config) {
    std::fputs(settings.c_str(), stdout);
    return 0;
  }
  spdlog::info("event=starting settings=\"{}\"",
               absl::StrReplaceAll(settings, {{"\n", " "}, {"\"", "'"}}));
  if (absl::Status status = run(); !status.ok()) {
    spdlog::error("event=failed code={} message=\"{}\"", absl::StatusCodeToString(status.code()),
                  std::string(status.message()));
    return 1;
  }
  return 0;
}

}  // namespace terrace::runtime
