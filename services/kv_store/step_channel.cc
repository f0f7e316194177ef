#include "services/kv_store/step_channel.h"

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/engine/error.h"
#include "services/kv_store/step_stub.h"
#include "services/runtime/status_convert.h"

namespace terrace::kv_store {
namespace {

absl::Status Unsent() {
  return absl::DeadlineExceededError("step: its deadline passed before it was sent to the store");
}

}  // namespace

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
    const kvstore::MutexLock lock(mu_);
    while (count_ != 0) changed_.Wait(mu_);
  }

 private:
  void Add(int change) {
    const kvstore::MutexLock lock(mu_);
    count_ += change;
    changed_.NotifyAll();
  }

  kvstore::Mutex mu_;
  kvstore::CondVar changed_;
  int count_ ABSL_GUARDED_BY(mu_) = 0;
};

// One gRPC stream. Lives until gRPC is done with it: `self_` keeps it. A hold keeps the call open
// for writes that start outside of reactions; it goes when the stream is broken and no write is
// about to start.
class StepChannel::Stream final
    : public grpc::ClientBidiReactor<v1::StoreStepRequest, v1::StoreStepResponse> {
 public:
  static std::shared_ptr<Stream> Open(StepStub& stub, const std::string& endpoint,
                                      const QueueLimits& limits,
                                      std::shared_ptr<LiveStreams> live) {
    auto stream = std::make_shared<Stream>(endpoint, limits, std::move(live));
    stream->self_ = stream;
    stub.Open(&stream->context_, stream.get());
    stream->AddHold();
    stream->StartRead(&stream->response_);
    stream->StartCall();
    return stream;
  }

  Stream(std::string endpoint, const QueueLimits& limits, std::shared_ptr<LiveStreams> live)
      : token_(std::move(live)), endpoint_(std::move(endpoint)), limits_(limits) {}

  // An error when nothing was sent and nothing will be.
  absl::Status Send(const std::shared_ptr<PendingStep>& step) {
    absl::Status status;
    Update([&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      const bool room =
          queued_.size() < limits_.steps && queued_bytes_ + step->bytes() <= limits_.bytes;
      if (broken_) {
        status = engine::ShardUnavailable(endpoint_, "the stream broke");
      } else if (!room && !queued_.empty()) {
        status = engine::LimitExceeded(absl::StrCat("too many steps wait to be sent to ", endpoint_,
                                                    ": ", queued_.size(), " of ", queued_bytes_,
                                                    " bytes"));
      } else {
        queued_bytes_ += step->bytes();
        queued_.emplace(step->id(), step);
      }
    });
    return status;
  }

  // The step is neither sent nor answered any more. Whether it had not been sent.
  bool Withdraw(uint64_t id) {
    const kvstore::MutexLock lock(mu_);
    sent_.erase(id);
    const auto queued = queued_.find(id);
    if (queued == queued_.end()) return false;
    queued_bytes_ -= queued->second->bytes();
    queued_.erase(queued);
    return true;
  }

  void Cancel() { context_.TryCancel(); }

  void OnReadDone(bool ok) override {
    std::shared_ptr<PendingStep> step;
    v1::StoreStepResponse response;
    Update([&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      if (!ok) {
        broken_ = true;
        return;
      }
      response = std::move(response_);
      const auto found = sent_.find(response.request_id());
      if (found != sent_.end()) {
        step = found->second;
        sent_.erase(found);
      } else if (response.request_id() == 0) {
        draining_ = true;  // The store said goodbye; what was sent is still answered.
      }
    });
    if (ok) {
      response_.Clear();
      StartRead(&response_);
    }
    if (step != nullptr) step->Answer(std::move(response));
  }

  void OnWriteDone(bool ok) override {
    Update([&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      writing_ = false;
      broken_ = broken_ || !ok;
    });
  }

  void OnDone(const grpc::Status& status) override {
    Steps unanswered;
    std::shared_ptr<Stream> self;
    {
      const kvstore::MutexLock lock(mu_);
      unanswered.swap(sent_);
      unanswered.merge(queued_);
      self = std::move(self_);
    }
    const std::string why = status.ok() ? "the stream ended" : status.error_message();
    for (const auto& [id, step] : unanswered) {
      step->Answer(engine::ShardUnavailable(endpoint_, why));
    }
  }

  bool usable() {
    const kvstore::MutexLock lock(mu_);
    return !broken_ && !draining_;
  }

 private:
  using Steps = std::map<uint64_t, std::shared_ptr<PendingStep>>;

  // Changes the state, then starts what it allows; see runtime::StepStream for why without the
  // lock.
  template <typename Change>
  void Update(Change change) ABSL_LOCKS_EXCLUDED(mu_) {
    bool write = false;
    {
      const kvstore::MutexLock lock(mu_);
      change();
      write = TakeNextLocked();
      ++starting_;
    }
    if (write) StartWrite(&request_);
    bool release = false;
    {
      const kvstore::MutexLock lock(mu_);
      --starting_;
      release = broken_ && starting_ == 0 && !released_;
      released_ = released_ || release;
    }
    if (release) RemoveHold();
  }

  // Whether request_ is to be written now.
  bool TakeNextLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    while (!writing_ && !broken_ && !queued_.empty()) {
      Steps::node_type next = queued_.extract(queued_.begin());
      PendingStep& step = *next.mapped();
      queued_bytes_ -= step.bytes();
      const absl::Time now = absl::Now();
      if (now >= step.deadline()) {
        step.Answer(Unsent());
        continue;
      }
      request_ = step.TakeRequest(now);
      sent_.insert(std::move(next));
      writing_ = true;
      return true;
    }
    return false;
  }

  // The first member is the last to go: after the context, which refers to the channel.
  const LiveStreams::Token token_;
  const std::string endpoint_;
  const QueueLimits limits_;
  grpc::ClientContext context_;
  v1::StoreStepResponse response_;
  // Belongs to the write in flight while writing_ says so.
  v1::StoreStepRequest request_;

  kvstore::Mutex mu_;
  std::shared_ptr<Stream> self_ ABSL_GUARDED_BY(mu_);
  // By request id: in the order in which they came.
  Steps queued_ ABSL_GUARDED_BY(mu_);
  uint64_t queued_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  // Those being written are among them.
  Steps sent_ ABSL_GUARDED_BY(mu_);
  int starting_ ABSL_GUARDED_BY(mu_) = 0;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool released_ ABSL_GUARDED_BY(mu_) = false;
};

