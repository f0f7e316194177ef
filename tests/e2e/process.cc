#include "tests/e2e/process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

extern char** environ;

namespace terrace::testing {
namespace {

constexpr size_t kLogTailBytes = 4000;

std::vector<char*> Pointers(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

std::vector<std::string> Environment() {
  std::vector<std::string> kept;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (std::strncmp(*variable, "TERRACE_", 8) != 0) kept.emplace_back(*variable);
  }
  return kept;
}

// In the child: only what is safe after a fork of many threads.
[[noreturn]] void Become(char** arguments, char** environment, const char* out, const char* err) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::dup2(::open("/dev/null", O_RDONLY), STDIN_FILENO);
  ::dup2(::open(out, O_WRONLY | O_CREAT | O_APPEND, 0600), STDOUT_FILENO);
  ::dup2(::open(err, O_WRONLY | O_CREAT | O_APPEND, 0600), STDERR_FILENO);
  ::close_range(STDERR_FILENO + 1, ~0U, 0);
  ::execve(arguments[0], arguments, environment);
  ::_exit(127);
}

// Programs lie beside the test.
std::string PathOf(const std::string& program) {
  return std::filesystem::read_symlink("/proc/self/exe").replace_filename(program);
}

bool PortIsFree(int port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const bool free = ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  ::close(fd);
  return free;
}

int FreePort() {
  std::random_device random;
  while (true) {
    const int port = 10'000 + static_cast<int>(random() % 20'000);
    if (PortIsFree(port)) return port;
  }
}

}  // namespace

Process::Process(const std::string& program, const std::vector<std::string>& arguments)
    : program_(program) {
  std::vector<std::string> words = {PathOf(program)};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<std::string> variables = Environment();
  const std::vector<char*> argv = Pointers(words);
  const std::vector<char*> envp = Pointers(variables);
  const std::string out = folder_.File("stdout");
  const std::string err = folder_.File("stderr");
  pid_ = ::fork();
  if (pid_ == 0)
    Become(const_cast<char**>(argv.data()), const_cast<char**>(envp.data()), out.c_str(),
           err.c_str());
  EXPECT_GT(pid_, 0) << program << ": " << std::strerror(errno);
  running_ = pid_ > 0;
}

Process::~Process() {
  Kill();
  if (!::testing::Test::HasFailure()) return;
  // Daemons log to standard output.
  const std::string log = Out() + Err();
  const size_t start = log.size() > kLogTailBytes ? log.size() - kLogTailBytes : 0;
  std::printf("---- log of %s, process %d, exit code %d ----\n%s----\n", program_.c_str(),
              static_cast<int>(pid_), exit_code_, log.substr(start).c_str());
}

void Process::Reaped(int status) {
  running_ = false;
  exit_code_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

bool Process::Running() {
  int status = 0;
  if (running_ && ::waitpid(pid_, &status, WNOHANG) == pid_) Reaped(status);
  return running_;
}

void Process::Signal(int signal) const {
  if (running_) ::kill(pid_, signal);
}

void Process::Kill() {
  if (!Running()) return;
  Signal(SIGKILL);
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  Reaped(status);
}

int Process::Wait(absl::Duration bound) {
  if (!Await([this] { return !Running(); }, bound)) {
    ADD_FAILURE() << program_ << " did not end within " << absl::FormatDuration(bound);
    Kill();
  }
  return exit_code_;
}

Outcome RunProgram(const std::string& program, const std::vector<std::string>& arguments,
                   absl::Duration bound) {
  Process process(program, arguments);
  const int exit_code = process.Wait(bound);
  return {exit_code, process.Out(), process.Err()};
}

Daemon::Daemon(const std::string& program, std::vector<std::string> arguments, int port)
    : program_(program), arguments_(std::move(arguments)), port_(port != 0 ? port : FreePort()) {
  Start();
}

std::string Daemon::address() const { return absl::StrCat("127.0.0.1:", port_); }

void Daemon::Start() {
  const std::string port_file = folder_.File("port");
  ::unlink(port_file.c_str());
  std::vector<std::string> arguments = arguments_;
  for (const std::string& more :
       {std::string("--listen"), address(), std::string("--port-file"), port_file}) {
    arguments.push_back(more);
  }
  process_ = std::make_unique<Process>(program_, arguments);
  int bound_port = 0;
  const bool done = Await(
      [&] { return absl::SimpleAtoi(ReadFile(port_file), &bound_port) || !process_->Running(); });
  serving_ = done && bound_port == port_;
  EXPECT_TRUE(serving_) << program_ << " does not serve " << address() << ":\n" << process_->Err();
}

void Daemon::Restart() { Start(); }

}  // namespace terrace::testing
