// One long-lived bidirectional stream of steps: many requests in flight, answered in the order of
// completion. Includes gRPC: for service .cc files only.
#ifndef TERRACE_SERVICES_RUNTIME_STEP_STREAM_H_
#define TERRACE_SERVICES_RUNTIME_STEP_STREAM_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "kvstore/mutex.h"
#include "services/engine/error.h"
#include "services/runtime/call.h"
#include "services/runtime/drain.h"
#include "services/runtime/executor.h"
#include "services/runtime/status_convert.h"

namespace terrace::runtime {

// Request and Response carry a request_id, and Response a google.rpc.Status `status`. A request
// with request_id 0 is answered INVALID_ARGUMENT: that number is of what the server says by itself.
// Deletes itself when the call is over.
template <typename Request, typename Response>
class StepStream final : public grpc::ServerBidiReactor<Request, Response> {
 public:
  // Answers one request; may wait. `arrival` is when it was read.
  using Handler = std::function<void(const Request&, absl::Time arrival, Response*)>;

  StepStream(grpc::CallbackServerContext* context, Executor& executor, Drain& drain,
             Handler handler)
      : context_(context), executor_(executor), drain_(drain), handler_(std::move(handler)) {
    if (const absl::Status refused = executor_.refusal(); !refused.ok()) SayGoodbye(refused);
    drain_id_ = drain_.Add([this] { SayGoodbye(engine::Draining()); });
    Update([] {});
  }

  void OnReadDone(bool ok) override {
    std::shared_ptr<Request> request;
    absl::Status refused;
    Update([this, ok, &request, &refused]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      reading_ = false;
      read_done_ = !ok;
      // A message that comes when the stream has ended finds nobody to answer it: gRPC may be done
      // with this object as soon as this reaction returns.
      if (!ok || finished_) return;
      request = std::move(next_);
      // Before the next one is read.
      refused = Charge(*request);
      ++in_flight_;
    });
    if (request == nullptr) return;
    if (refused.ok()) {
      Dispatch(std::move(request));
    } else {
      Refuse(*request, refused);
    }
  }

  void OnWriteDone(bool ok) override {
    Update([this, ok]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      writing_ = false;
      broken_ = broken_ || !ok;
    });
  }

  void OnDone() override {
    drain_.Remove(drain_id_);
    delete this;
  }

 private:
  // Requests of one stream that are read, up to the answer's last byte on its way: what a slow
  // server makes wait, and what a client that does not read its answers may leave here.
  static constexpr size_t kInFlightMax = 16;

  // The stream ends because of `why`, which its last message says.
  void SayGoodbye(const absl::Status& why) {
    Response goodbye;
    *goodbye.mutable_status() = ToRpcStatus(why);
    Update([this, &why, &goodbye]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      if (!goodbye_.ok()) return;
      goodbye_ = why;
      answers_.push_back(std::move(goodbye));
    });
  }

  // OK when the request may run: its bytes are then taken.
  absl::Status Charge(const Request& request) {
    if (request.request_id() == 0) {
      return absl::InvalidArgumentError("request_id: got 0, expected any other number");
    }
    return executor_.bytes().TryTake(request.ByteSizeLong()) ? absl::OkStatus() : BytesFull();
  }

  void Dispatch(std::shared_ptr<Request> request) {
    const absl::Time arrival = absl::Now();
    const uint64_t bytes = request->ByteSizeLong();
    const bool admitted = executor_.Submit([this, request, arrival, bytes] {
      Response response;
      response.set_request_id(request->request_id());
      if (context_->IsCancelled()) {
        *response.mutable_status() = ToRpcStatus(absl::CancelledError("the stream was cancelled"));
      } else {
        handler_(*request, arrival, &response);
      }
      executor_.bytes().Give(bytes);
      Answer(std::move(response));
    });
    if (admitted) return;
    executor_.bytes().Give(bytes);
    Refuse(*request, QueueFull());
  }

  void Refuse(const Request& request, const absl::Status& why) {
    Response response;
    response.set_request_id(request.request_id());
    *response.mutable_status() = ToRpcStatus(why);
    Answer(std::move(response));
  }

  void Answer(Response response) {
    Update([this, &response]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      answers_.push_back(std::move(response));
      --in_flight_;
    });
  }

  // Changes the state, then starts what it allows. gRPC may call a reaction before Start… returns,
  // so operations start without the lock; `starting_` keeps the stream from ending meanwhile.
  template <typename Change>
  void Update(Change change) ABSL_LOCKS_EXCLUDED(mu_) {
    bool read = false;
    bool write = false;
    {
      const kvstore::MutexLock lock(mu_);
      change();
      read = MayReadLocked();
      if (read) {
        next_ = std::make_unique<Request>();
        reading_ = true;
      }
      if (broken_) answers_.clear();
      write = !writing_ && !answers_.empty() && !finished_;
      if (write) {
        current_ = std::move(answers_.front());
        answers_.pop_front();
        writing_ = true;
      }
      ++starting_;
    }
    if (read) this->StartRead(next_.get());
    if (write) this->StartWrite(&current_);
    bool finish = false;
    absl::Status end;
    {
      const kvstore::MutexLock lock(mu_);
      --starting_;
      // Every request that was read is answered before the stream ends.
      const bool idle = starting_ == 0 && in_flight_ == 0 && !writing_ && answers_.empty();
      finish = !finished_ && idle && (read_done_ || !goodbye_.ok() || broken_);
      finished_ = finished_ || finish;
      end = goodbye_;
    }
    // Nothing of this object may be touched after Finish.
    if (finish) this->Finish(ToGrpcStatus(end));
  }

  // While the process holds too many bytes, a stream has one request at a time: another would only
  // be refused.
  bool MayReadLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (reading_ || read_done_ || !goodbye_.ok() || broken_) return false;
    const size_t held = in_flight_ + answers_.size() + (writing_ ? 1 : 0);
    return held < kInFlightMax && (in_flight_ == 0 || executor_.bytes().HasRoom());
  }

  grpc::CallbackServerContext* const context_;
  Executor& executor_;
  Drain& drain_;
  const Handler handler_;
  uint64_t drain_id_ = 0;

  kvstore::Mutex mu_;
  // Belong to the operation in flight while reading_ and writing_ say so.
  std::unique_ptr<Request> next_;
  Response current_;
  std::deque<Response> answers_ ABSL_GUARDED_BY(mu_);
  // Read and not answered.
  size_t in_flight_ ABSL_GUARDED_BY(mu_) = 0;
  int starting_ ABSL_GUARDED_BY(mu_) = 0;
  bool reading_ ABSL_GUARDED_BY(mu_) = false;
  bool read_done_ ABSL_GUARDED_BY(mu_) = false;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  // Why the stream ends; OK while it goes on.
  absl::Status goodbye_ ABSL_GUARDED_BY(mu_);
  // A write failed: the client is gone.
  bool broken_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_STEP_STREAM_H_
