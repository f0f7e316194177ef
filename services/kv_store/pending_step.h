// A step on its way to a store and back.
#ifndef TERRACE_SERVICES_KV_STORE_PENDING_STEP_H_
#define TERRACE_SERVICES_KV_STORE_PENDING_STEP_H_

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
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
  // InfiniteFuture means none.
  PendingStep(v1::StoreStepRequest request, absl::Time deadline, absl::Time row_deadline)
      : id_(request.request_id()),
        bytes_(request.ByteSizeLong()),
        deadline_(deadline),
        row_deadline_(row_deadline),
        request_(std::move(request)) {}

  uint64_t id() const { return id_; }
  uint64_t bytes() const { return bytes_; }
  absl::Time deadline() const { return deadline_; }

  // The message, with the time that is left at `now`. Once.
  v1::StoreStepRequest TakeRequest(absl::Time now) {
    const auto left = [now](absl::Time time) {
      return static_cast<uint64_t>(std::max<int64_t>(1, absl::ToInt64Microseconds(time - now)));
    };
    // 0 would mean none.
    if (deadline_ != absl::InfiniteFuture()) request_.set_step_deadline_us(left(deadline_));
    if (row_deadline_ != absl::InfiniteFuture()) {
      request_.set_row_deadline_us(left(row_deadline_));
    }
    return std::move(request_);
  }

  // The first answer stands.
  void Answer(absl::StatusOr<v1::StoreStepResponse> response) {
    const absl::MutexLock lock(&mu_);
    if (answered_) return;
    answer_ = {.response = std::move(response), .arrived = absl::Now()};
    answered_ = true;
  }

  // Whether an answer came before the deadline.
  bool Await() {
    const absl::MutexLock lock(&mu_);
    return mu_.AwaitWithDeadline(absl::Condition(&answered_), deadline_);
  }

  // Requires: it is answered. Once.
  StepAnswer TakeAnswer() {
    const absl::MutexLock lock(&mu_);
    return std::move(answer_);
  }

 private:
  const uint64_t id_;
  const uint64_t bytes_;
  const absl::Time deadline_;
  const absl::Time row_deadline_;
  // Belongs to the stream that is to write it.
  v1::StoreStepRequest request_;

  absl::Mutex mu_;
  bool answered_ ABSL_GUARDED_BY(mu_) = false;
  StepAnswer answer_ ABSL_GUARDED_BY(mu_) = {absl::UnknownError("no answer yet"), {}};
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_PENDING_STEP_H_
