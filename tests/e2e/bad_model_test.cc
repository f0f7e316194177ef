// Checkpoints that are cut, foreign or of another shape: the runner says what is wrong before it
// touches the service.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "tests/e2e/cluster.h"
#include "tests/e2e/model.h"

namespace terrace::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kWeights[] = "model.safetensors";

class BadModelTest : public ::testing::Test {
 protected:
  BadModelTest() {
    const std::vector<std::string> words = model_.Arguments(cluster_.worker().address(), 1);
    std::filesystem::copy(words[1], folder_.path(), std::filesystem::copy_options::recursive);
    std::filesystem::permissions(folder_.path(), std::filesystem::perms::owner_all,
                                 std::filesystem::perm_options::add);
    weights_ = ReadFile(folder_.File(kWeights));
    config_ = ReadFile(folder_.File("config.json"));
  }

  Outcome Run() {
    std::vector<std::string> words = model_.Arguments(cluster_.worker().address(), 1);
    words[1] = folder_.path();
    return RunProgram(kGenerateProgram, words);
  }

  // Refused with these words, and nothing was left behind.
  void ExpectRefused(const std::string& file, const std::string& words) {
    const Outcome outcome = Run();
    EXPECT_EQ(outcome.exit_code, 4) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(file));
    EXPECT_THAT(outcome.err, HasSubstr(words));
    EXPECT_THAT(outcome.out, IsEmpty());
    EXPECT_TRUE(cluster_.worker().process().Running());
    EXPECT_EQ(AskAdmin(cluster_.worker(), {"sequences"})["sequences"].size(), 0u);
  }

  Cluster cluster_;
  const ModelRun model_{/*prompt_bytes=*/64, /*score_bytes=*/8};
  const Folder folder_;
  std::string weights_;
  std::string config_;
};

TEST_F(BadModelTest, AGoodCopyRuns) {
  ASSERT_FALSE(weights_.empty());
  const Outcome outcome = Run();
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
}

TEST_F(BadModelTest, CutWeightsAreRefused) {
  const std::vector<std::pair<size_t, std::string>> cases = {{0, "0 bytes, at least 8"},
                                                             {7, "7 bytes, at least 8"},
                                                             {100, "the header has"},
                                                             {weights_.size() - 1, "ends at byte"}};
  for (const auto& [bytes, words] : cases) {
    SCOPED_TRACE(bytes);
    folder_.Write(kWeights, weights_.substr(0, bytes));
    ExpectRefused(kWeights, words);
  }
}

TEST_F(BadModelTest, ForeignWeightsAreRefused) {
  folder_.Write(kWeights, "PK\x03\x04 this is a zip file of some length");
  ExpectRefused(kWeights, "not a safetensors file");
}

TEST_F(BadModelTest, AConfigurationThatIsNotOneIsRefused) {
  folder_.Write("config.json", config_.substr(0, config_.size() / 2));
  ExpectRefused("config.json", "not a JSON object");
  folder_.Write("config.json", "[1, 2]");
  ExpectRefused("config.json", "not a JSON object");
}

TEST_F(BadModelTest, WeightsOfAnotherShapeAreRefused) {
  nlohmann::json config = nlohmann::json::parse(config_);
  config["num_hidden_layers"] = config["num_hidden_layers"].get<int>() + 1;
  folder_.Write("config.json", config.dump());
  ExpectRefused(folder_.path(), "layers");
}

}  // namespace
}  // namespace terrace::testing
