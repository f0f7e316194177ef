// Attention by the Terrace service, over gRPC.
#ifndef TERRACE_SERVICES_FRONTEND_TERRACE_BACKEND_H_
#define TERRACE_SERVICES_FRONTEND_TERRACE_BACKEND_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "attention/policy.h"
#include "services/frontend/attention_backend.h"
#include "services/frontend/read_account.h"
#include "services/frontend/sequence_spec.h"

namespace terrace::frontend {

struct TerraceOptions {
  // "host:port" or "unix:path". Plain text.
  std::string address;
  // Empty for the service's default tenant.
  std::string tenant;
  RemoteMode mode = RemoteMode::kAuto;
  // Time for one step of one layer; infinite leaves it to the service.
  absl::Duration step_deadline = absl::InfiniteDuration();
  // Time for a call that opens, forks, cuts or closes a sequence.
  absl::Duration call_deadline = absl::Seconds(20);
  // The service stops a step at its deadline; its answer may take this much longer to arrive.
  absl::Duration answer_grace = absl::Seconds(2);
  // A step that the service has no room for is sent again when the service says, until it has taken
  // this long or its deadline. Calls are, within call_deadline.
  absl::Duration room_wait = absl::Seconds(20);
  // Whether to give up on that. Null for never.
  std::function<bool()> interrupted;
};

struct ServiceLimits {
  int64_t message_bytes_max = 0;
  int64_t step_tokens_max = 0;
  int64_t sequence_tokens_max = 0;
  std::string version;
};

// TerraceBackend is a connection to an attention service and, once a sequence is bound, the
// attention of a model over it. Not thread-safe.
//
// Errors of all calls name the call and the address and carry the service's message. Unavailable:
// no service answers, or it went away; a later call connects again. ResourceExhausted
// comes from the service
// after as many tries as TerraceOptions allow.
class TerraceBackend : public AttentionBackend {
 public:
  // Connects and asks for the limits. InvalidArgument for an address that is none.
  static absl::StatusOr<std::unique_ptr<TerraceBackend>> Connect(TerraceOptions options,
                                                                 SequenceSpec spec);
  ~TerraceBackend() override;

  const SequenceSpec& spec() const;
  const ServiceLimits& limits() const;
  const std::string& address() const;

  // Tokens of the largest step that keeps every limit and is at most `wanted`.
  // ResourceExhausted if not even one token fits.
  absl::StatusOr<int64_t> StepTokens(int64_t wanted) const;

  // A new, empty sequence.
  absl::StatusOr<SequenceState> Open();
  // A sequence that shares the first `position` tokens of `handle`. OutOfRange beyond its length.
  absl::StatusOr<SequenceState> Fork(const std::string& handle, int64_t position);
  // The writer's right on an existing sequence, and the length that the service still has.
  absl::StatusOr<SequenceState> Resume(const std::string& handle);
  // Cuts `sequence` back and updates its length.
  absl::Status Truncate(SequenceState& sequence, int64_t length);
  absl::Status Close(const std::string& handle);

  // Makes Attend work on `sequence` under `policy` from now on.
  void Bind(const SequenceState& sequence, const attention::Policy& policy);

  // One step of one layer over the stream, which opens by itself. Besides the errors above those
  // of a step; DeadlineExceeded when the service does not answer within the step deadline.
  // Requires: Bind was called.
  absl::Status Attend(int layer, int64_t position, absl::Span<const uint32_t> token_ids,
                      absl::Span<const float> q, absl::Span<const float> k,
                      absl::Span<const float> v, absl::Span<float> out) override;

  // The account of all answers since the last call.
  ReadAccount TakeAccount();

 private:
  struct Connection;

  explicit TerraceBackend(std::unique_ptr<Connection> connection);

  std::unique_ptr<Connection> connection_;
};

}  // namespace terrace::frontend

#endif  // TERRACE_SERVICES_FRONTEND_TERRACE_BACKEND_H_
