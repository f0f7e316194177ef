// A store that hangs: it holds its connections and answers nothing. Nobody waits for it longer than
// was said.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/e2e/cluster.h"

namespace terrace::testing {
namespace {

using ::testing::HasSubstr;

const Shape kShape = {.layers = 2, .query_heads = 8, .kv_heads = 2, .head_dim = 32};

// Bytes that came for the process that serves this port, and that it has not read.
uint64_t UnreadBytes(int port) {
  constexpr char kEstablished[] = "01";
  const std::string local = absl::StrFormat(":%04X", port);
  uint64_t total = 0;
  for (const char* table : {"/proc/net/tcp", "/proc/net/tcp6"}) {
    std::ifstream lines(table);
    std::string line;
    while (std::getline(lines, line)) {
      std::istringstream fields(line);
      std::string number;
      std::string here;
      std::string there;
      std::string state;
      std::string queues;
      fields >> number >> here >> there >> state >> queues;
      if (state != kEstablished || !absl::EndsWith(here, local)) continue;
      uint64_t unread = 0;
      EXPECT_TRUE(absl::SimpleHexAtoi(queues.substr(queues.find(':') + 1), &unread)) << line;
      total += unread;
    }
  }
  return total;
}

class HangingStoreTest : public ::testing::Test {
 protected:
  ~HangingStoreTest() override { cluster_.store().process().Signal(SIGCONT); }

  void SetUp() override {
    ASSERT_TRUE(cluster_.serving());
    sequence_ = client_.Open(kShape);
    ASSERT_REPLY_OK(client_.Append(sequence_, rows_, 0, 100));
    before_ = client_.Look(sequence_, rows_, 0, 99, Sparq(8, 20)).output();
    Process& store = cluster_.store().process();
    store.Signal(SIGSTOP);
    const std::string stat = absl::StrCat("/proc/", store.pid(), "/stat");
    ASSERT_TRUE(Await([&] { return ReadFile(stat).find(") T ") != std::string::npos; }));
  }

  // What `start` gives, once it has made the worker send the store something.
  template <typename Start>
  auto UntilSent(const Start& start) {
    const int port = cluster_.store().port();
    const uint64_t before = UnreadBytes(port);
    auto started = start();
    EXPECT_TRUE(Await([&] { return UnreadBytes(port) > before; }));
    return started;
  }

  Cluster cluster_{{}, {"--drain-timeout", "500ms"}};
  const Rows rows_{kShape, TestSeed()};
  Client client_ = cluster_.NewClient();
  v1::SequenceInfo sequence_;
  std::string before_;
};

// Steps and calls of every kind wait for it when the worker is told to stop.
TEST_F(HangingStoreTest, DoesNotKeepItsWorkerFromStopping) {
  const auto ask = [this](const std::function<Reply(Client&)>& call) {
    return UntilSent([&] {
      return std::thread([this, call] {
        Client client = cluster_.NewClient();
        EXPECT_FALSE(call(client).ok());
      });
    });
  };
  std::thread step = ask([this](Client& client) {
    v1::AttendResponse response;
    const Reply reply = client.AttendOnce(client.StepRequest(sequence_, rows_, 0, 99, Sparq(8, 20)),
                                          &response, kPatience);
    return reply.ok() ? ReplyOf(response.results(0).status()) : reply;
  });
  std::thread get = ask([this](Client& client) {
    v1::SequenceInfo info;
    return client.Get(sequence_.handle(), &info);
  });
  std::thread append =
      ask([this](Client& client) { return client.Append(sequence_, rows_, 100, 200); });
  const std::unique_ptr<Process> tiers = UntilSent([this] {
    return std::make_unique<Process>(
        kCtlProgram, std::vector<std::string>{"--endpoint", cluster_.worker().address(),
                                              "--timeout", "60s", "tiers"});
  });
  cluster_.worker().process().Signal(SIGTERM);
  // Without a cancel steps wait two minutes, and calls half a minute.
  EXPECT_EQ(cluster_.worker().process().Wait(absl::Seconds(15)), 0);
  EXPECT_THAT(cluster_.worker().process().Out(), HasSubstr("event=stopped"));
  step.join();
  get.join();
  append.join();
  EXPECT_NE(tiers->Wait(), 0);
}

// What lies in its socket may still run when it goes on, so the same step again must be good.
TEST_F(HangingStoreTest, AStepTimesOutAndCanBeRepeatedWhenItGoesOn) {
  v1::AttendRequest request = client_.StepRequest(sequence_, rows_, 0, 100, Sparq(8, 20));
  request.mutable_step_deadline()->set_nanos(200'000'000);
  const StepReply late = client_.Step(request);
  EXPECT_THAT(late.reply, Refused(absl::StatusCode::kDeadlineExceeded, Words{"deadline"}));
  EXPECT_FALSE(late.result.appended());
  cluster_.store().process().Signal(SIGCONT);
  const StepReply step = client_.Step(sequence_, rows_, 0, 100, Sparq(8, 20));
  ASSERT_REPLY_OK(step.reply);
  EXPECT_EQ(step.result.layer_length(), 101u);
  const StepReply look = client_.Look(sequence_, rows_, 0, 99, Sparq(8, 20));
  ASSERT_REPLY_OK(look.reply);
  EXPECT_EQ(look.output(), before_);
}

TEST_F(HangingStoreTest, IsNamedByListsOfAllStores) {
  const Outcome ctl = RunProgram(
      kCtlProgram, {"--endpoint", cluster_.worker().address(), "--timeout", "30s", "tiers"});
  EXPECT_EQ(ctl.exit_code, 3);
  EXPECT_THAT(ctl.out + ctl.err, HasSubstr(cluster_.store().address()));
}

}  // namespace
}  // namespace terrace::testing
