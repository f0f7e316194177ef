// gMock matchers for absl::Status and absl::StatusOr: IsOk(), StatusIs(code[, message matcher]).
#ifndef TERRACE_TESTS_STATUS_MATCHERS_H_
#define TERRACE_TESTS_STATUS_MATCHERS_H_

#include <gmock/gmock.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace terrace::testing {

inline const absl::Status& GetStatus(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& GetStatus(const absl::StatusOr<T>& status) {
  return status.status();
}

MATCHER(IsOk, "is OK") {
  *result_listener << GetStatus(arg).ToString();
  return GetStatus(arg).ok();
}

MATCHER_P(StatusIs, code, "has code " + absl::StatusCodeToString(code)) {
  *result_listener << GetStatus(arg).ToString();
  return GetStatus(arg).code() == code;
}

MATCHER_P2(StatusIs, code, message, "has code " + absl::StatusCodeToString(code)) {
  *result_listener << GetStatus(arg).ToString();
  return GetStatus(arg).code() == code &&
         ::testing::ExplainMatchResult(message, std::string(GetStatus(arg).message()),
                                       result_listener);
}

}  // namespace terrace::testing

#define ASSERT_OK(expr) ASSERT_THAT((expr), ::terrace::testing::IsOk())
#define EXPECT_OK(expr) EXPECT_THAT((expr), ::terrace::testing::IsOk())

#endif  // TERRACE_TESTS_STATUS_MATCHERS_H_
