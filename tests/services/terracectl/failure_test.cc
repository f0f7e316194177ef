#include "services/terracectl/failure.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace terrace::terracectl {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

Failure Make(absl::StatusCode code, bool connected) {
  return {absl::Status(code, "why"), "db-7:7400", absl::Seconds(5), connected};
}

TEST(Failure, EachCodeHasItsExitStatus) {
  struct Case {
    absl::StatusCode code;
    bool connected;
    ExitCode exit;
  };
  const Case cases[] = {
      {absl::StatusCode::kInvalidArgument, true, ExitCode::kFailed},
      {absl::StatusCode::kInternal, true, ExitCode::kFailed},
      {absl::StatusCode::kUnimplemented, true, ExitCode::kFailed},
      {absl::StatusCode::kNotFound, true, ExitCode::kNotFound},
      {absl::StatusCode::kUnavailable, true, ExitCode::kUnavailable},
      {absl::StatusCode::kUnavailable, false, ExitCode::kUnavailable},
      {absl::StatusCode::kDeadlineExceeded, true, ExitCode::kDeadline},
      {absl::StatusCode::kDeadlineExceeded, false, ExitCode::kUnavailable},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(ExitCodeOf(Make(c.code, c.connected)), c.exit)
        << absl::StatusCodeToString(c.code) << " connected " << c.connected;
  }
}

TEST(Failure, TextNamesEndpointCodeAndMessage) {
  EXPECT_EQ(DescribeFailure(Make(absl::StatusCode::kInternal, true)),
            "terracectl: db-7:7400: INTERNAL: why\n");
}

TEST(Failure, HintDependsOnWhetherAServerAnswered) {
  const auto hint = [](absl::StatusCode code, bool connected) {
    return DescribeFailure(Make(code, connected));
  };
  EXPECT_THAT(hint(absl::StatusCode::kUnavailable, false), HasSubstr("\nhint: is the daemon run"));
  EXPECT_THAT(hint(absl::StatusCode::kUnavailable, true), HasSubstr("\nhint: the daemon answers"));
  EXPECT_THAT(hint(absl::StatusCode::kDeadlineExceeded, false),
              HasSubstr("\nhint: no connection within 5s"));
  EXPECT_THAT(hint(absl::StatusCode::kDeadlineExceeded, true),
              HasSubstr("\nhint: connected, but no answer within 5s"));
}

TEST(Failure, MessageOfAServerStaysOnItsLine) {
  Failure failure = Make(absl::StatusCode::kInternal, true);
  failure.status = absl::InternalError("bad\nhint: \x1b[31mpay here");
  EXPECT_EQ(DescribeFailure(failure),
            "terracectl: db-7:7400: INTERNAL: bad\\x0ahint: \\x1b[31mpay here\n");
}

}  // namespace
}  // namespace terrace::terracectl
