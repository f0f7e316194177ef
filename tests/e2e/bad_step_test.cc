// A step that cannot be gets a clear status, alone, and leaves its sequence as it was.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <string>

#include "tests/e2e/intact_sequence.h"

namespace terrace::testing {
namespace {

using Code = absl::StatusCode;

constexpr uint64_t kLength = kIntactLength;

struct StepCase {
  const char* name;
  std::function<void(v1::AttendRequest&, v1::StepItem&)> spoil;
  Code code;
  Words words;
  const char* reason;
};

const StepCase kStepCases[] = {
    {"WrongShape",
     [](auto&, auto& item) { item.mutable_q()->set_shape(2, 16); },
     Code::kInvalidArgument,
     {"q.shape", "got [1, 8, 16]", "expected [1, 8, 32]"},
     ""},
    {"FlatShape",
     [](auto&, auto& item) { item.mutable_k()->mutable_shape()->Truncate(2); },
     Code::kInvalidArgument,
     {"k.shape", "got [1, 2]", "expected [1, 2, 32]"},
     ""},
    {"NoQueries",
     [](auto&, auto& item) { item.mutable_q()->set_shape(0, 0); },
     Code::kInvalidArgument,
     {"q.shape", "got [0, 8, 32]", "at least 1"},
     ""},
    {"HugeShape",
     [](auto&, auto& item) { item.mutable_q()->set_shape(0, UINT32_MAX); },
     Code::kInvalidArgument,
     {"q.shape", "4294967295", "expected"},
     ""},
    {"ShortData",
     [](auto&, auto& item) { item.mutable_v()->mutable_data()->resize(7); },
     Code::kInvalidArgument,
     {"v.data", "got 7 bytes", "expected 128"},
     ""},
    {"WrongHeadCount",
     [](auto&, auto& item) { item.mutable_k()->set_shape(1, 4); },
     Code::kInvalidArgument,
     {"k.shape", "got [1, 4, 32]", "expected [1, 2, 32]"},
     ""},
    {"DtypeUnspecified",
     [](auto&, auto& item) { item.mutable_q()->set_dtype(v1::DTYPE_UNSPECIFIED); },
     Code::kInvalidArgument,
     {"q.dtype", "got 0", "expected DTYPE_FLOAT32"},
     ""},
    {"DtypeUnknown",
     [](auto&, auto& item) { item.mutable_v()->set_dtype(static_cast<v1::Dtype>(77)); },
     Code::kInvalidArgument,
     {"v.dtype", "got 77"},
     ""},
    {"NaN",
     [](auto&, auto& item) { SetElement(*item.mutable_k(), 0x7fc0); },
     Code::kInvalidArgument,
     {"k", "NaN", "expected finite"},
     ""},
    {"Infinity",
     [](auto&, auto& item) { SetElement(*item.mutable_q(), 0xff80); },
     Code::kInvalidArgument,
     {"q", "infinity", "expected finite"},
     ""},
    {"BeyondTheIndex",
     [](auto&, auto& item) { SetElement(*item.mutable_k(), 0x7f00); },
     Code::kInvalidArgument,
     {"k", "got", "expected at most", "int8 index"},
     ""},
    {"LayerOutOfRange",
     [](auto& request, auto&) { request.set_layer(2); },
     Code::kInvalidArgument,
     {"layer", "got 2", "expected 0 to 1"},
     ""},
    {"LayerFarOutOfRange",
     [](auto& request, auto&) { request.set_layer(UINT32_MAX); },
     Code::kInvalidArgument,
     {"layer", "expected 0 to 1"},
     ""},
    {"PositionGap",
     [](auto&, auto& item) { item.set_position(kLength + 1); },
     Code::kFailedPrecondition,
     {"position 101", "expected position 100"},
     "POSITION_GAP"},
    {"PositionFarAway",
     [](auto&, auto& item) { item.set_position(UINT64_MAX); },
     Code::kInvalidArgument,
     {"position"},
     ""},
    {"OtherBytesInTheTail",
     [](auto&, auto& item) { item.set_position(kLength - 1); },
     Code::kAlreadyExists,
     {"position 99", "other bytes"},
     "POSITION_CONFLICT"},
    {"OtherBytesInASealedBlock",
     [](auto&, auto& item) { item.set_position(5); },
     Code::kAlreadyExists,
     {"position 5", "other bytes"},
     "POSITION_CONFLICT"},
    {"KWithoutV",
     [](auto&, auto& item) { item.clear_v(); },
     Code::kInvalidArgument,
     {"v.shape", "got []", "expected [1, 2, 32]"},
     ""},
    {"VWithoutK",
     [](auto&, auto& item) { item.clear_k(); },
     Code::kInvalidArgument,
     {"k.shape", "got []", "expected [1, 2, 32]"},
     ""},
    {"NoQ",
     [](auto&, auto& item) { item.clear_q(); },
     Code::kInvalidArgument,
     {"q.shape", "got []"},
     ""},
    {"OtherNumberOfTokenIds",
     [](auto&, auto& item) {
       item.add_token_ids(1);
       item.add_token_ids(2);
     },
     Code::kInvalidArgument,
     {"token_ids", "got 2", "expected 1"},
     ""},
    {"RZero",
     [](auto&, auto& item) { item.mutable_policy()->mutable_sparq()->set_r(0); },
     Code::kInvalidArgument,
     {"sparq r", "got 0", "[1, 32]"},
     ""},
    {"RBeyondTheHead",
     [](auto&, auto& item) { item.mutable_policy()->mutable_sparq()->set_r(33); },
     Code::kInvalidArgument,
     {"sparq r", "got 33", "[1, 32]"},
     ""},
    {"KZero",
     [](auto&, auto& item) { item.mutable_policy()->mutable_sparq()->set_k(0); },
     Code::kInvalidArgument,
     {"sparq k", "got 0", "at least 1"},
     ""},
    {"GroupScoreUnknown",
     [](auto&, auto& item) {
       item.mutable_policy()->mutable_sparq()->set_group_score(static_cast<v1::GroupScore>(9));
     },
     Code::kInvalidArgument,
     {"group_score", "got 9", "expected 0 to 3"},
     ""},
    {"ValueMeanUnknown",
     [](auto&, auto& item) {
       item.mutable_policy()->mutable_sparq()->set_value_mean(static_cast<v1::ValueMean>(9));
     },
     Code::kInvalidArgument,
     {"value_mean", "got 9", "expected 0 to 3"},
     ""},
    {"FingerprintMismatch",
     [](auto&, auto& item) { item.set_model_fingerprint("another"); },
     Code::kFailedPrecondition,
     {"another", "e2e-model"},
     "FINGERPRINT_MISMATCH"},
    {"StaleEpoch",
     [](auto&, auto& item) { item.set_writer_epoch(item.writer_epoch() + 1); },
     Code::kFailedPrecondition,
     {"epoch", "expected"},
     "EPOCH_STALE"},
    {"NoEpoch",
     [](auto&, auto& item) { item.clear_writer_epoch(); },
     Code::kFailedPrecondition,
     {"epoch 0", "expected"},
     "EPOCH_STALE"},
    {"UnknownHandle",
     [](auto&, auto& item) { item.set_handle("s0000-0123456789abcdef0123456789abcdef"); },
     Code::kNotFound,
     {"s0000-0123456789abcdef0123456789abcdef"},
     ""},
    {"NoHandle",
     [](auto&, auto& item) { item.set_handle("../../etc/passwd"); },
     Code::kNotFound,
     {"../../etc/passwd"},
     ""},
    {"ReadBeyondTheLength",
     [](auto&, auto& item) {
       item.clear_k();
       item.clear_v();
     },
     Code::kOutOfRange,
     {"position", "got 100", "100 rows"},
     ""},
    {"ExpiredDeadline",
     [](auto& request, auto&) { request.mutable_step_deadline()->set_seconds(-1); },
     Code::kDeadlineExceeded,
     {"deadline"},
     ""},
};

class BadStepTest : public IntactSequenceTest, public ::testing::WithParamInterface<StepCase> {};

TEST_P(BadStepTest, GetsAClearStatusInBothModes) {
  for (const v1::RemoteMode mode : {v1::REMOTE_MODE_ROWS, v1::REMOTE_MODE_PARTIAL}) {
    SCOPED_TRACE(v1::RemoteMode_Name(mode));
    v1::AttendRequest request = GoodStep();
    request.set_mode(mode);
    GetParam().spoil(request, *request.mutable_items(0));
    const StepReply step = client_.Step(request);
    EXPECT_THAT(step.reply, Refused(GetParam().code, GetParam().words));
    EXPECT_EQ(step.reply.reason, GetParam().reason);
    EXPECT_FALSE(step.result.appended());
    EXPECT_FALSE(step.result.has_output());
    ExpectIntact();
  }
}

// Others of its batch do not suffer (I9).
TEST_P(BadStepTest, FailsAlone) {
  v1::AttendRequest request = GoodStep();
  GetParam().spoil(request, *request.mutable_items(0));
  // What is wrong with the whole step is wrong with every item.
  const bool alone = request.layer() == 0 && !request.has_step_deadline();
  *request.add_items() = client_.StepRequest(sequence_, rows_, 0, 42, Dense()).items(0);
  v1::AttendResponse response;
  ASSERT_REPLY_OK(client_.Attend(request, &response));
  ASSERT_EQ(response.results_size(), 2);
  EXPECT_EQ(ReplyOf(response.results(0).status()).code, GetParam().code);
  const Reply other = ReplyOf(response.results(1).status());
  EXPECT_EQ(other.code, alone ? Code::kOk : GetParam().code) << other;
  if (!alone) return;
  EXPECT_EQ(response.results(1).output().data(),
            client_.Look(sequence_, rows_, 0, 42, Dense()).output());
}

INSTANTIATE_TEST_SUITE_P(Cases, BadStepTest, ::testing::ValuesIn(kStepCases),
                         [](const auto& step_case) { return std::string(step_case.param.name); });

}  // namespace
}  // namespace terrace::testing
