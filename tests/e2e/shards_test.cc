// Two stores behind one worker: a handle is the route, and a dead store hurts its own sequences.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "tests/e2e/cluster.h"

namespace terrace::testing {
namespace {

using ::testing::HasSubstr;

const Shape kShape = {.layers = 2, .query_heads = 8, .kv_heads = 2, .head_dim = 32};

class ShardsTest : public ::testing::Test {
 protected:
  // Sequences of 100 tokens by the shard that their handles name.
  static std::map<std::string, v1::SequenceInfo> OpenOnEach(Client& client, const Rows& rows) {
    std::map<std::string, v1::SequenceInfo> sequences;
    // 64 openings miss one of the two with chance 2^-63.
    for (int i = 0; i < 64 && sequences.size() < 2; ++i) {
      const v1::SequenceInfo sequence = client.Open(kShape);
      if (!sequences.emplace(sequence.handle().substr(0, 5), sequence).second) continue;
      EXPECT_REPLY_OK(client.Append(sequence, rows, 0, 100));
    }
    EXPECT_EQ(sequences.size(), 2u);
    return sequences;
  }

  Daemon first_{kStoreProgram, {"--host-bytes", "32MiB", "--shard", "0"}};
  Daemon second_{kStoreProgram, {"--host-bytes", "32MiB", "--shard", "1"}};
  const std::string stores_ = first_.address() + "," + second_.address();
};

TEST_F(ShardsTest, OfABatchOnlyTheItemsOfADeadStoreFail) {
  Daemon worker(kWorkerProgram, {"--engine", "remote", "--stores", stores_});
  ASSERT_TRUE(worker.serving());
  const Rows rows(kShape, TestSeed());
  Client client(worker.address());
  v1::AttendRequest request;
  for (const auto& [shard, sequence] : OpenOnEach(client, rows)) {
    *request.add_items() = client.StepRequest(sequence, rows, 0, 99, Sparq(8, 20)).items(0);
  }
  ASSERT_EQ(request.items_size(), 2);
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

// Half of the worker's threads may wait for it; what comes beyond them is refused at once.
TEST_F(ShardsTest, AHungStoreLeavesThreadsToTheOther) {
  Daemon worker(kWorkerProgram, {"--engine", "remote", "--stores", stores_, "--threads", "4"});
  ASSERT_TRUE(worker.serving());
  const Rows rows(kShape, TestSeed());
  Client client(worker.address());
  const std::map<std::string, v1::SequenceInfo> sequences = OpenOnEach(client, rows);
  ASSERT_EQ(sequences.size(), 2u);
  second_.process().Signal(SIGSTOP);
  const v1::AttendRequest request =
      client.StepRequest(sequences.at("s0001"), rows, 0, 99, Sparq(8, 20));
  std::atomic<int> refused = 0;
  std::atomic<int> served = 0;
  std::vector<std::thread> steps;
  for (int i = 0; i < 8; ++i) {
    steps.emplace_back([&] {
      Client asking(worker.address());
      v1::AttendResponse response;
      const Reply call = asking.AttendOnce(request, &response, kPatience);
      const Reply reply = call.ok() ? ReplyOf(response.results(0).status()) : call;
      ++(reply.ok() ? served : refused);
      if (reply.ok()) return;
      EXPECT_THAT(reply, Refused(absl::StatusCode::kResourceExhausted, Words{second_.address()}));
    });
  }
  EXPECT_TRUE(Await([&] { return refused == 6; }));
  EXPECT_REPLY_OK(client.Look(sequences.at("s0000"), rows, 0, 99, Sparq(8, 20)).reply);
  second_.process().Signal(SIGCONT);
  for (std::thread& step : steps) step.join();
  EXPECT_EQ(served, 2);
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
