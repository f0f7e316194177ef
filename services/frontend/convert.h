// Between the frontend's types and the generated ones of proto/terrace/v1. Include in .cc files
// only: generated types stop here.
#ifndef TERRACE_SERVICES_FRONTEND_CONVERT_H_
#define TERRACE_SERVICES_FRONTEND_CONVERT_H_

#include <initializer_list>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "attention/policy.h"
#include "services/frontend/read_account.h"
#include "services/frontend/sequence_spec.h"
#include "terrace/v1/attention.pb.h"

namespace terrace::frontend {

v1::SequenceSpec ToProto(const SequenceSpec& spec);
v1::Policy ToProto(const attention::Policy& policy);
v1::RemoteMode ToProto(RemoteMode mode);

// Writes an fp32 tensor. Requires: the product of `shape` is values.size().
void SetTensor(absl::Span<const float> values, std::initializer_list<int64_t> shape,
               v1::Tensor& tensor);

// Copies an fp32 tensor out. Internal if dtype, shape or size is not as expected: only a broken
// service answers so.
absl::Status GetTensor(const v1::Tensor& tensor, std::initializer_list<int64_t> shape,
                       absl::Span<float> values);

// Code and message; a code that is unknown becomes kUnknown.
absl::Status FromProto(const google::rpc::Status& status);
// Whether a step failed because its position lies beyond what the service holds.
bool LostTokens(const google::rpc::Status& status);
// After how long the service asks to be asked again, for a call that it had no room for.
std::optional<absl::Duration> RetryDelay(const google::rpc::Status& status);
SequenceState FromProto(const v1::SequenceInfo& info);

// The account of one answer.
ReadAccount FromProto(const v1::StepAccount& account);

}  // namespace terrace::frontend

#endif  // TERRACE_SERVICES_FRONTEND_CONVERT_H_
