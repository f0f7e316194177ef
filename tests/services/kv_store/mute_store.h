// A store that hangs: it takes steps and calls and never answers. It may say who it is.
#ifndef TERRACE_TESTS_SERVICES_KV_STORE_MUTE_STORE_H_
#define TERRACE_TESTS_SERVICES_KV_STORE_MUTE_STORE_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kvstore/mutex.h"
#include "terrace/v1/kv_store.grpc.pb.h"
#include "tests/services/engine/rpc_server.h"

namespace terrace::testing {

// Thread-safe. Calls end when they are cancelled, or at their deadlines.
class MuteStore {
 public:
  enum class Names { kItself, kNothing };

  MuteStore(uint16_t shard, Names names) : shard_(shard), names_(names) {}

  std::string endpoint() const { return server_.endpoint(); }
  // Whether so many steps, and so many calls of GetSequence, came within half a minute.
  bool AwaitSteps(int count) { return AwaitCount(steps_, count); }
  bool AwaitCalls(int count) { return AwaitCount(calls_, count); }

 private:
  class Service final : public v1::KvStoreService::Service {
   public:
    explicit Service(MuteStore& store) : store_(store) {}

    grpc::Status GetLimits(grpc::ServerContext* context, const v1::GetLimitsRequest* /*request*/,
                           v1::GetLimitsResponse* response) override {
      if (store_.names_ == Names::kNothing) return Hang(*context);
      response->set_shard(store_.shard_);
      response->set_max_message_bytes(RpcServer::kMessageBytesMax);
      return grpc::Status::OK;
    }
    grpc::Status AttendSteps(
        grpc::ServerContext* /*context*/,
        grpc::ServerReaderWriter<v1::StoreStepResponse, v1::StoreStepRequest>* stream) override {
      v1::StoreStepRequest request;
      while (stream->Read(&request)) store_.Count(store_.steps_);
      return grpc::Status::OK;
    }
    grpc::Status GetSequence(grpc::ServerContext* context,
                             const v1::GetSequenceRequest* /*request*/,
                             v1::GetSequenceResponse* /*response*/) override {
      store_.Count(store_.calls_);
      return Hang(*context);
    }

   private:
    static grpc::Status Hang(const grpc::ServerContext& context) {
      while (!context.IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
      return grpc::Status::CANCELLED;
    }

    MuteStore& store_;
  };

  void Count(int& counter) {
    const kvstore::MutexLock lock(mu_);
    ++counter;
    changed_.NotifyAll();
  }
  bool AwaitCount(const int& counter, int count) {
    const absl::Time end = absl::Now() + absl::Seconds(30);
    const kvstore::MutexLock lock(mu_);
    while (counter < count && changed_.WaitUntil(mu_, end)) {
    }
    return counter >= count;
  }

  const uint16_t shard_;
  const Names names_;
  kvstore::Mutex mu_;
  kvstore::CondVar changed_;
  // Guarded by mu_.
  int steps_ = 0;
  int calls_ = 0;
  RpcServer server_{[this](runtime::Executor&, runtime::Drain&) {
    std::vector<std::unique_ptr<grpc::Service>> services;
    services.push_back(std::make_unique<Service>(*this));
    return services;
  }};
};

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_SERVICES_KV_STORE_MUTE_STORE_H_
