// A prompt that was there before: opened on its prefix through a worker and a store that was killed
// in between.
#include <gtest/gtest.h>

#include <string>

#include "tests/e2e/cluster.h"

namespace terrace::testing {
namespace {

const Shape kShape = {.layers = 3, .query_heads = 8, .kv_heads = 2, .head_dim = 32};
constexpr uint32_t kIdOffset = 7000;

// Tokens [first, end) of all layers with their ids, in one message.
Reply AppendWithIds(Client& client, const v1::SequenceInfo& sequence, const Rows& rows,
                    uint32_t first, uint32_t end) {
  bool sent = false;
  return client.AppendStream([&](v1::AppendKvRequest& request) {
    if (sent) return false;
    sent = true;
    request.set_handle(sequence.handle());
    request.set_writer_epoch(sequence.writer_epoch());
    request.set_token_position(first);
    for (uint32_t id = first; id < end; ++id) request.add_token_ids(kIdOffset + id);
    for (uint32_t layer = 0; layer < kShape.layers; ++layer) {
      v1::LayerChunk& chunk = *request.add_chunks();
      chunk.set_layer(layer);
      chunk.set_position(first);
      *chunk.mutable_k() = rows.K(layer, first, end - first);
      *chunk.mutable_v() = rows.V(layer, first, end - first);
    }
    return true;
  });
}

v1::OpenSequenceRequest OnPrefix(const v1::SequenceSpec& spec, uint32_t tokens) {
  v1::OpenSequenceRequest request;
  *request.mutable_prefix()->mutable_spec() = spec;
  for (uint32_t id = 0; id < tokens; ++id) request.mutable_prefix()->add_token_ids(kIdOffset + id);
  return request;
}

TEST(PrefixE2eTest, AnOpenOnAPrefixAfterARestartOfTheStoreGivesTheSameBits) {
  const Rows rows(kShape, TestSeed());
  Cluster cluster;
  ASSERT_TRUE(cluster.serving());
  Client client = cluster.NewClient();
  v1::SequenceInfo first = client.Open(kShape);
  ASSERT_REPLY_OK(AppendWithIds(client, first, rows, 0, 300));
  const std::string before = client.Look(first, rows, 2, 255, Sparq(8, 64, 16)).output();
  ASSERT_FALSE(before.empty());
  ASSERT_REPLY_OK(client.Flush(&first));
  cluster.store().Kill();
  cluster.store().Restart();

  v1::SequenceInfo shared;
  Reply reply;
  ASSERT_TRUE(Await([&] {
    reply = client.Open(OnPrefix(first.spec(), 1000), &shared);
    return reply.code != absl::StatusCode::kUnavailable;
  }));
  ASSERT_REPLY_OK(reply);
  EXPECT_EQ(shared.length(), 256u);
  EXPECT_EQ(client.Look(shared, rows, 2, 255, Sparq(8, 64, 16)).output(), before);
  ASSERT_REPLY_OK(AppendWithIds(client, shared, rows, 256, 300));
  EXPECT_EQ(client.Look(shared, rows, 1, 299, Dense()).output(),
            client.Look(first, rows, 1, 299, Dense()).output());

  // A stranger with the same prompt begins with nothing.
  Client stranger = cluster.NewClient("stranger");
  v1::SequenceInfo alone;
  ASSERT_REPLY_OK(stranger.Open(OnPrefix(first.spec(), 1000), &alone));
  EXPECT_EQ(alone.length(), 0u);
}

}  // namespace
}  // namespace terrace::testing
