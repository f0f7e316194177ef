// Messages at and beyond the limit, either way and on every hop: the call that is too large gets a
// status, and nobody else notices.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "tests/e2e/cluster.h"

namespace terrace::testing {
namespace {

constexpr uint64_t kLimit = 256 << 10;
constexpr uint64_t kLength = 1200;
const Shape kShape = {.layers = 1, .query_heads = 8, .kv_heads = 2, .head_dim = 32};

Reply AppendOnce(Client& client, const v1::AppendKvRequest& message) {
  bool sent = false;
  return client.AppendStream([&](v1::AppendKvRequest& request) {
    request = message;
    return !std::exchange(sent, true);
  });
}

class MessageLimitTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(cluster_.serving());
    sequence_ = client_.Open(kShape);
    ASSERT_REPLY_OK(client_.Append(sequence_, rows_, 0, kLength));
    reference_ = client_.Look(sequence_, rows_, 0, kLength - 1, Sparq(8, 20)).output();
  }

  // Queries [0, n) of what is there.
  v1::AttendRequest Queries(uint32_t n, const v1::Policy& policy) const {
    v1::AttendRequest request = client_.StepRequest(sequence_, rows_, 0, 0, policy, n);
    request.mutable_items(0)->clear_k();
    request.mutable_items(0)->clear_v();
    return request;
  }

  void ExpectIntact() {
    const StepReply step = client_.Look(sequence_, rows_, 0, kLength - 1, Sparq(8, 20));
    ASSERT_REPLY_OK(step.reply);
    EXPECT_EQ(step.output(), reference_);
  }

  Cluster cluster_{{"--max-message-bytes", "256KiB"}, {"--max-message-bytes", "256KiB"}};
  const Rows rows_{kShape, TestSeed()};
  Client client_ = cluster_.NewClient();
  v1::SequenceInfo sequence_;
  std::string reference_;
};

TEST_F(MessageLimitTest, ARequestBeyondItIsRefusedWithBothSizes) {
  EXPECT_EQ(client_.Limits().max_message_bytes(), kLimit);
  v1::AttendRequest request = Queries(600, Dense());
  ASSERT_GT(request.ByteSizeLong(), kLimit);
  v1::AttendResponse response;
  const std::string limit = std::to_string(kLimit);
  EXPECT_THAT(client_.AttendOnce(request, &response, kPatience),
              Refused(absl::StatusCode::kResourceExhausted, Words{"larger than max", limit}));
  EXPECT_THAT(client_.Attend(request, &response),
              Refused(absl::StatusCode::kResourceExhausted, Words{"larger than max", limit}));
  ExpectIntact();
}

TEST_F(MessageLimitTest, AnAppendBeyondItIsRefusedWithBothSizesAndTheNextIsTaken) {
  v1::AppendKvRequest message;
  message.set_handle(sequence_.handle());
  message.set_writer_epoch(sequence_.writer_epoch());
  v1::LayerChunk& chunk = *message.add_chunks();
  chunk.set_position(kLength);
  *chunk.mutable_k() = rows_.K(0, kLength, 2000);
  *chunk.mutable_v() = rows_.V(0, kLength, 2000);
  ASSERT_GT(message.ByteSizeLong(), kLimit);
  EXPECT_THAT(AppendOnce(client_, message),
              Refused(absl::StatusCode::kResourceExhausted,
                      Words{"larger than max", std::to_string(kLimit)}));
  v1::SequenceInfo info;
  ASSERT_REPLY_OK(client_.Get(sequence_.handle(), &info));
  EXPECT_EQ(info.length(), kLength);
  EXPECT_REPLY_OK(client_.Append(sequence_, rows_, kLength, kLength + 10));
  ExpectIntact();
}

// The store takes less than the worker, which is to say so.
TEST(StoreLimitTest, AnAppendThatFitsTheWorkerAndNotTheStoreIsRefusedWithBothSizes) {
  Cluster cluster({"--max-message-bytes", "64KiB"}, {"--max-message-bytes", "8MiB"});
  Client client = cluster.NewClient();
  const Rows rows(kShape, TestSeed());
  const v1::SequenceInfo sequence = client.Open(kShape);
  v1::AppendKvRequest message;
  message.set_handle(sequence.handle());
  message.set_writer_epoch(sequence.writer_epoch());
  v1::LayerChunk& chunk = *message.add_chunks();
  constexpr uint32_t kTokens = 12'000;
  *chunk.mutable_k() = rows.K(0, 0, kTokens);
  *chunk.mutable_v() = rows.V(0, 0, kTokens);
  ASSERT_GT(message.ByteSizeLong(), uint64_t{1} << 20);
  const Reply reply = AppendOnce(client, message);
  EXPECT_THAT(reply, Refused(absl::StatusCode::kInvalidArgument,
                             Words{"append: got a message of", "expected at most 65536"}));
  EXPECT_EQ(reply.reason, "LIMIT_EXCEEDED");
  EXPECT_FALSE(reply.retry_delay.has_value());
  EXPECT_REPLY_OK(client.Append(sequence, rows, 0, 10));
}

