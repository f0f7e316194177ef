#include "services/policy_check/daemon_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

extern char** environ;

namespace terrace::policy_check {
namespace {

// Builds with sanitizers on a busy machine start slowly.
constexpr absl::Duration kStartTimeout = absl::Seconds(60);
// More than the drain timeout of 10 s, and enough for a sanitizer to say what it found.
constexpr absl::Duration kStopTimeout = absl::Seconds(60);
constexpr absl::Duration kPollInterval = absl::Milliseconds(5);
constexpr size_t kLogLines = 30;

std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string LogEnd(const std::string& path) {
  const std::string log = ReadAll(path);
  std::vector<absl::string_view> lines = absl::StrSplit(log, '\n', absl::SkipEmpty());
  if (lines.empty()) return "; its log is empty";
  if (lines.size() > kLogLines) lines.erase(lines.begin(), lines.end() - kLogLines);
  return absl::StrCat("; its log ends:\n    ", absl::StrJoin(lines, "\n    "));
}

std::vector<std::string> Environment() {
  std::vector<std::string> kept;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (!absl::StartsWith(*variable, "TERRACE_")) kept.emplace_back(*variable);
  }
  return kept;
}

std::vector<char*> Pointers(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  pointers.reserve(texts.size() + 1);
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// In the child between fork and exec: nothing but system calls.
[[noreturn]] void Become(char* const* argv, char* const* env, const char* log, pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(127);
  const int null = ::open("/dev/null", O_RDONLY);
  const int out = ::open(log, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (null < 0 || out < 0) ::_exit(127);
  ::dup2(null, STDIN_FILENO);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(out, STDERR_FILENO);
  // An interrupt at the terminal is for this program, which then stops its daemons in order.
  ::setpgid(0, 0);
  ::execve(argv[0], argv, env);
  ::_exit(127);
}

}  // namespace

absl::StatusOr<std::unique_ptr<DaemonProcess>> DaemonProcess::Start(
    const std::string& folder, const std::string& name, const std::string& work_folder,
    const std::vector<std::string>& arguments) {
  const std::string program = absl::StrCat(folder, "/", name);
  if (::access(program.c_str(), X_OK) != 0) {
    return absl::NotFoundError(absl::StrCat(program, ": ", std::strerror(errno)));
  }
  const std::string port_file = absl::StrCat(work_folder, "/", name, ".port");
  const std::string log = absl::StrCat(work_folder, "/", name, ".log");
  std::vector<std::string> command = {program, "--listen", "127.0.0.1:0", "--port-file", port_file};
  command.insert(command.end(), arguments.begin(), arguments.end());
  std::vector<std::string> variables = Environment();
  const std::vector<char*> argv = Pointers(command);
  const std::vector<char*> env = Pointers(variables);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return absl::UnavailableError(absl::StrCat("fork: ", std::strerror(errno)));
  if (pid == 0) Become(argv.data(), env.data(), log.c_str(), parent);
  std::unique_ptr<DaemonProcess> process(new DaemonProcess(name, log, pid));
  absl::Status status = process->WaitForPort(port_file);
  if (!status.ok()) return status;
  return process;
}

DaemonProcess::~DaemonProcess() { Stop().IgnoreError(); }

absl::Status DaemonProcess::WaitForPort(const std::string& port_file) {
  const absl::Time deadline = absl::Now() + kStartTimeout;
  while (absl::Now() < deadline) {
    // Renamed into place when complete.
    const std::string port = ReadAll(port_file);
    if (!port.empty()) {
      address_ = absl::StrCat("127.0.0.1:", absl::StripAsciiWhitespace(port));
      return absl::OkStatus();
    }
    if (Ended()) return HowItEnded();
    absl::SleepFor(kPollInterval);
  }
  return absl::UnavailableError(absl::StrCat(
      name_, " did not serve within ", absl::FormatDuration(kStartTimeout), LogEnd(log_path_)));
}

bool DaemonProcess::Ended() {
  if (pid_ == 0) return true;
  const pid_t waited = ::waitpid(pid_, &wait_status_, WNOHANG);
  if (waited == 0 || (waited < 0 && errno == EINTR)) return false;
  pid_ = 0;
  return true;
}

absl::Status DaemonProcess::HowItEnded() const {
  const bool signalled = WIFSIGNALED(wait_status_);
  return absl::UnavailableError(absl::StrCat(
      name_, " ended with ", signalled ? "signal " : "exit code ",
      signalled ? WTERMSIG(wait_status_) : WEXITSTATUS(wait_status_), LogEnd(log_path_)));
}

absl::Status DaemonProcess::Check() { return Ended() ? HowItEnded() : absl::OkStatus(); }

absl::Status DaemonProcess::Stop() {
  if (stopped_) return absl::OkStatus();
  stopped_ = true;
  if (Ended()) return HowItEnded();
  ::kill(pid_, SIGTERM);
  const absl::Time deadline = absl::Now() + kStopTimeout;
  while (!Ended()) {
    if (absl::Now() >= deadline) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, &wait_status_, 0);
      pid_ = 0;
      return absl::UnavailableError(absl::StrCat(name_, " did not stop within ",
                                                 absl::FormatDuration(kStopTimeout),
                                                 " and was killed", LogEnd(log_path_)));
    }
    absl::SleepFor(kPollInterval);
  }
  if (WIFEXITED(wait_status_) && WEXITSTATUS(wait_status_) == 0) return absl::OkStatus();
  return HowItEnded();
}

}  // namespace terrace::policy_check
