// A worker's stream of steps to one store: many in flight, matched by request id, opened again when
// it breaks.
#ifndef TERRACE_SERVICES_KV_STORE_STEP_CHANNEL_H_
#define TERRACE_SERVICES_KV_STORE_STEP_CHANNEL_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "kvstore/mutex.h"
#include "services/kv_store/call_slots.h"
#include "services/kv_store/pending_step.h"
#include "terrace/v1/kv_store.pb.h"

namespace terrace::kv_store {

class StepStub;

// Thread-safe.
class StepChannel {
 public:
  // What may wait to be written while the store reads slowly. One step always may.
  struct QueueLimits {
    size_t steps = 1024;
    uint64_t bytes = uint64_t{256} << 20;
  };

  // `stub` makes streams to the store at `endpoint`; it must outlive the channel. The destructor
  // ends the streams and waits until gRPC is done with them.
  StepChannel(StepStub& stub, std::string endpoint, QueueLimits limits);
  ~StepChannel();
  StepChannel(const StepChannel&) = delete;
  StepChannel& operator=(const StepChannel&) = delete;

  // Sends; request_id and the remaining times are set here, the latter just before it is written.
  // InfiniteFuture means no deadline. A step whose deadline has passed by then is not written.
  // `slot` is given back with the answer.
  std::shared_ptr<PendingStep> Start(v1::StoreStepRequest request, absl::Time deadline,
                                     absl::Time row_deadline, CallSlots::Slot slot = nullptr);
  // The answer. DeadlineExceeded: the step may have run if the message says that it was sent; it
  // is not sent later. Unavailable when the store is gone, ResourceExhausted when too much waits to
  // be written. Once for each step.
  StepAnswer Wait(PendingStep& step);

  // Ends the streams: steps in flight are answered with Unavailable, and so are new ones.
  void Cancel();

  // Opens a stream unless one is open: without one nothing can break. Returns breaks().
  uint64_t Open();
  // Changes when a stream has broken: the store at the endpoint may be another one since.
  uint64_t breaks();

 private:
  class Stream;
  class LiveStreams;

  void OpenLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ForgetBrokenLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  StepStub& stub_;
  const std::string endpoint_;
  const QueueLimits limits_;
  kvstore::Mutex mu_;
  // The one that takes new steps.
  std::shared_ptr<Stream> stream_ ABSL_GUARDED_BY(mu_);
  // All that may still be open.
  std::vector<std::weak_ptr<Stream>> opened_ ABSL_GUARDED_BY(mu_);
  const std::shared_ptr<LiveStreams> live_;
  uint64_t next_id_ ABSL_GUARDED_BY(mu_) = 1;
  uint64_t breaks_ ABSL_GUARDED_BY(mu_) = 0;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_STEP_CHANNEL_H_
