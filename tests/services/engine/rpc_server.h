// A gRPC server in this process, as the daemons make it, that tests can stop and start again.
#ifndef TERRACE_TESTS_SERVICES_ENGINE_RPC_SERVER_H_
#define TERRACE_TESTS_SERVICES_ENGINE_RPC_SERVER_H_

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/service_type.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "services/engine/error.h"
#include "services/runtime/drain.h"
#include "services/runtime/executor.h"

namespace terrace::testing {

// Serves from construction to Stop. Services are made over `executor` and `drain`, which outlive
// the server.
class RpcServer {
 public:
  static constexpr uint64_t kMessageBytesMax = uint64_t{4} << 20;

  using MakeServices = std::function<std::vector<std::unique_ptr<grpc::Service>>(
      runtime::Executor& executor, runtime::Drain& drain)>;

  // What may run and wait at once.
  struct Room {
    int threads = 4;
    size_t queue_max = 256;
    uint64_t bytes_max = uint64_t{256} << 20;
  };

  // port 0 picks a free one.
  explicit RpcServer(const MakeServices& make, int port = 0) : RpcServer(make, port, Room()) {}
  RpcServer(const MakeServices& make, int port, const Room& room)
      : executor_(room.threads, room.queue_max, room.bytes_max),
        services_(make(executor_, drain_)) {
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(kMessageBytesMax);
    builder.SetMaxSendMessageSize(-1);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddListeningPort("127.0.0.1:" + std::to_string(port), grpc::InsecureServerCredentials(),
                             &port_);
    for (const std::unique_ptr<grpc::Service>& service : services_) {
      builder.RegisterService(service.get());
    }
    server_ = builder.BuildAndStart();
  }
  ~RpcServer() { Stop(); }

  bool serving() const { return server_ != nullptr && port_ != 0; }
  int port() const { return port_; }
  std::string endpoint() const { return "127.0.0.1:" + std::to_string(port_); }
  runtime::Executor& executor() { return executor_; }

  // As runtime::Serve does when it is told to stop.
  void StartDrain() {
    executor_.Refuse(engine::Draining());
    drain_.Start();
  }

  // Cancels what runs.
  void Stop() {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    server_.reset();
  }

  // A connection of its own.
  std::shared_ptr<grpc::Channel> Channel() const {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(endpoint(), grpc::InsecureChannelCredentials(), arguments);
  }

 private:
  runtime::Drain drain_;
  runtime::Executor executor_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_SERVICES_ENGINE_RPC_SERVER_H_
