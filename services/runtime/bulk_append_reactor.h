// One bulk append: the next message is read when the last one is stored, so that gRPC's flow
// control holds the client back. Includes gRPC: for service .cc files only.
#ifndef TERRACE_SERVICES_RUNTIME_BULK_APPEND_REACTOR_H_
#define TERRACE_SERVICES_RUNTIME_BULK_APPEND_REACTOR_H_

#include <grpcpp/support/server_callback.h>

#include "services/runtime/call.h"
#include "services/runtime/executor.h"
#include "services/runtime/sequence_verbs.h"
#include "services/runtime/status_convert.h"
#include "terrace/v1/attention.pb.h"

namespace terrace::runtime {

// Deletes itself when the call is over.
class BulkAppendReactor final : public grpc::ServerReadReactor<v1::AppendKvRequest> {
 public:
  BulkAppendReactor(grpc::CallbackServerContext* context, engine::KvEngine& engine,
                    Executor& executor, v1::AppendKvResponse* response)
      : context_(context),
        executor_(executor),
        response_(response),
        append_(engine, CallerOf(*context)) {
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    const bool admitted = executor_.Submit([this, ok] {
      if (ok) {
        Add();
      } else {
        Finish(ToGrpcStatus(append_.End(response_)));
      }
    });
    if (!admitted) Finish(ToGrpcStatus(QueueFull()));
  }

  void OnDone() override { delete this; }

 private:
  void Add() {
    if (context_->IsCancelled()) {
      Finish(grpc::Status::CANCELLED);
      return;
    }
    const absl::Status status = append_.Add(request_);
    if (status.ok()) {
      StartRead(&request_);
    } else {
      Finish(ToGrpcStatus(status));
    }
  }

  grpc::CallbackServerContext* const context_;
  Executor& executor_;
  v1::AppendKvResponse* const response_;
  BulkAppend append_;
  v1::AppendKvRequest request_;
};

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_BULK_APPEND_REACTOR_H_
