// The bundled model writes the same text and scores to the same bit wherever its KV cache lies.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/e2e/cluster.h"
#include "tests/e2e/model.h"
#include "tests/services/frontend/checkpoint_writer.h"

namespace terrace::testing {
namespace {

using nlohmann::json;

// What must not depend on where the rows lay.
struct Answer {
  std::string policy;
  std::string text;
  double bits_per_byte = 0;

  friend bool operator==(const Answer&, const Answer&) = default;
  friend std::ostream& operator<<(std::ostream& out, const Answer& answer) {
    return out << answer.policy << ": " << answer.bits_per_byte << " bits per byte, \""
               << answer.text << "\"";
  }
};

std::vector<Answer> AnswersOf(const json& report) {
  std::vector<Answer> answers;
  for (const json& policy : report["policies"]) {
    answers.push_back({policy["policy"], policy["text"], policy["bits_per_byte"]});
  }
  return answers;
}

class GenerateTest : public ::testing::Test {
 protected:
  // The report of a run of both policies against `address`.
  json Generate(const std::string& address, const std::string& mode = "auto") {
    std::vector<std::string> arguments = model_.Arguments(address, 32);
    if (!checkpoint_.empty()) arguments[1] = checkpoint_;
    for (const char* word :
         {"--json", "--mode", mode.c_str(), "--policy", "dense", "--policy",
          "sparq:r=16,k=96,window=32", "--score-file", model_.score_file.c_str()}) {
      arguments.emplace_back(word);
    }
    const Outcome outcome = RunProgram(kGenerateProgram, arguments);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    json report = json::parse(outcome.out, nullptr, false);
    EXPECT_TRUE(report.is_object()) << outcome.out;
    if (report.is_object()) EXPECT_EQ(report["policies"].size(), 2u);
    return report.is_object() ? report : json::object({{"policies", json::array()}});
  }

  // One process with everything in memory: what the others must equal.
  const std::vector<Answer>& Undisturbed() {
    static const std::vector<Answer> answers = [this] {
      Daemon worker(kWorkerProgram, {"--host-bytes", "128MiB"});
      return AnswersOf(Generate(worker.address()));
    }();
    EXPECT_EQ(answers.size(), 2u);
    for (const Answer& answer : answers) {
      EXPECT_GE(answer.text.size(), 16u);
      EXPECT_GT(answer.bits_per_byte, 0.5);
      EXPECT_LT(answer.bits_per_byte, 4.0);
    }
    return answers;
  }

  ModelRun model_{/*prompt_bytes=*/1536, /*score_bytes=*/150};
  // Of another model than the bundled one.
  std::string checkpoint_;
};

// Other head_dim, group and depth than the bundled model's 64, 4 and 8, and other tokens.
TEST_F(GenerateTest, AnotherCheckpointRunsUnchangedAndGivesTheEmbeddedTextAndScore) {
  const struct {
    int head_dim;
    int query_heads;
    int kv_heads;
    int layers;
    json tokens;
  } cases[] = {
      {32, 6, 2, 5, {{"vocab_size", 256}, {"bos_token_id", 1}, {"eos_token_id", 2}}},
      {40, 3, 3, 2, {{"vocab_size", 270}, {"bos_token_id", 256}, {"eos_token_id", {257, 258}}}},
      {128, 8, 1, 1, {{"vocab_size", 256}}},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.head_dim);
    json config = frontend::testing::SmallConfig();
    config.erase("eos_token_id");
    config.update(c.tokens);
    config.update({{"head_dim", c.head_dim},
                   {"num_attention_heads", c.query_heads},
                   {"num_key_value_heads", c.kv_heads},
                   {"num_hidden_layers", c.layers},
                   {"max_position_embeddings", 4096}});
    const Folder folder;
    checkpoint_ = folder.path();
    frontend::testing::WriteCheckpoint(checkpoint_, config,
                                       frontend::testing::SmallWeights(config, 7));
    Daemon embedded(kWorkerProgram, {"--host-bytes", "128MiB"});
    const std::vector<Answer> expected = AnswersOf(Generate(embedded.address()));
    ASSERT_EQ(expected.size(), 2u);
    EXPECT_GT(expected[0].bits_per_byte, 0.0);
    EXPECT_NE(expected[0].bits_per_byte, expected[1].bits_per_byte);
    Cluster cluster;
    ASSERT_TRUE(cluster.serving());
    for (const char* mode : {"rows", "partial"}) {
      const json report = Generate(cluster.worker().address(), mode);
      EXPECT_EQ(AnswersOf(report), expected) << mode;
      EXPECT_GT(report["policies"][1][mode + std::string("_mode_answers")], 0);
    }
  }
}

TEST_F(GenerateTest, RemoteRowsPartialAndAutoGiveTheEmbeddedTextAndScore) {
  const std::vector<Answer>& expected = Undisturbed();
  Cluster cluster;
  ASSERT_TRUE(cluster.serving());
  const json rows = Generate(cluster.worker().address(), "rows");
  EXPECT_EQ(AnswersOf(rows), expected);
  EXPECT_GT(rows["policies"][1]["rows_mode_answers"], 0);
  const json partial = Generate(cluster.worker().address(), "partial");
  EXPECT_EQ(AnswersOf(partial), expected);
  EXPECT_EQ(partial["policies"][1]["rows_mode_answers"], 0);
  EXPECT_GT(partial["policies"][1]["partial_mode_answers"], 0);
  EXPECT_EQ(AnswersOf(Generate(cluster.worker().address())), expected);
  // A finished run leaves nothing behind.
  EXPECT_EQ(AskAdmin(cluster.store(), {"sequences"})["sequences"].size(), 0u);
}

TEST_F(GenerateTest, RowsOnDiskGiveTheSameTextAndScore) {
  const std::vector<Answer>& expected = Undisturbed();
  // The rows of the prompt alone take 6 MiB, their score index 2 MiB.
  Cluster cluster({"--host-bytes", "6MiB"});
  ASSERT_TRUE(cluster.serving());
  const json report = Generate(cluster.worker().address());
  EXPECT_EQ(AnswersOf(report), expected);
  const json host = TierOf(cluster.store(), "TIER_HOST");
  EXPECT_GT(Number(host["evicted_blocks"]), 0u);
  EXPECT_LE(Number(host["used_bytes"]), Number(host["capacity_bytes"]));
  for (const json& policy : report["policies"]) {
    EXPECT_GT(policy["rows_per_step"]["disk"], 0.0) << policy["policy"];
    EXPECT_GT(policy["physical_bytes_per_step"]["disk"], 0.0) << policy["policy"];
    EXPECT_EQ(policy["missed_rows"], 0) << policy["policy"];
  }
}

TEST_F(GenerateTest, AnEmbeddedDiskGivesTheSameTextAndScore) {
  const std::vector<Answer>& expected = Undisturbed();
  const Folder folder;
  Daemon worker(kWorkerProgram, {"--host-bytes", "6MiB", "--disk-path", folder.File("disk"),
                                 "--disk-bytes", "256MiB"});
  ASSERT_TRUE(worker.serving());
  EXPECT_EQ(AnswersOf(Generate(worker.address())), expected);
  EXPECT_GT(Number(TierOf(worker, "TIER_HOST")["evicted_blocks"]), 0u);
  EXPECT_GT(Number(TierOf(worker, "TIER_DISK")["read_bytes"]), 0u);
}

}  // namespace
}  // namespace terrace::testing
