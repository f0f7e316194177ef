#include "services/frontend/attend_stream.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/frontend/convert.h"
#include "terrace/v1/attention.grpc.pb.h"

namespace terrace::frontend {

// One thread drives the call: it starts operations and waits for their events here.
struct AttendStream::Call {
  explicit Call(const std::shared_ptr<grpc::Channel>& channel)
      : stub(v1::AttentionService::NewStub(channel)) {}

  // Waits until all started operations have ended. DeadlineExceeded, and the call cancelled, when
  // that takes longer than until `deadline`; Unavailable if one of them failed.
  absl::Status Wait(absl::Time deadline);
  // Why the stream ended.
  absl::Status Finish();

  std::unique_ptr<v1::AttentionService::Stub> stub;
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  std::unique_ptr<grpc::ClientAsyncReaderWriter<v1::AttendRequest, v1::AttendResponse>> stream;
  int pending = 0;
  // Set by a message about the stream itself: the service drains.
  absl::Status farewell;
};

absl::Status AttendStream::Call::Wait(absl::Time deadline) {
  absl::Status status;
  while (pending > 0) {
    void* tag = nullptr;
    bool ok = false;
    const auto event = queue.AsyncNext(&tag, &ok, absl::ToChronoTime(deadline));
    if (event == grpc::CompletionQueue::TIMEOUT) {
      context.TryCancel();
      deadline = absl::InfiniteFuture();
      status = absl::DeadlineExceededError("no answer in time");
      continue;
    }
    --pending;
    if (!ok) status.Update(absl::UnavailableError("the stream has ended"));
  }
  return status;
}

absl::Status AttendStream::Call::Finish() {
  grpc::Status end;
  ++pending;
  stream->Finish(&end, nullptr);
  Wait(absl::InfiniteFuture()).IgnoreError();
  // A server that shuts down cancels its calls; this side has not.
  if (end.error_code() == grpc::StatusCode::CANCELLED) {
    return absl::UnavailableError(
        absl::StrCat("the service cancelled the stream: ", end.error_message()));
  }
  if (!end.ok()) {
    return absl::Status(static_cast<absl::StatusCode>(end.error_code()), end.error_message());
  }
  return farewell.ok() ? absl::UnavailableError("the service ended the stream") : farewell;
}

AttendStream::AttendStream(const std::shared_ptr<grpc::Channel>& channel, const std::string& tenant)
    : call_(std::make_unique<Call>(channel)) {
  if (!tenant.empty()) call_->context.AddMetadata("terrace-tenant", tenant);
  call_->stream = call_->stub->PrepareAsyncAttendStream(&call_->context, &call_->queue);
  ++call_->pending;
  call_->stream->StartCall(nullptr);
}

AttendStream::~AttendStream() {
  call_->context.TryCancel();
  call_->Wait(absl::InfiniteFuture()).IgnoreError();
  call_->queue.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (call_->queue.Next(&tag, &ok)) {
  }
}

absl::Status AttendStream::Exchange(const v1::AttendRequest& request, v1::AttendResponse& response,
                                    absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  absl::Status status = call_->Wait(deadline);
  if (status.ok()) {
    // The read stands ready when the answer comes: no turn of the queue is lost between the two.
    call_->pending += 2;
    call_->stream->Write(request, nullptr);
    call_->stream->Read(&response, nullptr);
    status = call_->Wait(deadline);
  }
  while (status.ok() && response.request_id() == 0) {
    call_->farewell = FromProto(response.status());
    ++call_->pending;
    call_->stream->Read(&response, nullptr);
    status = call_->Wait(deadline);
  }
  if (absl::IsUnavailable(status)) return call_->Finish();
  if (!status.ok()) return status;
  if (response.request_id() != request.request_id()) {
    return absl::InternalError(absl::StrCat("the service answered request ", response.request_id(),
                                            ", ", request.request_id(), " expected"));
  }
  return absl::OkStatus();
}

}  // namespace terrace::frontend
