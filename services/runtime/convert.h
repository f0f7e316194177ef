// Protocol messages to and from what the engine speaks. Nothing below services/ sees a generated
// type; nothing above this file sees bytes.
#ifndef TERRACE_SERVICES_RUNTIME_CONVERT_H_
#define TERRACE_SERVICES_RUNTIME_CONVERT_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "attention/policy.h"
#include "google/protobuf/duration.pb.h"
#include "google/protobuf/timestamp.pb.h"
#include "services/engine/kv_engine.h"
#include "services/engine/report.h"
#include "services/engine/step.h"
#include "terrace/v1/admin.pb.h"
#include "terrace/v1/attention.pb.h"
#include "terrace/v1/tensor.pb.h"

namespace terrace::runtime {

// What VALUE_MEAN_UNSPECIFIED means. On a group-4 model the mean costs 8 % of bits per byte at an
// eighth of the dense bytes (services/DESIGN.md).
inline constexpr attention::ValueMean kDefaultValueMean = attention::ValueMean::kOff;

// `field` names the message in errors.
absl::StatusOr<attention::Dtype> FromProto(absl::string_view field, v1::Dtype dtype);
v1::Dtype ToProto(attention::Dtype dtype);

// The view's data and shape belong to the message. An unset message is absent.
absl::StatusOr<engine::TensorView> FromProto(absl::string_view field, const v1::Tensor& tensor);
void ToProto(const engine::TensorView& view, v1::Tensor* tensor);

// Unimplemented names a value that is not supported yet.
absl::StatusOr<engine::Geometry> FromProto(const v1::Geometry& geometry);
void ToProto(const engine::Geometry& geometry, v1::Geometry* proto);

absl::StatusOr<engine::SequenceSpec> FromProto(const v1::SequenceSpec& spec);
void ToProto(const engine::SequenceSpec& spec, v1::SequenceSpec* proto);

// Views into the message, which must outlive the query.
absl::StatusOr<engine::PrefixQuery> FromProto(const v1::SequencePrefix& prefix);
void ToProto(const engine::PrefixQuery& query, v1::SequencePrefix* proto);
void ToProto(const engine::PrefixFound& found, v1::LookupPrefixResponse* proto);
engine::PrefixFound FromProto(const v1::LookupPrefixResponse& proto);

void ToProto(const engine::SequenceInfo& info, v1::SequenceInfo* proto);
absl::StatusOr<engine::SequenceInfo> FromProto(const v1::SequenceInfo& proto);

absl::StatusOr<attention::Policy> FromProto(const v1::Policy& policy);
void ToProto(const attention::Policy& policy, v1::Policy* proto);

// Views into the message, which must outlive the request.
absl::StatusOr<engine::StepRequest> FromProto(const v1::StepItem& item);
void ToProto(const engine::StepRequest& request, v1::StepItem* item);

// Deadlines count from `arrival`. InvalidArgument for a mode that this version does not know.
absl::StatusOr<engine::StepOptions> OptionsOf(const v1::AttendRequest& request, absl::Time arrival);

v1::RemoteMode ToProto(engine::RemoteMode mode);
engine::RemoteMode FromProto(v1::RemoteMode mode);

void ToProto(const engine::StepAccount& account, v1::StepAccount* proto);
engine::StepAccount FromProto(const v1::StepAccount& proto);

void ToProto(const engine::Selection& selection, v1::Selection* proto);
engine::Selection FromProto(const v1::Selection& proto);

// Moves nothing but the output's bytes, which are copied once.
void ToProto(const engine::StepResult& result, v1::StepResult* proto);

void ToProto(const engine::ParkReport& report, v1::ParkResponse* proto);
absl::StatusOr<engine::ParkReport> FromProto(const v1::ParkResponse& proto);

void ToProto(const engine::TierReport& report, v1::TierInfo* proto);
engine::TierReport FromProto(const v1::TierInfo& proto);
void ToProto(const engine::SequenceSummary& summary, v1::SequenceSummary* proto);
engine::SequenceSummary FromProto(const v1::SequenceSummary& proto);
void ToProto(const engine::SequenceDescription& description, v1::DescribeSequenceResponse* proto);
absl::StatusOr<engine::SequenceDescription> FromProto(const v1::DescribeSequenceResponse& proto);

absl::Duration FromProto(const google::protobuf::Duration& duration);
void ToProto(absl::Duration duration, google::protobuf::Duration* proto);

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_CONVERT_H_