StepChannel::StepChannel(StepStub& stub, std::string endpoint, QueueLimits limits)
    : stub_(stub),
      endpoint_(std::move(endpoint)),
      limits_(limits),
      live_(std::make_shared<LiveStreams>()) {}

StepChannel::~StepChannel() {
  Cancel();
  {
    const kvstore::MutexLock lock(mu_);
    stream_ = nullptr;
  }
  live_->AwaitNone();
}

void StepChannel::Cancel() {
  const kvstore::MutexLock lock(mu_);
  cancelled_ = true;
  for (const std::weak_ptr<Stream>& opened : opened_) {
    if (const std::shared_ptr<Stream> stream = opened.lock(); stream != nullptr) stream->Cancel();
  }
}

void StepChannel::ForgetBrokenLocked() {
  if (stream_ == nullptr || stream_->usable()) return;
  stream_ = nullptr;
  ++breaks_;
}

void StepChannel::OpenLocked() {
  ForgetBrokenLocked();
  if (stream_ != nullptr || cancelled_) return;
  stream_ = Stream::Open(stub_, endpoint_, limits_, live_);
  opened_.erase(std::remove_if(opened_.begin(), opened_.end(),
                               [](const auto& opened) { return opened.expired(); }),
                opened_.end());
  opened_.push_back(stream_);
}

uint64_t StepChannel::Open() {
  const kvstore::MutexLock lock(mu_);
  OpenLocked();
  return breaks_;
}

uint64_t StepChannel::breaks() {
  const kvstore::MutexLock lock(mu_);
  ForgetBrokenLocked();
  return breaks_;
}

std::shared_ptr<PendingStep> StepChannel::Start(v1::StoreStepRequest request, absl::Time deadline,
                                                absl::Time row_deadline, CallSlots::Slot slot) {
  const kvstore::MutexLock lock(mu_);
  request.set_request_id(next_id_++);
  auto step =
      std::make_shared<PendingStep>(std::move(request), deadline, row_deadline, std::move(slot));
  if (cancelled_) {
    step->Answer(engine::Draining());
    return step;
  }
  OpenLocked();
  if (const absl::Status sent = stream_->Send(step); !sent.ok()) step->Answer(sent);
  return step;
}

StepAnswer StepChannel::Wait(PendingStep& step) {
  if (!step.Await()) {
    bool unsent = false;
    const kvstore::MutexLock lock(mu_);
    for (const std::weak_ptr<Stream>& opened : opened_) {
      const std::shared_ptr<Stream> stream = opened.lock();
      unsent = unsent || (stream != nullptr && stream->Withdraw(step.id()));
    }
    // An answer that came meanwhile stands.
    step.Answer(unsent ? Unsent()
                       : absl::DeadlineExceededError(
                             "the store did not answer within the step's deadline"));
  }
  return step.TakeAnswer();
}

}  // namespace terrace::kv_store
