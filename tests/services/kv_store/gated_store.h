// A store that hangs: it takes streams of steps, reads them when it is let, and answers if it is
// told to.
#ifndef TERRACE_TESTS_SERVICES_KV_STORE_GATED_STORE_H_
#define TERRACE_TESTS_SERVICES_KV_STORE_GATED_STORE_H_

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "terrace/v1/kv_store.grpc.pb.h"

namespace terrace::testing {

// Serves from construction to Stop. Thread-safe.
class GatedStore final : public v1::KvStoreService::Service {
 public:
  explicit GatedStore(bool answers) : answers_(answers) {
    grpc::ServerBuilder builder;
    // The window stays at 64 KiB: what is larger is not sent until it is read.
    builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    endpoint_ = "127.0.0.1:" + std::to_string(port);
  }
  ~GatedStore() override { Stop(); }

  const std::string& endpoint() const { return endpoint_; }
  std::shared_ptr<grpc::Channel> Channel() const {
    return grpc::CreateChannel(endpoint_, grpc::InsecureChannelCredentials());
  }
  // Opens, and cancels what runs.
  void Stop() {
    Open();
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }

  // From now on messages are read.
  void Open() {
    const absl::MutexLock lock(&mu_);
    open_ = true;
  }
  // Whether this many messages came within half a minute.
  bool AwaitRequests(size_t count) {
    const absl::MutexLock lock(&mu_);
    const auto there = [this, count]()
                           ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return requests_.size() >= count; };
    return mu_.AwaitWithTimeout(absl::Condition(&there), absl::Seconds(30));
  }
  std::vector<v1::StoreStepRequest> requests() const {
    const absl::MutexLock lock(&mu_);
    return requests_;
  }

 private:
  grpc::Status AttendSteps(
      grpc::ServerContext* /*context*/,
      grpc::ServerReaderWriter<v1::StoreStepResponse, v1::StoreStepRequest>* stream) override {
    {
      const absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(&open_));
    }
    v1::StoreStepRequest request;
    while (stream->Read(&request)) {
      v1::StoreStepResponse response;
      response.set_request_id(request.request_id());
      {
        const absl::MutexLock lock(&mu_);
        requests_.push_back(request);
      }
      if (answers_) stream->Write(response);
    }
    return grpc::Status::OK;
  }

  const bool answers_;
  std::unique_ptr<grpc::Server> server_;
  std::string endpoint_;
  mutable absl::Mutex mu_;
  bool open_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<v1::StoreStepRequest> requests_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_SERVICES_KV_STORE_GATED_STORE_H_
