// What a kill -9 of the store leaves: exactly what was durable, and a way to go on from there.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/e2e/cluster.h"

namespace terrace::testing {
namespace {

using ::testing::AllOf;
using ::testing::Ge;
using ::testing::Le;

constexpr absl::StatusCode kFailedPrecondition = absl::StatusCode::kFailedPrecondition;

const Shape kShape = {.layers = 3, .query_heads = 8, .kv_heads = 2, .head_dim = 32};

// Outputs of steps at [first, end) of all layers, position-major.
class Outputs {
 public:
  // Single steps that append.
  static Outputs Append(Client& client, const v1::SequenceInfo& sequence, const Rows& rows,
                        uint64_t first, uint64_t end, const v1::Policy& policy) {
    return Outputs(first, end, [&](uint32_t layer, uint64_t position) {
      return client.Step(sequence, rows, layer, position, policy);
    });
  }
  // What the same steps give once the rows are there.
  static Outputs Look(Client& client, const v1::SequenceInfo& sequence, const Rows& rows,
                      uint64_t first, uint64_t end, const v1::Policy& policy) {
    return Outputs(first, end, [&](uint32_t layer, uint64_t position) {
      return client.Look(sequence, rows, layer, position, policy);
    });
  }

  friend bool operator==(const Outputs&, const Outputs&) = default;
  size_t size() const { return outputs_.size(); }

 private:
  template <typename StepAt>
  Outputs(uint64_t first, uint64_t end, const StepAt& step_at) {
    for (uint64_t position = first; position < end; ++position) {
      for (uint32_t layer = 0; layer < kShape.layers; ++layer) {
        const StepReply step = step_at(layer, position);
        EXPECT_TRUE(step.ok()) << "position " << position << ", layer " << layer << ": "
                               << step.reply;
        if (!step.ok()) return;
        outputs_.push_back(step.output());
      }
    }
  }

  std::vector<std::string> outputs_;
};

// Every row that the store serves is the one that was sent.
void ExpectRowsAsSent(const Daemon& store, const v1::SequenceInfo& sequence, const Rows& rows) {
  Client client(store.address());
  std::vector<uint32_t> positions(sequence.length());
  for (uint32_t i = 0; i < positions.size(); ++i) positions[i] = i;
  for (uint32_t layer = 0; layer < kShape.layers; ++layer) {
    for (uint32_t head = 0; head < kShape.kv_heads; ++head) {
      std::string served;
      const Reply reply = client.ReadRows(sequence.handle(), layer, head, positions, &served);
      ASSERT_REPLY_OK(reply);
      std::string sent;
      for (const uint32_t position : positions) sent += rows.Row(layer, head, position);
      EXPECT_TRUE(served == sent) << "layer " << layer << ", KV head " << head;
    }
  }
}

class RestartTest : public ::testing::Test {
 protected:
  // The sequence as the worker describes it once it reaches the store again.
  v1::SequenceInfo AfterRestart(Cluster& cluster, Client& client, const std::string& handle) {
    cluster.store().Restart();
    v1::SequenceInfo info;
    Reply reply;
    EXPECT_TRUE(Await([&] {
      reply = client.Get(handle, &info);
      return reply.code != absl::StatusCode::kUnavailable;
    }));
    EXPECT_REPLY_OK(reply);
    return info;
  }

