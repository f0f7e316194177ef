#include "tests/bench/server_process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/bench/require.h"

namespace terrace::bench {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);

sockaddr_in Loopback(int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

int FreePort() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = Loopback(0);
  socklen_t size = sizeof(address);
  Require(::bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
              ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0,
          "finding a free port");
  ::close(fd);
  return ntohs(address.sin_port);
}

bool Accepts(int port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const sockaddr_in address = Loopback(port);
  const bool connected =
      ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  ::close(fd);
  return connected;
}

// In the child: nothing but system calls.
[[noreturn]] void Become(char* const* argv, const char* log) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const int out = ::open(log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(out, STDERR_FILENO);
  ::close_range(STDERR_FILENO + 1, ~0U, 0);
  ::execvp(argv[0], argv);
  ::_exit(127);
}

}  // namespace

ServerProcess::ServerProcess(const std::function<std::vector<std::string>(int port)>& command,
                             const std::string& log)
    : port_(FreePort()) {
  std::vector<std::string> words = command(port_);
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_ = ::fork();
  if (pid_ == 0) Become(argv.data(), log.c_str());
  Require(pid_ > 0, "starting " + words[0]);
  const absl::Time end = absl::Now() + kPatience;
  while (!Accepts(port_)) {
    int status = 0;
    Require(::waitpid(pid_, &status, WNOHANG) == 0, absl::StrCat(words[0], " ended; see ", log));
    Require(absl::Now() < end, absl::StrCat(words[0], " does not serve; see ", log));
    absl::SleepFor(absl::Milliseconds(5));
  }
}

double ServerProcess::processor_seconds() const {
  std::ifstream file(absl::StrCat("/proc/", pid_, "/stat"));
  const std::string stat((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  // After the name, which may have blanks: the 12th and 13th field are user and system time.
  std::istringstream fields(stat.substr(stat.rfind(')') + 1));
  std::string skipped;
  for (int i = 0; i < 11; ++i) fields >> skipped;
  double user = 0;
  double system = 0;
  Require(static_cast<bool>(fields >> user >> system), "reading " + stat);
  return (user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

ServerProcess::~ServerProcess() {
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

}  // namespace terrace::bench
