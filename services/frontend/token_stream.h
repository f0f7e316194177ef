// A growing text whose KV cache lives in the attention service.
#ifndef TERRACE_SERVICES_FRONTEND_TOKEN_STREAM_H_
#define TERRACE_SERVICES_FRONTEND_TOKEN_STREAM_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "attention/policy.h"
#include "services/frontend/llama_model.h"
#include "services/frontend/read_account.h"
#include "services/frontend/sequence_spec.h"
#include "services/frontend/terrace_backend.h"

namespace terrace::frontend {

struct StreamOptions {
  // Tokens of one dense step; at least 1 and within the service's limits.
  int64_t chunk_tokens = 256;
  // How long to wait for a service that went away. 0: the error comes back at once.
  absl::Duration reconnect = absl::ZeroDuration();
  // Pause between two tries to reach it.
  absl::Duration retry_interval = absl::Milliseconds(200);
  // Gets one line for a person on each loss and return of the service. May be empty.
  std::function<void(absl::string_view)> notice;
  // Asked between steps and while waiting; true ends the run with Cancelled. May be empty.
  std::function<bool()> interrupted;
};

// TokenStream appends tokens to one sequence and knows all of them, with the policy under which
// each was computed: what the service loses it can compute again, in the same chunks and steps and
// so to the same bits, because the model and the service are deterministic. Model and backend must
// outlive it. Move-only; streams of one backend must not be used from two threads.
class TokenStream {
 public:
  // An empty stream on a new sequence.
  static absl::StatusOr<TokenStream> Open(LlamaModel* model, TerraceBackend* backend,
                                          StreamOptions options);
  TokenStream(TokenStream&&) = default;
  TokenStream& operator=(TokenStream&&) = default;
  TokenStream(const TokenStream&) = delete;
  TokenStream& operator=(const TokenStream&) = delete;

  const std::string& handle() const { return sequence_.handle; }
  int64_t length() const { return static_cast<int64_t>(tokens_.size()); }

  // Appends the first tokens in dense chunks. logits: [vocab_size], of the last token. `progress`
  // gets the number of tokens done after each chunk. Requires: the stream is empty and tokens is
  // not.
  absl::Status Prefill(absl::Span<const uint32_t> tokens, absl::Span<float> logits,
                       const std::function<void(int64_t)>& progress);

  // Appends one token under the stream's policy. logits: [vocab_size].
  absl::Status Step(uint32_t token, absl::Span<float> logits);

  // A stream that shares all tokens so far, and computes later ones under `policy`.
  absl::StatusOr<TokenStream> Fork(const attention::Policy& policy);

  // Deletes the sequence, unless `outcome` says that the service is away; that it cannot be
  // deleted is worth a notice, no error. The stream is of no more use.
  void Close(const absl::Status& outcome);

  // The account of all tokens since the last call; of a token that was computed again after a
  // loss, the first time counts.
  ReadAccount TakeAccount();

 private:
  TokenStream(LlamaModel* model, TerraceBackend* backend, StreamOptions options)
      : model_(model), backend_(backend), options_(std::move(options)) {}

  // Computes all tokens that the service does not hold. logits of the last one.
  absl::Status Advance(absl::Span<float> logits, const std::function<void(int64_t)>& progress);
  // One chunk or one step from the stored length on.
  absl::Status ComputeNext(absl::Span<float> logits);
  // After Unavailable: waits for the service and takes up the sequence again.
  absl::Status Recover(const absl::Status& cause);
  // One try of that.
  absl::Status TakeUp();
  absl::Status Explain(const absl::Status& status) const;
  void Notice(absl::string_view line) const;

  LlamaModel* model_;
  TerraceBackend* backend_;
  StreamOptions options_;
  // sequence_.length tokens of tokens_ are stored.
  SequenceState sequence_;
  std::vector<uint32_t> tokens_;
  // Tokens below this index are computed densely, the others under policy_.
  int64_t dense_tokens_ = 0;
  attention::Policy policy_ = attention::DensePolicy();
  // Tokens below this index are in the account.
  int64_t accounted_tokens_ = 0;
  ReadAccount account_;
};

}  // namespace terrace::frontend

#endif  // TERRACE_SERVICES_FRONTEND_TOKEN_STREAM_H_