  const uint64_t seed_ = TestSeed();
  const Rows rows_{kShape, seed_};
};

TEST_F(RestartTest, TheDurablePrefixIsServedAndAReplayGivesTheSameBits) {
  const v1::Policy policy = Sparq(8, 64, 16);
  // An undisturbed process with the same tokens.
  Daemon undisturbed(kWorkerProgram, {});
  Client calm(undisturbed.address());
  const v1::SequenceInfo calm_sequence = calm.Open(kShape);
  ASSERT_REPLY_OK(calm.Append(calm_sequence, rows_, 0, 1000));
  const Outputs calm_steps = Outputs::Append(calm, calm_sequence, rows_, 1000, 1010, policy);

  Cluster cluster;
  Client client = cluster.NewClient();
  const v1::SequenceInfo sequence = client.Open(kShape);
  v1::AppendKvResponse appended;
  ASSERT_REPLY_OK(client.Append(sequence, rows_, 0, 1000, &appended));
  EXPECT_EQ(appended.length(), 1000u);
  EXPECT_EQ(Outputs::Append(client, sequence, rows_, 1000, 1010, policy), calm_steps);

  cluster.store().Kill();
  const v1::SequenceInfo back = AfterRestart(cluster, client, sequence.handle());
  // It says how long it took, and serves nobody before.
  const std::string log = cluster.store().process().Out();
  EXPECT_LT(log.find("event=recovered sequences=1 time_to_ready="), log.find("event=serving"));
  EXPECT_EQ(back.length(), back.durable_length());
  EXPECT_THAT(back.length(), AllOf(Ge(appended.durable_length()), Le(1010u)));
  EXPECT_THAT(back.layer_lengths(), ::testing::Each(back.length()));
  ExpectRowsAsSent(cluster.store(), back, rows_);

  const StepReply beyond = client.Step(sequence, rows_, 0, back.length() + 1, policy);
  EXPECT_THAT(beyond.reply, Refused(kFailedPrecondition, Words{"position"}));
  EXPECT_EQ(beyond.reply.reason, "POSITION_GAP");
  EXPECT_EQ(beyond.reply.metadata.at("expected_position"), std::to_string(back.length()));
  // The writer's epoch has survived, too: nobody else has opened the sequence.
  EXPECT_EQ(Outputs::Append(client, sequence, rows_, back.length(), 1010, policy),
            Outputs::Look(calm, calm_sequence, rows_, back.length(), 1010, policy));
}

TEST_F(RestartTest, AFlushKeepsEveryTokenTheTailIncluded) {
  // Nothing is written but by the flush.
  Cluster cluster({"--durability", "none"});
  Client client = cluster.NewClient();
  v1::SequenceInfo sequence = client.Open(kShape);
  ASSERT_REPLY_OK(client.Append(sequence, rows_, 0, 333));
  const Outputs before = Outputs::Append(client, sequence, rows_, 333, 340, Dense());
  ASSERT_REPLY_OK(client.Flush(&sequence));
  EXPECT_EQ(sequence.durable_length(), 340u);
  ASSERT_REPLY_OK(client.Append(sequence, rows_, 340, 500));
  cluster.store().Kill();
  const v1::SequenceInfo back = AfterRestart(cluster, client, sequence.handle());
  EXPECT_EQ(back.length(), 340u);
  EXPECT_EQ(back.durable_length(), 340u);
  ExpectRowsAsSent(cluster.store(), back, rows_);
  EXPECT_EQ(Outputs::Look(client, sequence, rows_, 333, 340, Dense()), before);
}

// The worker keeps rows of earlier steps. What it kept of tokens that were lost must not come back.
TEST_F(RestartTest, RowsThatWereLostAreNotTakenFromTheWorkersCache) {
  const auto step = [](Client& client, const v1::SequenceInfo& sequence, const Rows& rows,
                       uint64_t position, v1::RemoteMode mode) {
    v1::AttendRequest request = client.StepRequest(sequence, rows, 0, position, Sparq(8, 400));
    request.mutable_items(0)->clear_k();
    request.mutable_items(0)->clear_v();
    request.set_mode(mode);
    return client.Step(request);
  };
  Cluster cluster({"--durability", "none"});
  Client client = cluster.NewClient();
  v1::SequenceInfo sequence = client.Open(kShape);
  ASSERT_REPLY_OK(client.Append(sequence, rows_, 0, 100));
  ASSERT_REPLY_OK(client.Flush(&sequence));
  ASSERT_REPLY_OK(client.Append(sequence, rows_, 100, 400));
  // Every row of the layer is now in the worker's cache: the second step moves none.
  const StepReply first = step(client, sequence, rows_, 399, v1::REMOTE_MODE_ROWS);
  const StepReply second = step(client, sequence, rows_, 399, v1::REMOTE_MODE_ROWS);
  ASSERT_TRUE(first.ok() && second.ok()) << first.reply << second.reply;
  ASSERT_LT(second.result.account().wire_bytes(), first.result.account().wire_bytes() / 4);
  EXPECT_EQ(second.output(), first.output());

  cluster.store().Kill();
  EXPECT_EQ(AfterRestart(cluster, client, sequence.handle()).length(), 100u);
  const Rows others(kShape, seed_ + 1);
  ASSERT_REPLY_OK(client.Append(sequence, others, 100, 400));
  const StepReply rows = step(client, sequence, rows_, 399, v1::REMOTE_MODE_ROWS);
  const StepReply partial = step(client, sequence, rows_, 399, v1::REMOTE_MODE_PARTIAL);
  ASSERT_TRUE(rows.ok() && partial.ok()) << rows.reply << partial.reply;
  EXPECT_EQ(rows.output(), partial.output());
  EXPECT_NE(rows.output(), first.output());
}

TEST_F(RestartTest, KilledUnderLoadAgainAndAgainItServesBetweenDurableAndSent) {
  Cluster cluster;
  Client client = cluster.NewClient();
  v1::SequenceInfo sequence = client.Open(kShape);
  uint64_t length = 0;
  for (int round = 0; round < 5; ++round) {
    SCOPED_TRACE(::testing::Message() << "round " << round << ", seed " << seed_);
    // Round 0 dies at once, later ones after a flush and more messages.
    const uint64_t flushed_end = length + 37 * static_cast<uint64_t>(round);
    uint64_t durable = length;
    if (round > 0) {
      ASSERT_REPLY_OK(client.Append(sequence, rows_, length, flushed_end));
      ASSERT_REPLY_OK(client.Flush(&sequence));
      durable = sequence.durable_length();
      EXPECT_EQ(durable, flushed_end);
    }
    uint64_t sent = flushed_end;
    const uint64_t kill_at = sent + (seed_ >> (8 * round)) % 600;
    const auto next = [&](v1::AppendKvRequest& request) {
      if (sent >= kill_at) cluster.store().Kill();
      request.set_handle(sequence.handle());
      request.set_writer_epoch(sequence.writer_epoch());
      for (uint32_t layer = 0; layer < kShape.layers; ++layer) {
        v1::LayerChunk& chunk = *request.add_chunks();
        chunk.set_layer(layer);
        chunk.set_position(sent);
        *chunk.mutable_k() = rows_.K(layer, sent, 20);
        *chunk.mutable_v() = rows_.V(layer, sent, 20);
      }
      sent += 20;
      return sent < kill_at + 10'000;
    };
    const Reply broken = client.AppendStream(next);
    EXPECT_THAT(broken, Refused(absl::StatusCode::kUnavailable, Words{cluster.store().address()}));
    const v1::SequenceInfo back = AfterRestart(cluster, client, sequence.handle());
    EXPECT_THAT(back.length(), AllOf(Ge(durable), Le(sent)));
    EXPECT_EQ(back.length(), back.durable_length());
    length = back.length();
    ExpectRowsAsSent(cluster.store(), back, rows_);
  }
}

}  // namespace
}  // namespace terrace::testing
