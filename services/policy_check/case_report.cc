#include "services/policy_check/case_report.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace terrace::policy_check {
namespace {

constexpr size_t kShownProblems = 8;
// Room for "skipped:".
constexpr int kVerdictWidth = 8;

std::string Number(std::optional<double> error) {
  return error.has_value() ? absl::StrFormat("%.1e", *error) : "-";
}

std::string Columns(absl::string_view verdict, absl::string_view output, absl::string_view stored,
                    absl::string_view alpha, absl::string_view tau, absl::string_view moved) {
  return absl::StrFormat("%-*s  %-8s  %-8s  %-8s  %-8s  %s", kVerdictWidth, verdict, output, stored,
                         alpha, tau, moved);
}

}  // namespace

CaseReport::CaseReport(size_t name_width)
    : name_width_(static_cast<int>(std::max<size_t>(name_width, 4))) {}

std::string CaseReport::Line(absl::string_view name, absl::string_view rest) const {
  return absl::StrFormat("  %-*s  %s\n", name_width_, name, rest);
}

std::string CaseReport::Header(absl::string_view title) const {
  return absl::StrCat(
      title, "\n", Line("case", Columns("verdict", "output", "stored", "alpha", "tau", "moved")));
}

std::string CaseReport::Skipped(absl::string_view name, absl::string_view policy) {
  ++skipped_;
  return Line(name, absl::StrCat("skipped: policy ", policy, " is not built"));
}

std::string CaseReport::Passed(absl::string_view name, const Errors& errors) {
  ++passed_;
  return Line(name,
              Columns("passed", Number(errors.output), Number(errors.stored_output),
                      Number(errors.alpha), Number(errors.tau), absl::StrCat(errors.moved_rows)));
}

std::string CaseReport::Failed(absl::string_view name, const std::vector<std::string>& problems) {
  ++failed_;
  std::string text;
  for (size_t i = 0; i < std::min(problems.size(), kShownProblems); ++i) {
    const std::string problem = absl::StrReplaceAll(problems[i], {{"\n", "\n    "}});
    absl::StrAppend(&text, i == 0 ? Line(name, absl::StrCat("failed: ", problem))
                                  : Line("", absl::StrCat("        ", problem)));
  }
  if (problems.size() > kShownProblems) {
    absl::StrAppend(
        &text, Line("", absl::StrCat("        and ", problems.size() - kShownProblems, " more")));
  }
  return text;
}

std::string CaseReport::Summary() const {
  return absl::StrCat(passed_, " passed, ", failed_, " failed, ", skipped_, " skipped\n");
}

}  // namespace terrace::policy_check
