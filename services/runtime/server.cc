#include "services/runtime/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "services/engine/error.h"
#include "services/runtime/version.h"

namespace terrace::runtime {
namespace {

// Clients ping every 20 s; the default minimum of five minutes would hang up on them.
constexpr int kMinPingIntervalMs = 10'000;
// Messages of many megabytes come and go: keep their memory instead of asking the kernel each time.
constexpr int kKeepAllocationBytes = 256 << 20;
// What has to be written at an orderly end gets this much, even when calls took all of the drain.
constexpr absl::Duration kFinishMin = absl::Seconds(5);
// Between the ends of streams and of their connections: one that is closed while its client still
// sends is reset, and takes with it what the client has not read yet.
constexpr absl::Duration kPartingTime = absl::Milliseconds(200);

sigset_t StopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

// Hears SIGTERM and SIGINT in a thread of its own, since starting may take minutes in calls that
// nobody can interrupt.
class StopListener {
 public:
  StopListener() : thread_([this] { Listen(); }) {}
  ~StopListener() {
    DaemonStarted();
    pthread_kill(thread_.native_handle(), SIGINT);
    thread_.join();
  }
  StopListener(const StopListener&) = delete;
  StopListener& operator=(const StopListener&) = delete;

  // Until then a signal ends the process at once: nothing was acknowledged, and what a start has
  // changed on disk the next one finds as after a kill.
  void DaemonStarted() {
    const absl::MutexLock lock(&mu_);
    started_ = true;
  }
  // The signal.
  int Await() {
    const absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(
        +[](int* received) { return *received != 0; }, &received_));
    return received_;
  }

 private:
  void Listen() {
    const sigset_t signals = StopSignals();
    int received = 0;
    sigwait(&signals, &received);
    const absl::MutexLock lock(&mu_);
    if (!started_) {
      spdlog::info("event=stopped signal={} while=starting", received);
      std::_Exit(0);
    }
    received_ = received;
  }

  absl::Mutex mu_;
  bool started_ ABSL_GUARDED_BY(mu_) = false;
  int received_ ABSL_GUARDED_BY(mu_) = 0;
  std::thread thread_;
};

// Readers must never see half a number: written aside, then renamed.
absl::Status WritePort(const std::string& path, int port) {
  if (path.empty()) return absl::OkStatus();
  const std::string aside = absl::StrCat(path, ".tmp");
  std::ofstream file(aside);
  file << port << "\n";
  file.close();
  if (!file || std::rename(aside.c_str(), path.c_str()) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("port-file: cannot write ", path));
  }
  return absl::OkStatus();
}

std::unique_ptr<grpc::Server> Listen(const ServerFlags& flags,
                                     const std::vector<grpc::Service*>& services, int* port) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(static_cast<int>(flags.max_message_bytes));
  // Handlers keep their answers to the limit: here it would end the stream.
  builder.SetMaxSendMessageSize(-1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, flags.max_streams);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddListeningPort(flags.listen, grpc::InsecureServerCredentials(), port);
  for (grpc::Service* service : services) builder.RegisterService(service);
  return builder.BuildAndStart();
}

void SetHealth(grpc::Server& server, bool ready) {
  grpc::HealthCheckServiceInterface* health = server.GetHealthCheckService();
  health->SetServingStatus("", ready);
  health->SetServingStatus("readiness", ready);
  health->SetServingStatus("liveness", true);
}

// Shutdown cancels calls at the deadline, but returns only when their handlers have: a handler that
// waits for somebody else has to be told.
void StopServer(grpc::Server& server, absl::Time deadline, const std::function<void()>& cancel) {
  absl::Notification stopped;
  std::thread canceller([&] {
    if (stopped.WaitForNotificationWithDeadline(deadline) || !cancel) return;
    spdlog::warn("event=cancelling_calls");
    cancel();
  });
  server.Shutdown(absl::ToChronoTime(deadline));
  server.Wait();
  stopped.Notify();
  canceller.join();
}

}  // namespace

void InitProcess(const std::string& log_level) {
  const sigset_t signals = StopSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  // The distribution builds Abseil with its search for deadlocks on: all locks of gRPC would take
  // turns at one.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  mallopt(M_MMAP_THRESHOLD, kKeepAllocationBytes);
  mallopt(M_TRIM_THRESHOLD, kKeepAllocationBytes);
  spdlog::set_level(spdlog::level::from_str(log_level));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %l %v");
}

absl::Status Serve(const ServerFlags& flags, const Daemon& daemon) {
  const absl::Time begin = absl::Now();
  int port = 0;
  daemon.executor.Refuse(engine::Recovering());
  const std::unique_ptr<grpc::Server> server = Listen(flags, daemon.services, &port);
  if (server == nullptr || port == 0) {
    return absl::UnavailableError(
        absl::StrCat("listen: cannot serve on ", flags.listen, ": is the address in use?"));
  }
  SetHealth(*server, false);
  spdlog::info("event=listening name={} version={} listen={} port={}", daemon.name, kVersion,
               flags.listen, port);
  StopListener stop;
  absl::Status status = daemon.around.start();
  stop.DaemonStarted();
  if (status.ok()) {
    daemon.executor.Refuse(absl::OkStatus());
    SetHealth(*server, true);
    // Who reads it may call.
    status = WritePort(flags.port_file, port);
  }
  if (!status.ok()) {
    StopServer(*server, absl::Now(), nullptr);
    return status;
  }
  spdlog::info("event=serving name={} port={} threads={} time_to_ready={}", daemon.name, port,
               flags.threads, absl::FormatDuration(absl::Now() - begin));

  const int received = stop.Await();
  const absl::Time deadline = absl::Now() + flags.drain_timeout;
  spdlog::info("event=draining signal={} timeout={}", received,
               absl::FormatDuration(flags.drain_timeout));
  SetHealth(*server, false);
  daemon.executor.Refuse(engine::Draining());
  daemon.drain.Start();
  daemon.drain.AwaitNone(deadline);
  absl::SleepFor(std::min(kPartingTime, deadline - absl::Now()));
  StopServer(*server, deadline, daemon.around.cancel);
  if (daemon.around.finish) daemon.around.finish(std::max(deadline, absl::Now() + kFinishMin));
  spdlog::info("event=stopped");
  return absl::OkStatus();
}

}  // namespace terrace::runtime
