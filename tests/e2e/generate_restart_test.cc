// terrace-generate goes on after a kill -9 of the store that holds its KV cache.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <string>
#include <vector>

#include "tests/e2e/cluster.h"
#include "tests/e2e/model.h"

namespace terrace::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kTokens = 100;
constexpr size_t kTokensBeforeKill = 20;

class GenerateRestartTest : public ::testing::Test {
 protected:
  std::vector<std::string> Arguments(const std::string& address, bool reconnect) const {
    std::vector<std::string> arguments = model_.Arguments(address, kTokens);
    arguments.insert(arguments.end(), {"--policy", "sparq:r=16,k=96,window=32"});
    if (reconnect) arguments.insert(arguments.end(), {"--reconnect", "60s"});
    return arguments;
  }

  const std::string& UndisturbedText() {
    static const std::string text = [this] {
      Daemon worker(kWorkerProgram, {});
      const Outcome outcome = RunProgram(kGenerateProgram, Arguments(worker.address(), false));
      EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
      return outcome.out;
    }();
    EXPECT_GE(text.size(), 50u);
    return text;
  }

  // Runs until some of the text is there, and holds the program between two steps or within one.
  void StopMidway(Process& program) {
    ASSERT_TRUE(
        Await([&] { return program.Out().size() >= kTokensBeforeKill || !program.Running(); }));
    program.Signal(SIGSTOP);
    ASSERT_TRUE(program.Running()) << program.Err();
    ASSERT_LT(program.Out().size(), UndisturbedText().size());
  }

  static bool HasSaid(const Process& program, const char* words) {
    return program.Err().find(words) != std::string::npos;
  }

  // The store is gone and back, and the worker has found it again, while the program stands still:
  // its next step reaches a store that has lost tokens.
  static void Replace(Daemon& store, Daemon& worker) {
    // Two rounds of asking, so that a step that was under way has been answered.
    AskAdmin(store, {"sequences"});
    AskAdmin(worker, {"sequences"});
    store.Kill();
    store.Restart();
    Client client(worker.address());
    v1::SequenceInfo info;
    ASSERT_TRUE(Await([&] {
      const Reply reply = client.Get("s0000-00000000000000000000000000000000", &info);
      return reply.code == absl::StatusCode::kNotFound;
    }));
  }

  const ModelRun model_{/*prompt_bytes=*/1000, /*score_bytes=*/0};
};

TEST_F(GenerateRestartTest, WaitsForTheStoreAndWritesTheSameText) {
  const std::string& expected = UndisturbedText();
  Cluster cluster;
  Process program(kGenerateProgram, Arguments(cluster.worker().address(), true));
  StopMidway(program);
  cluster.store().Kill();
  program.Signal(SIGCONT);
  ASSERT_TRUE(Await([&] { return HasSaid(program, "was lost") || !program.Running(); }));
  cluster.store().Restart();
  EXPECT_EQ(program.Wait(), 0) << program.Err();
  EXPECT_EQ(program.Out(), expected);
  EXPECT_THAT(program.Err(), AllOf(HasSubstr("was lost"), HasSubstr("is back")));
}

TEST_F(GenerateRestartTest, NoticesAStoreThatIsBackWithFewerTokens) {
  const std::string& expected = UndisturbedText();
  Cluster cluster;
  Process program(kGenerateProgram, Arguments(cluster.worker().address(), true));
  StopMidway(program);
  Replace(cluster.store(), cluster.worker());
  program.Signal(SIGCONT);
  EXPECT_EQ(program.Wait(), 0) << program.Err();
  EXPECT_EQ(program.Out(), expected);
  EXPECT_THAT(program.Err(), AllOf(HasSubstr("was lost"), HasSubstr("is back")));
}

TEST_F(GenerateRestartTest, BeginsAgainOnAStoreThatIsBackWithNothing) {
  const std::string& expected = UndisturbedText();
  Daemon store(kStoreProgram, {"--host-bytes", "64MiB"});
  Daemon worker(kWorkerProgram, {"--engine", "remote", "--stores", store.address()});
  Process program(kGenerateProgram, Arguments(worker.address(), true));
  StopMidway(program);
  store.Kill();
  program.Signal(SIGCONT);
  ASSERT_TRUE(Await([&] { return HasSaid(program, "was lost") || !program.Running(); }));
  store.Restart();
  EXPECT_EQ(program.Wait(), 0) << program.Err();
  EXPECT_EQ(program.Out(), expected);
  EXPECT_THAT(program.Err(), HasSubstr("beginning a new one"));
}

TEST_F(GenerateRestartTest, WithoutReconnectItNamesTheSequenceAndWhatToDo) {
  for (const bool restart : {false, true}) {
    SCOPED_TRACE(restart ? "store is back" : "store is gone");
    Cluster cluster;
    Process program(kGenerateProgram, Arguments(cluster.worker().address(), false));
    StopMidway(program);
    const nlohmann::json sequences = AskAdmin(cluster.store(), {"sequences"})["sequences"];
    ASSERT_EQ(sequences.size(), 2u);  // The prompt and the fork that the text is written on.
    if (restart) {
      Replace(cluster.store(), cluster.worker());
    } else {
      cluster.store().Kill();
    }
    program.Signal(SIGCONT);
    EXPECT_EQ(program.Wait(), 3) << program.Err();
    const std::string err = program.Err();
    EXPECT_THAT(err, HasSubstr("--reconnect"));
    const bool named = err.find(sequences[0]["handle"]) != std::string::npos ||
                       err.find(sequences[1]["handle"]) != std::string::npos;
    EXPECT_TRUE(named) << err;
  }
}

}  // namespace
}  // namespace terrace::testing
