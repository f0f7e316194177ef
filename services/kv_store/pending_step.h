// A step on its way to a store and back.
#ifndef TERRACE_SERVICES_KV_STORE_PENDING_STEP_H_
#define TERRACE_SERVICES_KV_STORE_PENDING_STEP_H_

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kvstore/mutex.h"
#include "services/kv_store/call_slots.h"
#include "terrace/v1/kv_store.pb.h"

namespace terrace::kv_store {

struct StepAnswer {
  absl::StatusOr<v1::StoreStepResponse> response;
  // When it came, which may be long before somebody asks for it.
  absl::Time arrived;
};

// One thread sends it, one answers it, one awaits the answer.
class PendingStep {
 public:
  // InfiniteFuture means none. The slot is given back with the answer.
  PendingStep(v1::StoreStepRequest request, absl::Time deadline, absl::Time row_deadline,
              CallSlots::Slot slot)
      : id_(request.request_id()),
        bytes_(request.ByteSizeLong()),
        deadline_(deadline),
        row_deadline_(row_deadline),
        request_(std::move(request)),
        slot_(std::move(slot)) {}

  uint64_t id() const { return id_; }
  uint64_t bytes() const { return bytes_; }
  absl::Time deadline() const { return deadline_; }

  // The message, with the time that is left at `now`: for the step less what the answer takes to
  // come back, so that it is the store that says whether the rows stand. Once.
  v1::StoreStepRequest TakeRequest(absl::Time now) {
    if (deadline_ != absl::InfiniteFuture()) {
      const absl::Duration left = deadline_ - now;
      request_.set_step_deadline_us(Microseconds(left - std::min(left / 20, kAnswerTimeMax)));
    }
    if (row_deadline_ != absl::InfiniteFuture()) {
      request_.set_row_deadline_us(Microseconds(row_deadline_ - now));
    }
    return std::move(request_);
  }

  // The first answer stands.
  void Answer(absl::StatusOr<v1::StoreStepResponse> response) {
    const kvstore::MutexLock lock(mu_);
    if (answered_) return;
    answer_ = {.response = std::move(response), .arrived = absl::Now()};
    answered_ = true;
    // Only who waits for it says that a deadline has passed.
    const bool silent = absl::IsDeadlineExceeded(answer_.response.status());
    if (slot_ != nullptr && !silent) slot_->Answered();
    slot_ = nullptr;
    changed_.NotifyAll();
  }

  // Whether an answer came before the deadline.
  bool Await() {
    const kvstore::MutexLock lock(mu_);
    while (!answered_ && changed_.WaitUntil(mu_, deadline_)) {
    }
    return answered_;
  }

  // Requires: it is answered. Once.
  StepAnswer TakeAnswer() {
    const kvstore::MutexLock lock(mu_);
    return std::move(answer_);
  }

 private:
  // Of a deadline that is long enough, the share of the answer's way back and of waking up for it.
  static constexpr absl::Duration kAnswerTimeMax = absl::Milliseconds(5);

  // 0 would mean none.
  static uint64_t Microseconds(absl::Duration left) {
    return static_cast<uint64_t>(std::max<int64_t>(1, absl::ToInt64Microseconds(left)));
  }

  const uint64_t id_;
  const uint64_t bytes_;
  const absl::Time deadline_;
  const absl::Time row_deadline_;
  // Belongs to the stream that is to write it.
  v1::StoreStepRequest request_;

  kvstore::Mutex mu_;
  kvstore::CondVar changed_;
  bool answered_ ABSL_GUARDED_BY(mu_) = false;
  CallSlots::Slot slot_ ABSL_GUARDED_BY(mu_);
  StepAnswer answer_ ABSL_GUARDED_BY(mu_) = {absl::UnknownError("no answer yet"), {}};
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_PENDING_STEP_H_
