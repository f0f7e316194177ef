#include "services/kv_store/step_channel.h"

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <algorithm>
#include <deque>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/engine/error.h"
#include "services/kv_store/step_stub.h"
#include "services/runtime/status_convert.h"

namespace terrace::kv_store {

class StepChannel::Pending {
 public:
  void Answer(absl::StatusOr<v1::StoreStepResponse> answer) {
    const absl::MutexLock lock(&mu_);
    answer_ = std::move(answer);
    answered_ = true;
  }

  absl::StatusOr<v1::StoreStepResponse> Wait(absl::Time deadline) {
    const absl::MutexLock lock(&mu_);
    if (!mu_.AwaitWithDeadline(absl::Condition(&answered_), deadline)) {
      return absl::DeadlineExceededError("the store did not answer within the step's deadline");
    }
    return std::move(answer_);
  }

 private:
  absl::Mutex mu_;
  bool answered_ ABSL_GUARDED_BY(mu_) = false;
  absl::StatusOr<v1::StoreStepResponse> answer_ ABSL_GUARDED_BY(mu_) =
      absl::UnknownError("no answer yet");
};

// Counts streams that exist. A stream goes in one of gRPC's threads, and with it a reference to the
// gRPC channel; the last one must not go there, because a channel waits for those threads.
class StepChannel::LiveStreams {
 public:
  class Token {
   public:
    explicit Token(std::shared_ptr<LiveStreams> live) : live_(std::move(live)) { live_->Add(1); }
    ~Token() { live_->Add(-1); }
    Token(const Token&) = delete;
    Token& operator=(const Token&) = delete;

   private:
    const std::shared_ptr<LiveStreams> live_;
  };

  void AwaitNone() {
    const absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(
        +[](int* count) { return *count == 0; }, &count_));
  }

 private:
  void Add(int change) {
    const absl::MutexLock lock(&mu_);
    count_ += change;
  }

  absl::Mutex mu_;
  int count_ ABSL_GUARDED_BY(mu_) = 0;
};

