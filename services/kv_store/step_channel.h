// A worker's stream of steps to one store: many in flight, matched by request id, opened again when
// it breaks.
#ifndef TERRACE_SERVICES_KV_STORE_STEP_CHANNEL_H_
#define TERRACE_SERVICES_KV_STORE_STEP_CHANNEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "terrace/v1/kv_store.pb.h"

namespace terrace::kv_store {

class StepStub;

// Thread-safe.
class StepChannel {
 public:
  // A step that was sent.
  class Pending;

  // `stub` makes streams to the store at `endpoint`; it must outlive the channel. The destructor
  // ends the streams and waits until gRPC is done with them.
  StepChannel(StepStub& stub, std::string endpoint);
  ~StepChannel();
  StepChannel(const StepChannel&) = delete;
  StepChannel& operator=(const StepChannel&) = delete;

  // Sends; request_id is set here.
  std::shared_ptr<Pending> Start(v1::StoreStepRequest request);
  // The answer. DeadlineExceeded: the step may have run. Unavailable when the store is gone.
  absl::StatusOr<v1::StoreStepResponse> Wait(Pending& pending, absl::Time deadline);

 private:
  class Stream;
  class LiveStreams;

  StepStub& stub_;
  const std::string endpoint_;
  absl::Mutex mu_;
  // The one that takes new steps.
  std::shared_ptr<Stream> stream_ ABSL_GUARDED_BY(mu_);
  // All that may still be open.
  std::vector<std::weak_ptr<Stream>> opened_ ABSL_GUARDED_BY(mu_);
  const std::shared_ptr<LiveStreams> live_;
  uint64_t next_id_ ABSL_GUARDED_BY(mu_) = 1;
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_STEP_CHANNEL_H_
