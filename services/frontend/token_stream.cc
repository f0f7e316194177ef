#include "services/frontend/token_stream.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"

namespace terrace::frontend {
namespace {

// A call that was lost with the service, or that met it while it was coming up.
bool MayPass(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

// A fork that failed because the service is away or has lost tokens of the parent.
bool WasLost(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsNotFound(status) || absl::IsOutOfRange(status);
}

// Times that a fork repairs its parent before it gives up.
constexpr int kForkRetries = 3;

}  // namespace

absl::StatusOr<TokenStream> TokenStream::Open(LlamaModel* model, TerraceBackend* backend,
                                              StreamOptions options) {
  TokenStream stream(model, backend, std::move(options));
  absl::StatusOr<SequenceState> sequence = backend->Open();
  if (!sequence.ok()) return sequence.status();
  stream.sequence_ = *std::move(sequence);
  return stream;
}

void TokenStream::Notice(absl::string_view line) const {
  if (options_.notice) options_.notice(line);
}

absl::Status TokenStream::Prefill(absl::Span<const uint32_t> tokens, absl::Span<float> logits,
                                  const std::function<void(int64_t)>& progress) {
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  dense_tokens_ = length();
  return Advance(logits, progress);
}

absl::Status TokenStream::Step(uint32_t token, absl::Span<float> logits) {
  tokens_.push_back(token);
  return Advance(logits, nullptr);
}

absl::Status TokenStream::Advance(absl::Span<float> logits,
                                  const std::function<void(int64_t)>& progress) {
  while (sequence_.length < length()) {
    if (options_.interrupted && options_.interrupted()) {
      return absl::CancelledError("interrupted");
    }
    absl::Status status = ComputeNext(logits);
    if (absl::IsUnavailable(status)) status = Recover(status);
    if (!status.ok()) return status;
    if (progress) progress(sequence_.length);
  }
  return absl::OkStatus();
}

absl::Status TokenStream::ComputeNext(absl::Span<float> logits) {
  const int64_t first = sequence_.length;
  const bool dense = first < dense_tokens_;
  const int64_t count = dense ? std::min(options_.chunk_tokens, dense_tokens_ - first) : 1;
  const bool last = first + count == length();
  backend_->Bind(sequence_, dense ? attention::Policy(attention::DensePolicy()) : policy_);
  // Whatever another stream or a failed try left behind is not of this token.
  backend_->TakeAccount();
  const auto tokens =
      absl::MakeConstSpan(tokens_).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
  absl::Status status =
      model_->Forward(tokens, first, *backend_, last ? logits : absl::Span<float>());
  if (!status.ok()) return status;
  sequence_.length += count;
  if (first >= accounted_tokens_) account_.Add(backend_->TakeAccount());
  accounted_tokens_ = std::max(accounted_tokens_, sequence_.length);
  return absl::OkStatus();
}

absl::Status TokenStream::Explain(const absl::Status& status) const {
  const std::string advice =
      options_.reconnect > absl::ZeroDuration()
          ? absl::StrCat("; it did not come back within ", absl::FormatDuration(options_.reconnect))
          : "; with --reconnect DURATION this program waits for the service and goes on";
  return absl::Status(status.code(), absl::StrCat(status.message(), ". Sequence ", sequence_.handle,
                                                  " had ", sequence_.length, " tokens", advice));
}

absl::Status TokenStream::Recover(const absl::Status& cause) {
  if (options_.reconnect <= absl::ZeroDuration()) {
    return absl::IsUnavailable(cause) ? Explain(cause) : cause;
  }
  Notice(absl::StrCat("the attention service was lost (", cause.message(), "); waiting up to ",
                      absl::FormatDuration(options_.reconnect), " for it"));
  const absl::Time give_up = absl::Now() + options_.reconnect;
  absl::Status status;
  do {
    if (options_.interrupted && options_.interrupted()) {
      return absl::CancelledError("interrupted");
    }
    status = TakeUp();
    if (status.ok()) {
      Notice(absl::StrCat("the attention service is back: sequence ", sequence_.handle, " has ",
                          sequence_.length, " of ", length(), " tokens, computing ",
                          length() - sequence_.length, " again"));
      return status;
    }
    if (!MayPass(status)) return status;
    absl::SleepFor(options_.retry_interval);
  } while (absl::Now() < give_up);
  return Explain(absl::UnavailableError(status.message()));
}

absl::Status TokenStream::TakeUp() {
  absl::StatusOr<SequenceState> sequence = backend_->Resume(sequence_.handle);
  if (absl::IsNotFound(sequence.status())) {
    // A store without a disk, or a crash before the first write reached it.
    Notice(
        absl::StrCat("the service has lost sequence ", sequence_.handle, "; beginning a new one"));
    sequence = backend_->Open();
  }
  if (!sequence.ok()) return sequence.status();
  // The last token is computed again in any case, for its logits. The cut also removes what a
  // step in progress left in some of the layers.
  int64_t kept = std::min(sequence->length, std::max<int64_t>(length() - 1, 0));
  // A product's bits depend on the number of tokens: dense chunks begin where they first began.
  if (kept < dense_tokens_) kept -= kept % options_.chunk_tokens;
  absl::Status status = backend_->Truncate(*sequence, kept);
  if (status.ok()) sequence_ = *std::move(sequence);
  return status;
}

absl::StatusOr<TokenStream> TokenStream::Fork(const attention::Policy& policy) {
  absl::StatusOr<SequenceState> fork = backend_->Fork(sequence_.handle, length());
  for (int tries = 0; tries < kForkRetries && WasLost(fork.status()); ++tries) {
    // The service is away, or came back with less than this stream has.
    absl::Status status = Recover(fork.status());
    std::vector<float> logits(static_cast<size_t>(model_->config().vocab_size));
    if (status.ok()) status = Advance(absl::MakeSpan(logits), nullptr);
    if (!status.ok()) return status;
    fork = backend_->Fork(sequence_.handle, length());
  }
  if (!fork.ok()) return fork.status();
  TokenStream stream(model_, backend_, options_);
  stream.sequence_ = *std::move(fork);
  stream.tokens_ = tokens_;
  stream.dense_tokens_ = dense_tokens_;
  stream.policy_ = policy;
  stream.accounted_tokens_ = length();
  return stream;
}

void TokenStream::Close(const absl::Status& outcome) {
  if (absl::IsUnavailable(outcome)) return;
  const absl::Status status = backend_->Close(sequence_.handle);
  // A service that came back without the sequence has nothing to delete.
  if (!status.ok() && !absl::IsNotFound(status))
    Notice(absl::StrCat("warning: ", status.message()));
}

ReadAccount TokenStream::TakeAccount() { return std::exchange(account_, ReadAccount()); }

}  // namespace terrace::frontend
