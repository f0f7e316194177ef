// A Terrace daemon that this process started.
#ifndef TERRACE_SERVICES_POLICY_CHECK_DAEMON_PROCESS_H_
#define TERRACE_SERVICES_POLICY_CHECK_DAEMON_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace terrace::policy_check {

// A daemon on a free loopback port. It is stopped with this object, and killed when the thread that
// started it ends otherwise. Not thread-safe.
class DaemonProcess {
 public:
  // Runs `folder`/`name` with --listen, --port-file and `arguments`, and waits until it serves.
  // Port file and log go to `work_folder`. Nothing of the environment that starts with TERRACE_
  // reaches it. NotFound without the program; Unavailable, with the end of its log, when it
  // does not come up.
  // Call it before the process has threads.
  static absl::StatusOr<std::unique_ptr<DaemonProcess>> Start(
      const std::string& folder, const std::string& name, const std::string& work_folder,
      const std::vector<std::string>& arguments);
  ~DaemonProcess();
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;

  // "127.0.0.1:PORT".
  const std::string& address() const { return address_; }

  // OK while it runs; else Unavailable with how it ended and the end of its log.
  absl::Status Check();

  // Asks it to drain and waits; kills it when it does not end. Unavailable unless it ended with
  // code 0; OK when it was stopped before.
  absl::Status Stop();

 private:
  DaemonProcess(std::string name, std::string log_path, pid_t pid)
      : name_(std::move(name)), log_path_(std::move(log_path)), pid_(pid) {}

  absl::Status WaitForPort(const std::string& port_file);
  // Whether it has ended; does not wait.
  bool Ended();
  absl::Status HowItEnded() const;

  const std::string name_;
  const std::string log_path_;
  std::string address_;
  // 0 once it has been waited for; wait_status_ then says how it ended.
  pid_t pid_ = 0;
  int wait_status_ = 0;
  bool stopped_ = false;
};

}  // namespace terrace::policy_check

#endif  // TERRACE_SERVICES_POLICY_CHECK_DAEMON_PROCESS_H_
