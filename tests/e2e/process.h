// A program of this build that runs beside the test.
#ifndef TERRACE_TESTS_E2E_PROCESS_H_
#define TERRACE_TESTS_E2E_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/e2e/await.h"
#include "tests/e2e/folder.h"

namespace terrace::testing {

// Killed when it goes out of scope, and when the test dies. The end of its log is printed if the
// test has failed by then.
class Process {
 public:
  // `program` is a name in the folder of binaries. No TERRACE_ variable is inherited.
  Process(const std::string& program, const std::vector<std::string>& arguments);
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  bool Running();
  void Signal(int signal) const;
  // SIGKILL, and waits until it is gone.
  void Kill();
  // Exit status, 128 + the signal for one that a signal ended; the test fails, and it is killed,
  // when it does not end within `bound`.
  int Wait(absl::Duration bound = kPatience);

  // What it has written so far.
  std::string Out() const { return ReadFile(folder_.File("stdout")); }
  std::string Err() const { return ReadFile(folder_.File("stderr")); }

 private:
  void Reaped(int status);

  const std::string program_;
  const Folder folder_;
  pid_t pid_ = 0;
  bool running_ = false;
  int exit_code_ = -1;
};

struct Outcome {
  int exit_code = -1;
  std::string out;
  std::string err;
};

// Runs a program to its end.
Outcome RunProgram(const std::string& program, const std::vector<std::string>& arguments,
                   absl::Duration bound = kPatience);

// A process that serves: its port is known once it answers.
class Daemon {
 public:
  // Serves 127.0.0.1 on `port`, or on a free one below those that the system gives to outgoing
  // connections: it is still free when the daemon comes back. Returns when it serves; the test
  // fails when it ends before.
  Daemon(const std::string& program, std::vector<std::string> arguments, int port = 0);

  Process& process() { return *process_; }
  int port() const { return port_; }
  std::string address() const;
  bool serving() const { return serving_; }

  // SIGKILL; whoever is connected notices.
  void Kill() { process_->Kill(); }
  // The same program, arguments and port again. Requires: it has ended.
  void Restart();

 private:
  void Start();

  const std::string program_;
  const std::vector<std::string> arguments_;
  const Folder folder_;
  int port_ = 0;
  bool serving_ = false;
  std::unique_ptr<Process> process_;
};

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_E2E_PROCESS_H_
