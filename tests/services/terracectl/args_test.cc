#include "services/terracectl/args.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "tests/status_matchers.h"

namespace terrace::terracectl {
namespace {

using ::terrace::testing::IsOk;
using ::terrace::testing::StatusIs;
using ::testing::HasSubstr;

class ArgsTest : public ::testing::Test {
 protected:
  void SetUp() override { ::unsetenv("TERRACE_ENDPOINT"); }
  void TearDown() override { ::unsetenv("TERRACE_ENDPOINT"); }

  static std::variant<Args, EarlyExit> Parse(std::vector<const char*> words) {
    words.insert(words.begin(), "terracectl");
    return ParseArgs(static_cast<int>(words.size()), words.data());
  }

  static Args Good(const std::vector<const char*>& words) {
    const auto parsed = Parse(words);
    if (const auto* early = std::get_if<EarlyExit>(&parsed)) {
      ADD_FAILURE() << early->out << early->err;
      return {};
    }
    return std::get<Args>(parsed);
  }

  // The error text of a usage error.
  static std::string Bad(const std::vector<const char*>& words) {
    const auto parsed = Parse(words);
    const auto* early = std::get_if<EarlyExit>(&parsed);
    if (early == nullptr) {
      ADD_FAILURE() << "accepted";
      return "";
    }
    EXPECT_EQ(early->code, ExitCode::kUsage);
    EXPECT_EQ(early->out, "");
    return early->err;
  }
};

TEST_F(ArgsTest, DefaultsAreTheLocalDaemonAndATable) {
  const Args args = Good({"tiers"});
  EXPECT_EQ(args.command, Command::kTiers);
  EXPECT_EQ(args.output, OutputFormat::kTable);
  EXPECT_EQ(args.endpoint, "127.0.0.1:7400");
  EXPECT_EQ(args.timeout, absl::Seconds(5));
  EXPECT_EQ(args.limit, 0u);
  EXPECT_EQ(args.page_size, 1000u);
}

TEST_F(ArgsTest, SharedOptionsStandBeforeOrAfterTheCommand) {
  for (const auto& words :
       {std::vector<const char*>{"-o", "json", "--timeout", "250ms", "--endpoint", "h:1",
                                 "describe", "s1"},
        {"describe", "s1", "-o", "json", "--timeout", "250ms", "--endpoint", "h:1"},
        {"describe", "-ojson", "s1", "--timeout=250ms", "--endpoint=h:1"},
        {"--output=json", "describe", "--timeout=250ms", "s1", "--endpoint", "h:1"}}) {
    const Args args = Good(words);
    EXPECT_EQ(args.command, Command::kDescribe);
    EXPECT_EQ(args.handle, "s1");
    EXPECT_EQ(args.output, OutputFormat::kJson);
    EXPECT_EQ(args.timeout, absl::Milliseconds(250));
    EXPECT_EQ(args.endpoint, "h:1");
  }
}

TEST_F(ArgsTest, SequencesTakesItsOptions) {
  const Args args = Good({"sequences", "--tenant", "acme", "--page-size", "7", "--limit", "9"});
  EXPECT_EQ(args.command, Command::kSequences);
  EXPECT_EQ(args.tenant, "acme");
  EXPECT_EQ(args.page_size, 7u);
  EXPECT_EQ(args.limit, 9u);
}

TEST_F(ArgsTest, FlagBeatsEnvironmentBeatsDefault) {
  ::setenv("TERRACE_ENDPOINT", "unix:/run/terrace.sock", 1);
  EXPECT_EQ(Good({"tiers"}).endpoint, "unix:/run/terrace.sock");
  EXPECT_EQ(Good({"tiers", "--endpoint", "h:1"}).endpoint, "h:1");
  ::setenv("TERRACE_ENDPOINT", "", 1);
  EXPECT_EQ(Good({"tiers"}).endpoint, "127.0.0.1:7400");
  ::setenv("TERRACE_ENDPOINT", "nonsense", 1);
  EXPECT_THAT(Bad({"tiers"}), HasSubstr("nonsense"));
}

TEST_F(ArgsTest, WrongUsageIsNamed) {
  struct Case {
    std::vector<const char*> words;
    const char* text;
  };
  const Case cases[] = {
      {{}, "tiers, sequences, describe or version"},
      {{"teirs"}, "teirs"},
      {{"tiers", "sequences"}, "sequences"},
      {{"tiers", "--tenant", "a"}, "--tenant"},
      {{"describe"}, "handle is required"},
      {{"describe", ""}, "handle"},
      {{"describe", "a", "b"}, "b"},
      {{"describe", "a\n"}, "expected printable UTF-8"},
      {{"describe", "\xff"}, "got \"\\xff\""},
      {{"sequences", "--tenant", "\xff"}, "got \"\\xff\""},
      {{"-o", "xml", "tiers"}, "got \"xml\", expected table or json"},
      {{"-o"}, "--output"},
      {{"tiers", "--timeout", "5"}, "expected a duration"},
      {{"tiers", "--timeout", "0s"}, "expected 1ms to 24h"},
      {{"tiers", "--timeout", "999us"}, "expected 1ms to 24h"},
      {{"tiers", "--timeout", "-1s"}, "expected 1ms to 24h"},
      {{"tiers", "--timeout", "86401s"}, "expected 1ms to 24h"},
      {{"tiers", "--timeout", "inf"}, "expected 1ms to 24h"},
      {{"sequences", "--page-size", "0"}, "from 1 to 1000"},
      {{"sequences", "--page-size", "1001"}, "from 1 to 1000"},
      {{"sequences", "--page-size", "many"}, "from 1 to 1000"},
      {{"sequences", "--limit", "0"}, "got \"0\", expected a number from 1"},
      {{"sequences", "--limit", "-1"}, "got \"-1\", expected a number from 1"},
      {{"sequences", "--limit", "18446744073709551616"}, "expected a number from 1"},
  };
  for (const Case& c : cases) EXPECT_THAT(Bad(c.words), HasSubstr(c.text));
}

TEST_F(ArgsTest, LimitsThemselvesAreAccepted) {
  EXPECT_EQ(Good({"tiers", "--timeout", "1ms"}).timeout, absl::Milliseconds(1));
  EXPECT_EQ(Good({"tiers", "--timeout", "24h"}).timeout, absl::Hours(24));
  EXPECT_EQ(Good({"sequences", "--page-size", "1"}).page_size, 1u);
  EXPECT_EQ(Good({"sequences", "--page-size", "1000"}).page_size, 1000u);
  EXPECT_EQ(Good({"sequences", "--limit", "1"}).limit, 1u);
  EXPECT_EQ(Good({"sequences", "--limit", "18446744073709551615"}).limit, UINT64_MAX);
}

TEST_F(ArgsTest, HelpOfEveryCommandTellsTheExitStatus) {
  for (const auto& words : {std::vector<const char*>{"--help"},
                            {"tiers", "--help"},
                            {"sequences", "-h"},
                            {"describe", "--help"},
                            {"version", "--help"}}) {
    const auto parsed = Parse(words);
    const auto* early = std::get_if<EarlyExit>(&parsed);
    ASSERT_NE(early, nullptr);
    EXPECT_EQ(early->code, ExitCode::kOk);
    EXPECT_EQ(early->err, "");
    for (const char* line : {"0  done", "1  the server refused", "2  wrong usage", "3  unavailable",
                             "4  not found", "5  connected"}) {
      EXPECT_THAT(early->out, HasSubstr(line));
    }
  }
}

}  // namespace
}  // namespace terrace::terracectl
