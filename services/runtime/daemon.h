// What every daemon's main does: read settings, validate, print, run, exit.
#ifndef TERRACE_SERVICES_RUNTIME_DAEMON_H_
#define TERRACE_SERVICES_RUNTIME_DAEMON_H_

#include <CLI/CLI.hpp>
#include <functional>

#include "absl/status/status.h"
#include "services/runtime/drain.h"
#include "services/runtime/executor.h"
#include "services/runtime/flags.h"
#include "services/runtime/server.h"

namespace terrace::runtime {

// Exit codes, which --help tells: 0 stopped on request (or --help, --version, a good
// --check-config), 1 the settings are bad or the daemon failed, 2 the command line, environment or
// configuration file cannot be read.
int Main(CLI::App& app, int argc, char** argv, const ServerFlags& flags,
         const std::function<absl::Status()>& validate, const std::function<absl::Status()>& run);

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_DAEMON_H_
