// ServerProcess: a server on a free port of 127.0.0.1, as long as this object is there.
#ifndef TERRACE_TESTS_BENCH_SERVER_PROCESS_H_
#define TERRACE_TESTS_BENCH_SERVER_PROCESS_H_

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

namespace terrace::bench {

class ServerProcess {
 public:
  // Runs what `command` makes of the port: a program, looked for on the PATH unless it has a slash,
  // and its arguments; and waits until it accepts connections. Its output goes to `log`. Ends the
  // process when it does not come up.
  ServerProcess(const std::function<std::vector<std::string>(int port)>& command,
                const std::string& log);
  // Kills it.
  ~ServerProcess();
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  int port() const { return port_; }
  // Of all processors together, since its start.
  double processor_seconds() const;

 private:
  int port_ = 0;
  pid_t pid_ = 0;
};

}  // namespace terrace::bench

#endif  // TERRACE_TESTS_BENCH_SERVER_PROCESS_H_
