// Two stores behind one worker: a handle is the route, and a dead store hurts its own sequences.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "tests/e2e/cluster.h"

namespace terrace::testing {
namespace {

using ::testing::HasSubstr;

const Shape kShape = {.layers = 2, .query_heads = 8, .kv_heads = 2, .head_dim = 32};

class ShardsTest : public ::testing::Test {
 protected:
  Daemon first_{kStoreProgram, {"--host-bytes", "32MiB", "--shard", "0"}};
  Daemon second_{kStoreProgram, {"--host-bytes", "32MiB", "--shard", "1"}};
  const std::string stores_ = first_.address() + "," + second_.address();
};

TEST_F(ShardsTest, OfABatchOnlyTheItemsOfADeadStoreFail) {
  Daemon worker(kWorkerProgram, {"--engine", "remote", "--stores", stores_});
  ASSERT_TRUE(worker.serving());
  const Rows rows(kShape, TestSeed());
  Client client(worker.address());
  // Sequences by the shard that their handle names; 64 openings miss one with chance 2^-63.
  std::map<std::string, v1::SequenceInfo> sequences;
  for (int i = 0; i < 64 && sequences.size() < 2; ++i) {
    const v1::SequenceInfo sequence = client.Open(kShape);
    sequences[sequence.handle().substr(0, 5)] = sequence;
  }
  ASSERT_EQ(sequences.size(), 2u);
  v1::AttendRequest request;
  for (const auto& [shard, sequence] : sequences) {
    ASSERT_REPLY_OK(client.Append(sequence, rows, 0, 100));
    *request.add_items() = client.StepRequest(sequence, rows, 0, 99, Sparq(8, 20)).items(0);
  }
  v1::AttendResponse before;
  ASSERT_REPLY_OK(client.Attend(request, &before));
  EXPECT_EQ(before.results(0).output().data(), before.results(1).output().data());
  EXPECT_EQ(AskAdmin(worker, {"tiers"})["tiers"].size(), 2u);

  second_.Kill();
  v1::AttendResponse after;
  ASSERT_REPLY_OK(client.Attend(request, &after));
  ASSERT_REPLY_OK(ReplyOf(after.results(0).status()));
  EXPECT_EQ(after.results(0).output().data(), before.results(0).output().data());
  const Reply dead = ReplyOf(after.results(1).status());
  EXPECT_THAT(dead, Refused(absl::StatusCode::kUnavailable, Words{second_.address()}));
  EXPECT_EQ(dead.metadata.at("endpoint"), second_.address());
  // Lists have what the other holds, and say what they lack.
  for (const char* list : {"tiers", "sequences"}) {
    const Outcome ctl = RunProgram(kCtlProgram, {"--endpoint", worker.address(), list});
    EXPECT_EQ(ctl.exit_code, 3);
    EXPECT_THAT(ctl.out, HasSubstr("Missing: kv-store at " + second_.address()));
    EXPECT_THAT(ctl.out, HasSubstr(list == std::string("tiers") ? "\n1 shard," : "s0000-"));
  }
  // New sequences go to the store that lives.
  for (int i = 0; i < 8; ++i) EXPECT_EQ(client.Open(kShape).handle().substr(0, 5), "s0000");
}

TEST_F(ShardsTest, TwoStoresOfOneNumberAreRefusedAtTheStart) {
  Daemon twin(kStoreProgram, {"--host-bytes", "32MiB", "--shard", "1"});
  const Outcome outcome =
      RunProgram(kWorkerProgram, {"--engine", "remote", "--listen", "127.0.0.1:0", "--stores",
                                  stores_ + "," + twin.address()});
  EXPECT_EQ(outcome.exit_code, 1);
  for (const std::string& words : {second_.address(), twin.address(), std::string("shard 1")}) {
    EXPECT_THAT(outcome.out + outcome.err, HasSubstr(words));
  }
}

}  // namespace
}  // namespace terrace::testing
