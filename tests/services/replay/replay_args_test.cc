#include "services/replay/replay_args.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace terrace::replay {
namespace {

using kvstore::PolicyKind;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

ParsedArgs Parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "terrace-replay");
  return ParseArgs(static_cast<int>(arguments.size()), arguments.data());
}

TEST(ReplayArgs, DefaultsAreTheStores) {
  const ParsedArgs parsed = Parse({"--trace", "t", "--capacity-blocks", "5"});
  ASSERT_FALSE(parsed.exit.has_value()) << parsed.message;
  EXPECT_EQ(parsed.args.trace, "t");
  EXPECT_THAT(parsed.args.policies, ElementsAre(ReplayPolicy{kvstore::kDefaultPolicy}));
  EXPECT_THAT(parsed.args.capacities, ElementsAre(5));
  EXPECT_FALSE(parsed.args.json);
  EXPECT_EQ(parsed.args.options.heat.half_life_gaps, kvstore::HeatOptions().half_life_gaps);
  EXPECT_EQ(parsed.args.options.heat.history_factor, kvstore::HeatOptions().history_factor);
}

TEST(ReplayArgs, ListsKeepTheirOrder) {
  const ParsedArgs parsed =
      Parse({"--policy", "lru,belady", "--policy=heat,s3fifo", "--capacity-blocks", "9,1,9",
             "--capacity-blocks", "1099511627776", "--trace", "t", "-o", "json"});
  ASSERT_FALSE(parsed.exit.has_value()) << parsed.message;
  EXPECT_THAT(parsed.args.policies,
              ElementsAre(ReplayPolicy{PolicyKind::kLru}, ReplayPolicy{std::nullopt},
                          ReplayPolicy{PolicyKind::kHeat}, ReplayPolicy{PolicyKind::kS3Fifo}));
  EXPECT_THAT(parsed.args.capacities, ElementsAre(9, 1, 9, 1099511627776));
  EXPECT_TRUE(parsed.args.json);
}

TEST(ReplayArgs, ParametersOfHeatReachTheirPlaces) {
  const ParsedArgs parsed =
      Parse({"--trace", "t", "--capacity-blocks", "5", "--heat-half-life", "100.5",
             "--heat-half-life-gaps", "2", "--heat-gap-window", "3", "--heat-admit-touches", "4",
             "--heat-contrast", "0.25", "--heat-history", "6"});
  ASSERT_FALSE(parsed.exit.has_value()) << parsed.message;
  const kvstore::HeatOptions& heat = parsed.args.options.heat;
  EXPECT_EQ(heat.half_life_accesses, 100.5);
  EXPECT_EQ(heat.half_life_gaps, 2);
  EXPECT_EQ(heat.gap_window, 3U);
  EXPECT_EQ(heat.admit_touches, 4U);
  EXPECT_EQ(heat.contrast, 0.25);
  EXPECT_EQ(heat.history_factor, 6);
}

TEST(ReplayArgs, EndsWithCode2AndNamesWhatIsWrong) {
  const struct {
    std::vector<const char*> arguments;
    const char* message;
  } cases[] = {{{"--capacity-blocks", "5"}, "--trace"},
               {{"--trace", "t"}, "--capacity-blocks"},
               {{"--capacity-blocks", "0"},
                "got \"0\", expected a number of blocks from 1 to 1099511627776"},
               {{"--capacity-blocks", "5,-1"}, "got \"-1\""},
               {{"--capacity-blocks", "1099511627777"}, "got \"1099511627777\""},
               {{"--capacity-blocks", "1k"}, "got \"1k\""},
               {{"--capacity-blocks", "1.5"}, "got \"1.5\""},
               {{"--policy", "lru,arc"}, "got \"arc\", expected heat, lru, s3fifo or belady"},
               {{"--policy", ""}, "--policy"},
               {{"-o", "yaml"}, "got \"yaml\", expected table or json"},
               {{"--heat-half-life", "-1"}, "got \"-1\", expected a number from 0 to 1e+15"},
               {{"--heat-half-life-gaps", "0"}, "--heat-half-life-gaps: got \"0\""},
               {{"--heat-gap-window", "0"}, "--heat-gap-window: got \"0\""},
               {{"--heat-gap-window", "1.5"}, "--heat-gap-window"},
               {{"--heat-contrast", "nan"}, "got \"nan\""},
               {{"--heat-history", "-0.5"}, "got \"-0.5\""},
               {{"--no-such-option"}, "no-such-option"},
               {{"stray"}, "stray"}};
  for (const auto& c : cases) {
    std::vector<const char*> arguments = c.arguments;
    if (arguments[0] != std::string("--capacity-blocks") &&
        arguments[0] != std::string("--trace")) {
      arguments.insert(arguments.begin(), {"--trace", "t", "--capacity-blocks", "5"});
    } else if (std::string(c.message).find("got") == 0) {
      arguments.insert(arguments.begin(), {"--trace", "t"});
    }
    const ParsedArgs parsed = Parse(arguments);
    EXPECT_EQ(parsed.exit, ExitCode::kUsage) << c.message;
    EXPECT_THAT(parsed.message, HasSubstr(c.message));
    EXPECT_THAT(parsed.message, HasSubstr("terrace-replay: "));
  }
}

TEST(ReplayArgs, HelpTellsTheExitStatus) {
  const ParsedArgs parsed = Parse({"--help"});
  EXPECT_EQ(parsed.exit, ExitCode::kOk);
  for (const char* const text : {"Exit status:", "  0  done", "  1  the output", "  2  wrong usage",
                                 "  3  the trace", "--capacity-blocks", "belady"}) {
    EXPECT_THAT(parsed.message, HasSubstr(text));
  }
  EXPECT_THAT(Parse({"--version"}).message, HasSubstr("terrace-replay " TERRACE_VERSION));
}

}  // namespace
}  // namespace terrace::replay
