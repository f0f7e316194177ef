// The real binary, as a shell runs it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/services/replay/trace_file.h"
#include "tests/services/terracectl/child_process.h"

namespace terrace::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kProgram[] = TERRACE_BIN_DIR "/terrace-replay";

TEST(ReplayProgram, PrintsHitRatesAsATable) {
  // Twice the same three blocks: LRU in two is always late, the optimum keeps one.
  const TraceFile file(Request("1, 2, 3") + Request("1, 2, 3"));
  const ProcessResult result = RunProcess(
      kProgram, {"--trace", file.path(), "--policy", "lru,belady", "--capacity-blocks", "2,3"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.err, IsEmpty());
  EXPECT_EQ(result.out,
            "6 references to 3 blocks in 2 steps; first ones aside, 50.00% could be hits\n"
            "\n"
            "BLOCKS        2        3\n"
            "lru       0.00%   50.00%\n"
            "belady   33.33%   50.00%\n");
}

TEST(ReplayProgram, PrintsJsonInTheOrderAsked) {
  const TraceFile file(Request("1, 2") + Request("1, 2"));
  const ProcessResult result =
      RunProcess(kProgram, {"--trace", file.path(), "--policy=belady", "--policy=heat",
                            "--capacity-blocks=2,1", "-o", "json"});
  EXPECT_EQ(result.exit_code, 0);
  const nlohmann::json expected = {
      {{"policy", "belady"}, {"capacity_blocks", 2}, {"hit_rate", 0.5}},
      {{"policy", "belady"}, {"capacity_blocks", 1}, {"hit_rate", 0.25}},
      {{"policy", "heat"}, {"capacity_blocks", 2}, {"hit_rate", 0.5}},
      {{"policy", "heat"}, {"capacity_blocks", 1}, {"hit_rate", 0.0}}};
  EXPECT_EQ(nlohmann::json::parse(result.out), expected);
}

TEST(ReplayProgram, ABadTraceIsExit3AndNamesTheLine) {
  const TraceFile file(Request("1") + "{\n");
  ProcessResult result = RunProcess(kProgram, {"--trace", file.path(), "--capacity-blocks", "1"});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.out, IsEmpty());
  EXPECT_THAT(result.err, HasSubstr("terrace-replay: " + file.path() + ":2: got malformed JSON"));
  result = RunProcess(kProgram, {"--trace", file.path() + ".none", "--capacity-blocks", "1"});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, HasSubstr("No such file"));
}

TEST(ReplayProgram, WrongUsageIsExit2AndAFullOutputExit1) {
  EXPECT_EQ(RunProcess(kProgram, {}).exit_code, 2);
  const TraceFile file(Request("1"));
  const ProcessResult result = RunProcess(
      kProgram, {"--trace", file.path(), "--capacity-blocks", "1"}, {.stdout_path = "/dev/full"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("cannot write the output"));
}

}  // namespace
}  // namespace terrace::testing
