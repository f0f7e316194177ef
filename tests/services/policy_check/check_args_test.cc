#include "services/policy_check/check_args.h"

#include <gmock/gmock.h>

#include <string>
#include <vector>

namespace terrace::policy_check {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ParsedArgs Parse(const std::vector<const char*>& arguments) {
  std::vector<const char*> argv = {"terrace-policy-check"};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  return ParseArgs(static_cast<int>(argv.size()), argv.data());
}

TEST(CheckArgs, DefaultsAreTheReferenceOnWhatTheFileGives) {
  const ParsedArgs parsed = Parse({"a.json"});
  ASSERT_FALSE(parsed.exit.has_value()) << parsed.message;
  EXPECT_THAT(parsed.args.files, ElementsAre("a.json"));
  EXPECT_EQ(parsed.args.backend, "reference");
  EXPECT_TRUE(parsed.args.format.exact());
}

TEST(CheckArgs, ReadsEveryOptionBesideSeveralFiles) {
  const ParsedArgs parsed =
      Parse({"a", "--backend", "cpu", "b", "--storage=fp16", "--index", "int8", "--block-tokens",
             "32", "--index-tokens", "2048", "--case", "x", "--case", "y", "c"});
  ASSERT_FALSE(parsed.exit.has_value()) << parsed.message;
  EXPECT_THAT(parsed.args.files, ElementsAre("a", "b", "c"));
  EXPECT_THAT(parsed.args.cases, ElementsAre("x", "y"));
  EXPECT_EQ(parsed.args.backend, "cpu");
  EXPECT_EQ(parsed.args.format.storage, attention::Dtype::kFloat16);
  EXPECT_EQ(parsed.args.format.index, attention::IndexFormat::kInt8);
  EXPECT_EQ(parsed.args.format.block_tokens, 32);
  EXPECT_EQ(parsed.args.format.index_tokens, 2048);
  EXPECT_EQ(Parse({"a", "--storage", "bf16"}).args.format.storage, attention::Dtype::kBFloat16);
}

TEST(CheckArgs, EndsWithCode2AndNamesWhatIsWrong) {
  const struct {
    std::vector<const char*> arguments;
    const char* message;
  } cases[] = {{{}, "files"},
               {{"a", "--backend", "gpu"}, "gpu"},
               {{"a", "--storage", "fp8"}, "fp8"},
               {{"a", "--index", "int4"}, "int4"},
               {{"a", "--block-tokens", "8"}, "--block-tokens: got 8"},
               {{"a", "--block-tokens", "24"}, "--block-tokens: got 24"},
               {{"a", "--block-tokens", "2048"}, "--block-tokens: got 2048"},
               {{"a", "--index-tokens", "8"}, "--index-tokens: got 8"},
               {{"a", "--index-tokens", "96"}, "--index-tokens: got 96"},
               {{"a", "--index-tokens", "2048"}, "--index-tokens: got 2048"},
               {{"a", "--no-such-option"}, "no-such-option"}};
  for (const auto& c : cases) {
    const ParsedArgs parsed = Parse(c.arguments);
    EXPECT_EQ(parsed.exit, ExitCode::kUsage) << c.message;
    EXPECT_THAT(parsed.message, HasSubstr(c.message));
  }
}

TEST(CheckArgs, HelpSaysWhatIsComparedWithWhat) {
  const ParsedArgs parsed = Parse({"--help"});
  EXPECT_EQ(parsed.exit, ExitCode::kOk);
  for (const char* part : {"--backend", "--storage", "--index", "--block-tokens", "--index-tokens",
                           "--case", "reference  fp64", "What is compared with what", "1e-5",
                           "1e-2", "N passed, N failed, N skipped", "Exit codes: 0"}) {
    EXPECT_THAT(parsed.message, HasSubstr(part));
  }
}

}  // namespace
}  // namespace terrace::policy_check
