// A store under load that is killed at random moments and restarted, again and again on the same
// folder. After each: what was acknowledged as durable <= what is served <= what was sent, and
// every row that is served is the one that was sent (I1, I6).
//
// TERRACE_TORTURE_KILLS=200 kills as often; by default 8 times. TERRACE_TEST_SEED repeats the
// choices, not the moments.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <list>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "tests/e2e/cluster.h"
#include "tests/e2e/sent_sequence.h"
#include "tests/e2e/store_client.h"

namespace terrace::testing {
namespace {

constexpr int kThreads = 3;
constexpr size_t kSequencesMax = 4;
constexpr uint64_t kLengthMax = 400;
const Shape kShape = {.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 32};

int Kills() {
  const char* given = std::getenv("TERRACE_TORTURE_KILLS");
  int kills = 8;
  EXPECT_TRUE(given == nullptr || absl::SimpleAtoi(given, &kills)) << given;
  return kills;
}

// One client thread: its sequences, and what it does to them. Used by one thread at a time.
class Tormentor {
 public:
  Tormentor(std::string address, uint64_t seed)
      : address_(std::move(address)), seed_(seed), random_(seed) {}

  // Until a call is not answered. The test fails when that is so before `killed`.
  void Run(const std::atomic<bool>& killed, std::atomic<uint64_t>& answers) {
    StoreClient client(address_);
    while (true) {
      const Reply reply = Act(client);
      if (reply.ok()) {
        ++answers;
        continue;
      }
      EXPECT_TRUE(killed) << reply;
      EXPECT_EQ(reply.code, absl::StatusCode::kUnavailable) << reply;
      return;
    }
  }
  // After the restart.
  void Recover(uint64_t* rows) {
    StoreClient client(address_);
    sequences_.remove_if([&](SentSequence& each) { return !each.Recover(client, rows); });
  }

 private:
  uint64_t Draw(uint64_t below) { return random_() % below; }

  Reply Act(StoreClient& client) {
    if (sequences_.empty()) return Create(client);
    auto each = sequences_.begin();
    std::advance(each, Draw(sequences_.size()));
    switch (Draw(12)) {
      case 0:
        return sequences_.size() < kSequencesMax ? Create(client) : Close(client, each);
      case 1:
        return sequences_.size() < kSequencesMax ? Fork(client, *each) : Close(client, each);
      case 2:
        return Truncate(client, *each);
      case 3:
      case 4:
        return Flush(client, *each);
      case 5:
      case 6:
      case 7:
        return Append(client, *each);
      default:
        return Step(client, *each);
    }
  }

  Reply Create(StoreClient& client) {
    v1::SequenceInfo info;
    const Reply reply = client.Create(kShape, &info);
    // Rows of another sequence are other rows.
    if (reply.ok()) sequences_.emplace_back(kShape, seed_ + (++created_ << 32), std::move(info));
    return reply;
  }
  Reply Fork(StoreClient& client, const SentSequence& parent) {
    const uint64_t position = Draw(parent.length() + 1);
    v1::SequenceInfo info;
    const Reply reply = client.Fork(parent.info(), position, &info);
    if (reply.ok()) sequences_.push_back(parent.Child(std::move(info), position));
    return reply;
  }
  Reply Truncate(StoreClient& client, SentSequence& sequence) {
    const uint64_t length = Draw(sequence.length() + 1);
    sequence.SendCut(length);
    const Reply reply = client.Truncate(sequence.mutable_info(), length);
    if (reply.ok()) sequence.HearCut();
    return reply;
  }
  Reply Flush(StoreClient& client, SentSequence& sequence) {
    const Reply reply = client.Flush(sequence.mutable_info());
    if (!reply.ok()) return reply;
    EXPECT_EQ(sequence.info().durable_length(), sequence.length());
    sequence.HearDurable(sequence.info().durable_length());
    return reply;
  }
  Reply Append(StoreClient& client, SentSequence& sequence) {
    const uint64_t first = sequence.length();
    const uint64_t tokens = std::min(1 + Draw(150), kLengthMax - first);
    if (tokens == 0) return Truncate(client, sequence);
    sequence.Send(tokens);
    v1::AppendKvResponse response;
    const auto rows = [&](uint64_t position) { return sequence.RowsAt(position); };
    const Reply reply = client.Append(sequence.info(), rows, first, sequence.length(), &response);
    if (!reply.ok()) return reply;
    EXPECT_EQ(response.length(), sequence.length());
    sequence.HearDurable(response.durable_length());
    return reply;
  }
  Reply Step(StoreClient& client, SentSequence& sequence) {
    if (sequence.length() == kLengthMax) return Truncate(client, sequence);
    const uint64_t position = sequence.length();
    sequence.Send(1);
    const v1::Policy policy = Draw(2) == 0 ? Dense() : Sparq(8, 32, 8);
    for (uint32_t layer = 0; layer < kShape.layers; ++layer) {
      v1::StoreStepResult result;
      Reply reply = client.Step(sequence.info(), sequence.RowsAt(position), layer, position,
                                /*appends=*/true, policy, &result);
      if (!reply.ok()) return reply;
      EXPECT_EQ(result.layer_length(), position + 1);
    }
    return {};
  }
  Reply Close(StoreClient& client, std::list<SentSequence>::iterator sequence) {
    sequence->SendClose();
    const Reply reply = client.Close(sequence->info().handle());
    if (reply.ok()) sequences_.erase(sequence);
    return reply;
  }

  const std::string address_;
  const uint64_t seed_;
  std::mt19937_64 random_;
  uint64_t created_ = 0;
  std::list<SentSequence> sequences_;
};

TEST(TortureTest, AStoreThatIsKilledServesBetweenDurableAndSentAndNoWrongRow) {
  const uint64_t seed = TestSeed();
  std::mt19937_64 random(seed);
  const Folder folder;
  Daemon store(kStoreProgram, {"--host-bytes", "8MiB", "--disk-path", folder.File("disk"),
                               "--disk-bytes", "256MiB", "--log-level", "warn"});
  std::vector<Tormentor> tormentors;
  for (int i = 0; i < kThreads; ++i) tormentors.emplace_back(store.address(), random());
  std::atomic<uint64_t> answers = 0;
  uint64_t rows = 0;
  const int kills = Kills();
  int killed_count = 0;
  for (; killed_count < kills && !HasFailure(); ++killed_count) {
    SCOPED_TRACE(::testing::Message() << "kill " << killed_count);
    std::atomic<bool> killed = false;
    const uint64_t before = answers;
    std::vector<std::thread> threads;
    for (Tormentor& each : tormentors) {
      threads.emplace_back([&] { each.Run(killed, answers); });
    }
    EXPECT_TRUE(Await([&] { return answers > before; }));
    absl::SleepFor(absl::Milliseconds(random() % 250));
    killed = true;
    store.Kill();
    for (std::thread& thread : threads) thread.join();
    store.Restart();
    ASSERT_TRUE(store.serving());
    for (Tormentor& each : tormentors) each.Recover(&rows);
  }
  std::printf("%d kills, %llu calls answered, %llu rows verified\n", killed_count,
              static_cast<unsigned long long>(answers.load()),
              static_cast<unsigned long long>(rows));
}

}  // namespace
}  // namespace terrace::testing
