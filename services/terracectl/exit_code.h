// What the exit status of terracectl tells a script. Documented in --help: the numbers stay.
#ifndef TERRACE_SERVICES_TERRACECTL_EXIT_CODE_H_
#define TERRACE_SERVICES_TERRACECTL_EXIT_CODE_H_

namespace terrace::terracectl {

enum class ExitCode : int {
  kOk = 0,
  // The server answered with an error that has no code of its own here, its answer broke the
  // contract, or the output could not be written.
  kFailed = 1,
  kUsage = 2,
  // No connection, or the server answered UNAVAILABLE (draining, a shard gone), or a list that was
  // printed lacks shards which do not answer. Worth a retry.
  kUnavailable = 3,
  kNotFound = 4,
  // Connected, but no answer within --timeout.
  kDeadline = 5,
};

}  // namespace terrace::terracectl

#endif  // TERRACE_SERVICES_TERRACECTL_EXIT_CODE_H_