// A bf16 request is smaller than its fp32 answer.
TEST_F(MessageLimitTest, AnAnswerBeyondItIsRefusedAlone) {
  v1::AttendRequest request = Queries(300, Dense());
  ASSERT_LT(request.ByteSizeLong(), kLimit);
  Client other = cluster_.NewClient();
  ASSERT_TRUE(other.Look(sequence_, rows_, 0, 0, Dense()).ok());
  const StepReply step = client_.Step(request);
  EXPECT_THAT(step.reply, Refused(absl::StatusCode::kInvalidArgument, Words{"answer", "262144"}));
  EXPECT_TRUE(other.Look(sequence_, rows_, 0, 0, Dense()).ok());
  ExpectIntact();
}

// The message from worker to store is a little larger than the one that the worker got.
TEST_F(MessageLimitTest, ARequestJustBelowItReachesTheStore) {
  v1::AttendRequest request = client_.StepRequest(sequence_, rows_, 0, 0, Dense(), 1);
  v1::Tensor& q = *request.mutable_items(0)->mutable_q();
  for (uint64_t gap = 0; gap <= 64; gap += 4) {
    // The fewer the free bytes, the larger the tensor, which is wrong for the store to find.
    q.mutable_data()->resize(q.data().size() + kLimit - gap - request.ByteSizeLong());
    request.set_request_id(1);
    while (request.ByteSizeLong() > kLimit - gap) q.mutable_data()->pop_back();
    v1::AttendResponse response;
    const Reply reply = client_.AttendOnce(request, &response, kPatience);
    ASSERT_REPLY_OK(reply);
    const Reply item = ReplyOf(response.results(0).status());
    EXPECT_THAT(item, Refused(absl::StatusCode::kInvalidArgument, Words{"q.data", "got"}))
        << gap << " bytes below the limit";
  }
  ExpectIntact();
}

// The rows that a step selects may be more than fit one message.
TEST_F(MessageLimitTest, RowsBeyondItArePartlyComputedAtTheStore) {
  const std::string expected =
      client_.Look(sequence_, rows_, 0, kLength - 1, Sparq(8, kLength)).output();
  ASSERT_GT(kLength * kShape.kv_heads * kShape.row_bytes(), kLimit);
  for (const bool append : {false, true}) {
    SCOPED_TRACE(append ? "with k and v" : "with q only");
    v1::AttendRequest request =
        client_.StepRequest(sequence_, rows_, 0, kLength - 1, Sparq(8, kLength));
    request.set_mode(v1::REMOTE_MODE_ROWS);
    if (!append) {
      request.mutable_items(0)->clear_k();
      request.mutable_items(0)->clear_v();
    }
    const StepReply step = client_.Step(request);
    ASSERT_REPLY_OK(step.reply);
    EXPECT_EQ(step.output(), expected);
  }
  ExpectIntact();
}

// Every position of every query and head: far more than the output.
TEST_F(MessageLimitTest, SelectionsBeyondItAreRefusedAlone) {
  v1::AttendRequest request = Queries(64, Sparq(8, kLength));
  request.mutable_items(0)->set_position(kLength - 64);
  request.set_return_selection(true);
  const StepReply step = client_.Step(request);
  EXPECT_THAT(step.reply, Refused(absl::StatusCode::kInvalidArgument, Words{"answer", "262144"}));
  ExpectIntact();
}

TEST_F(MessageLimitTest, ReadRowsSaysHowManyBytesAreTooMany) {
  Client store(cluster_.store().address());
  std::vector<uint32_t> positions(kLength);
  for (uint32_t i = 0; i < kLength; ++i) positions[i] = i;
  // One row of 128 bytes each; repeated positions are ascending, too.
  std::vector<uint32_t> repeated(kLimit / 128 + 1, 7);
  std::string rows;
  EXPECT_TRUE(store.ReadRows(sequence_.handle(), 0, 1, positions, &rows).ok());
  EXPECT_THAT(store.ReadRows(sequence_.handle(), 0, 1, repeated, &rows),
              Refused(absl::StatusCode::kOutOfRange, Words{"positions", "expected at most"}));
  repeated.resize(kLimit / 128);
  EXPECT_TRUE(store.ReadRows(sequence_.handle(), 0, 1, repeated, &rows).ok());
  EXPECT_THAT(store.ReadRows(sequence_.handle(), 0, 1, {kLength}, &rows),
              Refused(absl::StatusCode::kOutOfRange, Words{"positions"}));
  EXPECT_THAT(store.ReadRows(sequence_.handle(), 9, 9, {0}, &rows),
              Refused(absl::StatusCode::kOutOfRange, Words{"layer"}));
  ExpectIntact();
}

}  // namespace
}  // namespace terrace::testing
