#include "services/kv_store/block_stream.h"

#include <utility>

#include "services/engine/error.h"
#include "services/runtime/call.h"
#include "services/runtime/status_convert.h"

namespace terrace::kv_store {

BlockStream::BlockStream(grpc::CallbackServerContext* context, runtime::Executor& executor,
                         runtime::Drain& drain, std::unique_ptr<BlockHandler> handler)
    : context_(context), executor_(executor), drain_(drain), handler_(std::move(handler)) {
  drain_id_ = drain_.Add(
      [this] { Update([this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { draining_ = true; }); });
  // While the process starts, or is about to stop, nothing is read.
  Update([this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { status_ = executor_.refusal(); });
}

void BlockStream::OnReadDone(bool ok) {
  Update([this, ok]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    reading_ = false;
    read_done_ = !ok;
    // A message that comes when the stream has ended finds nobody to answer it.
    if (!ok || finished_ || !status_.ok()) return;
    status_.Update(ChargeLocked(next_.Length()));
    if (status_.ok()) read_.push_back(std::move(next_));
  });
}

void BlockStream::OnWriteDone(bool ok) {
  Update([this, ok]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    writing_ = false;
    if (!ok) status_.Update(absl::CancelledError("the client is gone"));
  });
}

void BlockStream::OnDone() {
  drain_.Remove(drain_id_);
  {
    const kvstore::MutexLock lock(mu_);
    for (const grpc::ByteBuffer& request : read_) executor_.bytes().Give(request.Length());
  }
  delete this;
}

absl::Status BlockStream::ChargeLocked(uint64_t bytes) {
  if (charged_) {
    executor_.bytes().Take(bytes);
  } else if (!executor_.bytes().TryTake(bytes)) {
    return runtime::BytesFull();
  }
  charged_ = true;
  return absl::OkStatus();
}

bool BlockStream::StartWork(bool admitted) {
  if (!admitted) return executor_.Submit([this] { Work(); });
  executor_.Continue([this] { Work(); });
  return true;
}

void BlockStream::Work() {
  std::optional<grpc::ByteBuffer> request;
  // So that the next read runs meanwhile.
  Update([this, &request]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    admitted_ = true;
    if (pending_) return;
    request = std::move(read_.front());
    read_.pop_front();
  });
  absl::Status status;
  std::optional<grpc::ByteBuffer> answer;
  if (context_->IsCancelled()) {
    status = absl::CancelledError("the call was cancelled");
  } else if (request.has_value()) {
    status = handler_->Take(*request);
  }
  if (request.has_value()) executor_.bytes().Give(request->Length());
  request.reset();
  if (status.ok()) answer = handler_->Next();
  Update([this, &status, &answer]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    working_ = false;
    pending_ = handler_->pending();
    answer_ = std::move(answer);
    status_.Update(status);
  });
}

bool BlockStream::MayReadLocked() const {
  if (reading_ || read_done_ || draining_ || !status_.ok() || read_.size() == kReadMax)
    return false;
  return (read_.empty() && !working_) || executor_.bytes().HasRoom();
}

template <typename Change>
void BlockStream::Update(Change change) {
  bool read = false;
  bool work = false;
  bool write = false;
  bool admitted = false;
  {
    const kvstore::MutexLock lock(mu_);
    change();
    read = MayReadLocked();
    reading_ = reading_ || read;
    if (!status_.ok()) answer_.reset();
    write = !writing_ && answer_.has_value() && !finished_;
    if (write) {
      current_ = *std::exchange(answer_, std::nullopt);
      writing_ = true;
    }
    work = !working_ && !answer_.has_value() && status_.ok() && (pending_ || !read_.empty());
    working_ = working_ || work;
    admitted = admitted_;
    ++starting_;
  }
  if (read) {
    next_.Clear();
    StartRead(&next_);
  }
  if (write) StartWrite(&current_);
  const bool refused = work && !StartWork(admitted);
  bool finish = false;
  absl::Status status;
  {
    const kvstore::MutexLock lock(mu_);
    --starting_;
    if (refused) {
      working_ = false;
      status_.Update(runtime::QueueFull());
    }
    const bool idle = starting_ == 0 && !working_ && !writing_ && !answer_.has_value();
    const bool answered = (read_done_ || draining_) && read_.empty() && !pending_;
    finish = !finished_ && idle && (answered || !status_.ok());
    finished_ = finished_ || finish;
    status = status_;
    if (status.ok() && !read_done_) status = engine::Draining();
  }
  if (finish) Finish(runtime::ToGrpcStatus(status));
}

}  // namespace terrace::kv_store
