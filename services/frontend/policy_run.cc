#include "services/frontend/policy_run.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/time/clock.h"

namespace terrace::frontend {

void PhaseResult::Add(const PhaseResult& other) {
  steps += other.steps;
  wall += other.wall;
  account.Add(other.account);
  dense_bytes += other.dense_bytes;
}

double PhaseResult::steps_per_second() const {
  return steps == 0 ? 0.0 : static_cast<double>(steps) / absl::ToDoubleSeconds(wall);
}

double PhaseResult::ratio_to_dense() const {
  if (dense_bytes == 0) return 1.0;
  return static_cast<double>(account.logical_bytes()) / static_cast<double>(dense_bytes);
}

double TokenBits(absl::Span<const float> logits, uint32_t token) {
  const float max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - max);
  return (max + std::log(sum) - logits[token]) / std::log(2.0);
}

uint32_t GreedyToken(absl::Span<const float> logits) {
  return static_cast<uint32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

absl::Status PolicyRun::TimedStep(TokenStream& stream, uint32_t token, absl::Span<float> next,
                                  PhaseResult& phase) const {
  const absl::Time start = absl::Now();
  absl::Status status = stream.Step(token, next);
  if (!status.ok()) return status;
  phase.wall += absl::Now() - start;
  ++phase.steps;
  phase.account.Add(stream.TakeAccount());
  phase.dense_bytes += token_bytes * static_cast<uint64_t>(stream.length());
  return status;
}

absl::Status PolicyRun::Score(const attention::Policy& policy, PolicyResult& result) const {
  absl::StatusOr<TokenStream> stream = base->Fork(policy);
  if (!stream.ok()) return stream.status();
  // The first token is predicted by the prefill, the same for every policy.
  std::vector<float> next(logits.begin(), logits.end());
  const int64_t total = static_cast<int64_t>(score_tokens.size());
  double bits = 0;
  absl::Status status;
  for (int64_t i = 0; i < total && status.ok(); ++i) {
    const uint32_t token = score_tokens[static_cast<size_t>(i)];
    bits += TokenBits(next, token);
    status = TimedStep(*stream, token, absl::MakeSpan(next), result.score);
    if (on_score) on_score(i + 1, total);
  }
  if (status.ok()) result.bits_per_byte = bits / static_cast<double>(total);
  stream->Close(status);
  return status;
}

absl::Status PolicyRun::Generate(const attention::Policy& policy, PolicyResult& result) const {
  absl::StatusOr<TokenStream> stream = base->Fork(policy);
  if (!stream.ok()) return stream.status();
  std::vector<float> next(logits.begin(), logits.end());
  absl::Status status;
  for (int64_t i = 0; i < generate_tokens && status.ok(); ++i) {
    const uint32_t token = GreedyToken(next);
    if (tokenizer->EndsText(token)) {
      result.ended_text = true;
      break;
    }
    const std::string bytes = tokenizer->Decode(token);
    result.text += bytes;
    if (on_text) on_text(bytes);
    status = TimedStep(*stream, token, absl::MakeSpan(next), result.generate);
  }
  if (status.ok() && keep_sequence) {
    result.handle = stream->handle();
    return status;
  }
  stream->Close(status);
  return status;
}

absl::Status PolicyRun::Try(const attention::Policy& policy, PolicyResult& result) const {
  result.policy = attention::PolicyName(policy);
  if (!score_tokens.empty()) {
    if (absl::Status status = Score(policy, result); !status.ok()) return status;
  }
  if (generate_tokens == 0) return absl::OkStatus();
  return Generate(policy, result);
}

}  // namespace terrace::frontend
