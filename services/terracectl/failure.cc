#include "services/terracectl/failure.h"

#include "absl/strings/str_cat.h"
#include "services/terracectl/text_table.h"

namespace terrace::terracectl {
namespace {

std::string Hint(const Failure& failure) {
  const std::string timeout = absl::FormatDuration(failure.timeout);
  switch (failure.status.code()) {
    case absl::StatusCode::kUnavailable:
      if (failure.connected) {
        return "the daemon answers, but drains or lacks a shard; retry, or ask another one with "
               "--endpoint";
      }
      return "is the daemon running there? --endpoint or TERRACE_ENDPOINT names another one";
    case absl::StatusCode::kDeadlineExceeded:
      if (failure.connected) {
        return absl::StrCat("connected, but no answer within ", timeout, "; --timeout allows more");
      }
      return absl::StrCat("no connection within ", timeout,
                          "; is --endpoint right, does it speak plain text, and is it reachable "
                          "from here?");
    case absl::StatusCode::kNotFound:
      return "`terracectl sequences` lists the handles; closed sequences are gone";
    case absl::StatusCode::kUnimplemented:
      return "is this a Terrace daemon's admin address, of this version? --endpoint names another";
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return "terracectl sends no credentials; ask on a loopback or Unix socket address of the "
             "daemon";
    default:
      return "";
  }
}

}  // namespace

ExitCode ExitCodeOf(const Failure& failure) {
  switch (failure.status.code()) {
    case absl::StatusCode::kNotFound:
      return ExitCode::kNotFound;
    case absl::StatusCode::kUnavailable:
      return ExitCode::kUnavailable;
    case absl::StatusCode::kDeadlineExceeded:
      return failure.connected ? ExitCode::kDeadline : ExitCode::kUnavailable;
    default:
      return ExitCode::kFailed;
  }
}

std::string DescribeFailure(const Failure& failure) {
  const std::string message(failure.status.message());
  std::string text =
      absl::StrCat("terracectl: ", failure.endpoint, ": ",
                   absl::StatusCodeToString(failure.status.code()), ": ", Printable(message), "\n");
  const std::string hint = Hint(failure);
  if (!hint.empty()) absl::StrAppend(&text, "hint: ", hint, "\n");
  return text;
}

}  // namespace terrace::terracectl
