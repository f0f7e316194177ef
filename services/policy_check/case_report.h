// What terrace-policy-check prints: a line per case, aligned, and the counts.
#ifndef TERRACE_SERVICES_POLICY_CHECK_CASE_REPORT_H_
#define TERRACE_SERVICES_POLICY_CHECK_CASE_REPORT_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "services/policy_check/judge.h"

namespace terrace::policy_check {

// Counts the cases that it writes lines for.
class CaseReport {
 public:
  // `name_width` is that of the longest name.
  explicit CaseReport(size_t name_width);

  // All lines end with a newline.
  std::string Header(absl::string_view title) const;
  std::string Skipped(absl::string_view name, absl::string_view policy);
  // "-" where nothing was compared.
  std::string Passed(absl::string_view name, const Errors& errors);
  // The first problem on the line of the case, further ones below it.
  std::string Failed(absl::string_view name, const std::vector<std::string>& problems);
  // "N passed, N failed, N skipped".
  std::string Summary() const;

  int failed() const { return failed_; }

 private:
  std::string Line(absl::string_view name, absl::string_view rest) const;

  const int name_width_;
  int passed_ = 0;
  int failed_ = 0;
  int skipped_ = 0;
};

}  // namespace terrace::policy_check

#endif  // TERRACE_SERVICES_POLICY_CHECK_CASE_REPORT_H_
