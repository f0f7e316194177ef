// Makes AttendSteps streams. Includes gRPC: for .cc files only.
#ifndef TERRACE_SERVICES_KV_STORE_STEP_STUB_H_
#define TERRACE_SERVICES_KV_STORE_STEP_STUB_H_

#include "terrace/v1/kv_store.grpc.pb.h"

namespace terrace::kv_store {

class StepStub {
 public:
  explicit StepStub(v1::KvStoreService::StubInterface& stub) : stub_(stub) {}

  void Open(grpc::ClientContext* context,
            grpc::ClientBidiReactor<v1::StoreStepRequest, v1::StoreStepResponse>* reactor) {
    stub_.async()->AttendSteps(context, reactor);
  }

 private:
  v1::KvStoreService::StubInterface& stub_;
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_STEP_STUB_H_
