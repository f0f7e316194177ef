// One bulk append: refused while too many bytes are in flight. Once its first message is let in,
// the next one is read when the last one is stored, so that gRPC's flow control holds the client
// back. Includes gRPC: for service .cc files only.
#ifndef TERRACE_SERVICES_RUNTIME_BULK_APPEND_REACTOR_H_
#define TERRACE_SERVICES_RUNTIME_BULK_APPEND_REACTOR_H_

#include <grpcpp/support/server_callback.h>

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "kvstore/mutex.h"
#include "services/runtime/call.h"
#include "services/runtime/drain.h"
#include "services/runtime/executor.h"
#include "services/runtime/sequence_verbs.h"
#include "services/runtime/status_convert.h"
#include "terrace/v1/attention.pb.h"

namespace terrace::runtime {

// Deletes itself when the call is over. A drain ends it before the next message: what was stored
// stands, so that its client can go on elsewhere.
class BulkAppendReactor final : public grpc::ServerReadReactor<v1::AppendKvRequest> {
 public:
  BulkAppendReactor(grpc::CallbackServerContext* context, engine::KvEngine& engine,
                    Executor& executor, Drain& drain, v1::AppendKvResponse* response)
      : context_(context),
        executor_(executor),
        drain_(drain),
        response_(response),
        append_(engine, CallerOf(*context)) {
    absl::Status refused = executor_.refusal();
    if (refused.ok() && !executor_.bytes().HasRoom()) refused = BytesFull();
    if (!refused.ok()) {
      End(ToGrpcStatus(refused));
      return;
    }
    Read();
    drain_id_ = drain_.Add([this] { OnDrain(); });
  }

  void OnReadDone(bool ok) override {
    {
      const kvstore::MutexLock lock(mu_);
      // gRPC may be done with this object as soon as this reaction returns.
      if (finished_) return;
      busy_ = true;
    }
    const uint64_t bytes = ok ? request_.ByteSizeLong() : 0;
    if (admitted_) {
      executor_.bytes().Take(bytes);
    } else if (!executor_.bytes().TryTake(bytes)) {
      End(ToGrpcStatus(BytesFull()));
      return;
    }
    const auto task = [this, ok, bytes] {
      admitted_ = true;
      const absl::Status status = ok ? Add() : append_.End(response_);
      executor_.bytes().Give(bytes);
      if (ok && status.ok()) {
        Read();
      } else {
        End(ToGrpcStatus(status));
      }
    };
    if (admitted_) {
      executor_.Continue(task);
      return;
    }
    if (executor_.Submit(task)) return;
    executor_.bytes().Give(bytes);
    End(ToGrpcStatus(QueueFull()));
  }

  void OnDone() override {
    drain_.Remove(drain_id_);
    delete this;
  }

 private:
  absl::Status Add() {
    if (context_->IsCancelled()) return absl::CancelledError("the append was cancelled");
    return append_.Add(request_);
  }

  void OnDrain() {
    {
      const kvstore::MutexLock lock(mu_);
      draining_ = true;
      if (busy_) return;
    }
    End(ToGrpcStatus(engine::Draining()));
  }

  // Reads the next message, or ends the call because of a drain. gRPC may call OnReadDone before
  // StartRead returns, so it runs without the lock, and an end meanwhile is left to this.
  void Read() {
    bool draining = false;
    {
      const kvstore::MutexLock lock(mu_);
      draining = draining_;
      busy_ = draining;
      if (!draining) ++starting_;
    }
    if (draining) {
      End(ToGrpcStatus(engine::Draining()));
      return;
    }
    StartRead(&request_);
    bool ended = false;
    {
      const kvstore::MutexLock lock(mu_);
      --starting_;
      ended = finished_ && starting_ == 0;
    }
    // Nothing of this object may be touched after Finish.
    if (ended) Finish(end_);
  }

  // The first end stands.
  void End(const grpc::Status& status) {
    {
      const kvstore::MutexLock lock(mu_);
      if (finished_) return;
      finished_ = true;
      end_ = status;
      if (starting_ > 0) return;
    }
    Finish(status);
  }

  grpc::CallbackServerContext* const context_;
  Executor& executor_;
  Drain& drain_;
  v1::AppendKvResponse* const response_;
  BulkAppend append_;
  v1::AppendKvRequest request_;
  uint64_t drain_id_ = 0;
  // The first message was let in. Belongs to what handles the message that was read.
  bool admitted_ = false;

  kvstore::Mutex mu_;
  // Written once, by who sets finished_.
  grpc::Status end_;
  // A message is being stored: whoever does it ends the call.
  bool busy_ ABSL_GUARDED_BY(mu_) = false;
  // Reads that are being started.
  int starting_ ABSL_GUARDED_BY(mu_) = 0;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_BULK_APPEND_REACTOR_H_
