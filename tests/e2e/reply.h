// What a call answered: a status with the details that clients branch on, as they arrive.
#ifndef TERRACE_TESTS_E2E_REPLY_H_
#define TERRACE_TESTS_E2E_REPLY_H_

#include <gmock/gmock.h>

#include <map>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "google/rpc/status.pb.h"

namespace grpc {
class Status;
}  // namespace grpc

namespace terrace::testing {

struct Reply {
  absl::StatusCode code = absl::StatusCode::kOk;
  std::string message;
  // Of ErrorInfo; empty without one.
  std::string reason;
  std::map<std::string, std::string> metadata;
  // Of RetryInfo.
  std::optional<absl::Duration> retry_delay;

  bool ok() const { return code == absl::StatusCode::kOk; }
};

Reply ReplyOf(const google::rpc::Status& status);
Reply ReplyOf(const grpc::Status& status);
std::ostream& operator<<(std::ostream& out, const Reply& reply);

// The code, and all the words in the message.
MATCHER_P2(Refused, code, words, absl::StatusCodeToString(code)) {
  *result_listener << arg;
  if (arg.code != code) return false;
  for (const std::string& word : std::vector<std::string>(words)) {
    if (arg.message.find(word) != std::string::npos) continue;
    *result_listener << ", where \"" << word << "\" is missing";
    return false;
  }
  return true;
}

using Words = std::vector<std::string>;

}  // namespace terrace::testing

#define ASSERT_REPLY_OK(reply) ASSERT_TRUE((reply).ok()) << (reply)
#define EXPECT_REPLY_OK(reply) EXPECT_TRUE((reply).ok()) << (reply)

#endif  // TERRACE_TESTS_E2E_REPLY_H_
