// One answer against one expectation.
#ifndef TERRACE_SERVICES_POLICY_CHECK_COMPARISON_H_
#define TERRACE_SERVICES_POLICY_CHECK_COMPARISON_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "services/policy_check/judge.h"
#include "services/policy_check/selection_truth.h"

namespace terrace::policy_check {

// What an answer is compared with.
struct Expectation {
  // Begins every problem: "the file".
  absl::string_view name;
  // Gives the group scores, and what follows from a selection that differs within the band.
  const Truth& truth;
  // The expected values; empty channels, tau and alpha are not compared.
  const attention::reference::Answer& answer;
  Tolerance tolerance;
  // When set, rows outside the band may differ where this answer chooses likewise.
  const attention::reference::Answer* moved_by_rounding = nullptr;
};

struct Comparison {
  std::vector<std::string> problems;
  // Without stored_output.
  Errors errors = {};
};

Comparison Compare(const Expectation& expectation, const attention::reference::Answer& got,
                   bool tells_tau);

}  // namespace terrace::policy_check

#endif  // TERRACE_SERVICES_POLICY_CHECK_COMPARISON_H_