// One gRPC stream. Lives until gRPC is done with it: `self_` keeps it. A hold keeps the call open
// for writes that start outside of reactions; it goes when the stream is broken and no write is
// about to start.
class StepChannel::Stream final
    : public grpc::ClientBidiReactor<v1::StoreStepRequest, v1::StoreStepResponse> {
 public:
  static std::shared_ptr<Stream> Open(StepStub& stub, const std::string& endpoint,
                                      std::shared_ptr<LiveStreams> live) {
    auto stream = std::make_shared<Stream>(endpoint, std::move(live));
    stream->self_ = stream;
    stub.Open(&stream->context_, stream.get());
    stream->AddHold();
    stream->StartRead(&stream->response_);
    stream->StartCall();
    return stream;
  }

  Stream(std::string endpoint, std::shared_ptr<LiveStreams> live)
      : token_(std::move(live)), endpoint_(std::move(endpoint)) {}

  // False when the stream is broken: nothing was sent.
  bool Send(v1::StoreStepRequest request, const std::shared_ptr<Pending>& pending) {
    return Update([&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      if (broken_) return false;
      pending_.emplace(request.request_id(), pending);
      queue_.push_back(std::move(request));
      return true;
    });
  }

  void Cancel() { context_.TryCancel(); }

  void OnReadDone(bool ok) override {
    std::shared_ptr<Pending> pending;
    v1::StoreStepResponse response;
    Update([&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      if (!ok) {
        broken_ = true;
        return true;
      }
      response = std::move(response_);
      const auto found = pending_.find(response.request_id());
      if (found != pending_.end()) {
        pending = found->second;
        pending_.erase(found);
      } else if (response.request_id() == 0) {
        draining_ = true;  // The store said goodbye; what was sent is still answered.
      }
      return true;
    });
    if (ok) {
      response_.Clear();
      StartRead(&response_);
    }
    if (pending != nullptr) pending->Answer(std::move(response));
  }

  void OnWriteDone(bool ok) override {
    Update([&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      writing_ = false;
      broken_ = broken_ || !ok;
      return true;
    });
  }

  void OnDone(const grpc::Status& status) override {
    std::map<uint64_t, std::shared_ptr<Pending>> unanswered;
    std::shared_ptr<Stream> self;
    {
      const absl::MutexLock lock(&mu_);
      unanswered.swap(pending_);
      self = std::move(self_);
    }
    const std::string why = status.ok() ? "the stream ended" : status.error_message();
    for (const auto& [id, pending] : unanswered) {
      pending->Answer(engine::ShardUnavailable(endpoint_, why));
    }
  }

  bool usable() {
    const absl::MutexLock lock(&mu_);
    return !broken_ && !draining_;
  }

 private:
  // Changes the state, then starts what it allows; see StepStream for why without the lock.
  template <typename Change>
  bool Update(Change change) ABSL_LOCKS_EXCLUDED(mu_) {
    bool result = false;
    bool write = false;
    {
      const absl::MutexLock lock(&mu_);
      result = change();
      write = !writing_ && !queue_.empty() && !broken_;
      if (write) {
        request_ = std::move(queue_.front());
        queue_.pop_front();
        writing_ = true;
      }
      ++starting_;
    }
    if (write) StartWrite(&request_);
    bool release = false;
    {
      const absl::MutexLock lock(&mu_);
      --starting_;
      release = broken_ && starting_ == 0 && !released_;
      released_ = released_ || release;
    }
    if (release) RemoveHold();
    return result;
  }

  // The first member is the last to go: after the context, which refers to the channel.
  const LiveStreams::Token token_;
  const std::string endpoint_;
  grpc::ClientContext context_;
  v1::StoreStepResponse response_;
  // Belongs to the write in flight while writing_ says so.
  v1::StoreStepRequest request_;

  absl::Mutex mu_;
  std::shared_ptr<Stream> self_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, std::shared_ptr<Pending>> pending_ ABSL_GUARDED_BY(mu_);
  std::deque<v1::StoreStepRequest> queue_ ABSL_GUARDED_BY(mu_);
  int starting_ ABSL_GUARDED_BY(mu_) = 0;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool released_ ABSL_GUARDED_BY(mu_) = false;
};

StepChannel::StepChannel(StepStub& stub, std::string endpoint)
    : stub_(stub), endpoint_(std::move(endpoint)), live_(std::make_shared<LiveStreams>()) {}

StepChannel::~StepChannel() {
  {
    const absl::MutexLock lock(&mu_);
    for (const std::weak_ptr<Stream>& opened : opened_) {
      if (const std::shared_ptr<Stream> stream = opened.lock(); stream != nullptr) {
        stream->Cancel();
      }
    }
    stream_ = nullptr;
  }
  live_->AwaitNone();
}

std::shared_ptr<StepChannel::Pending> StepChannel::Start(v1::StoreStepRequest request) {
  auto pending = std::make_shared<Pending>();
  const absl::MutexLock lock(&mu_);
  request.set_request_id(next_id_++);
  // A stream can break between the look and the send; a fresh one then takes the step.
  for (int attempt = 0; attempt < 2; ++attempt) {
    if (stream_ == nullptr || !stream_->usable()) {
      stream_ = Stream::Open(stub_, endpoint_, live_);
      opened_.erase(std::remove_if(opened_.begin(), opened_.end(),
                                   [](const auto& opened) { return opened.expired(); }),
                    opened_.end());
      opened_.push_back(stream_);
    }
    if (stream_->Send(request, pending)) return pending;
  }
  pending->Answer(engine::ShardUnavailable(endpoint_, "the stream broke"));
  return pending;
}

absl::StatusOr<v1::StoreStepResponse> StepChannel::Wait(Pending& pending, absl::Time deadline) {
  return pending.Wait(deadline);
}

}  // namespace terrace::kv_store
