#include "tests/services/terracectl/child_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <spawn.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

extern char** environ;

namespace terrace::testing {
namespace {

std::string ReadFile(std::FILE* file) {
  std::rewind(file);
  std::string text;
  char buffer[4096];
  while (const size_t size = std::fread(buffer, 1, sizeof(buffer), file)) text.append(buffer, size);
  return text;
}

// Everything that the other end of a terminal prints until it is closed.
std::string ReadTerminal(int fd) {
  std::string text;
  char buffer[4096];
  while (true) {
    const ssize_t size = ::read(fd, buffer, sizeof(buffer));
    if (size > 0) {
      text.append(buffer, static_cast<size_t>(size));
    } else if (size == 0 || errno != EINTR) {
      // EIO once the last writer is gone.
      return text;
    }
  }
}

std::string NameOf(const std::string& variable) { return variable.substr(0, variable.find('=')); }

std::vector<std::string> Environment(const ProcessOptions& options) {
  std::vector<std::string> removed = {"TERRACE_ENDPOINT", "NO_COLOR"};
  for (const std::string& variable : options.environment) removed.push_back(NameOf(variable));
  std::vector<std::string> result = options.environment;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    bool keep = true;
    for (const std::string& name : removed) keep = keep && NameOf(*variable) != name;
    if (keep) result.emplace_back(*variable);
  }
  return result;
}

std::vector<char*> Pointers(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// Starts the program with the given standard output and error; 0 if that failed.
pid_t Spawn(const std::string& program, std::vector<std::string> arguments,
            const ProcessOptions& options, int out, int err) {
  arguments.insert(arguments.begin(), program);
  std::vector<std::string> variables = Environment(options);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  if (options.stdout_path.empty()) {
    ::posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
  } else {
    ::posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, options.stdout_path.c_str(),
                                       O_WRONLY, 0);
  }
  ::posix_spawn_file_actions_adddup2(&actions, err, STDERR_FILENO);
  pid_t pid = 0;
  const int error = ::posix_spawn(&pid, program.c_str(), &actions, nullptr,
                                  Pointers(arguments).data(), Pointers(variables).data());
  ::posix_spawn_file_actions_destroy(&actions);
  EXPECT_EQ(error, 0) << program << ": " << std::strerror(error);
  return error == 0 ? pid : 0;
}

int Wait(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace

ProcessResult RunProcess(const std::string& program, const std::vector<std::string>& arguments,
                         const ProcessOptions& options) {
  ProcessResult result;
  std::FILE* err = std::tmpfile();
  std::FILE* out = std::tmpfile();
  int terminal = -1;
  int child_end = ::dup(::fileno(out));
  if (options.terminal_columns > 0) {
    ::close(child_end);
    const winsize size = {.ws_row = 24,
                          .ws_col = static_cast<unsigned short>(options.terminal_columns),
                          .ws_xpixel = 0,
                          .ws_ypixel = 0};
    // Raw, so that the bytes arrive as they were written.
    termios raw = {};
    ::cfmakeraw(&raw);
    EXPECT_EQ(::openpty(&terminal, &child_end, nullptr, &raw, &size), 0) << std::strerror(errno);
  }
  const pid_t pid = Spawn(program, arguments, options, child_end, ::fileno(err));
  ::close(child_end);
  if (pid != 0) {
    if (terminal >= 0) result.out = ReadTerminal(terminal);
    result.exit_code = Wait(pid);
    if (terminal < 0) result.out = ReadFile(out);
    result.err = ReadFile(err);
  }
  if (terminal >= 0) ::close(terminal);
  std::fclose(out);
  std::fclose(err);
  return result;
}

}  // namespace terrace::testing
