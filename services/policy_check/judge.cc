#include "services/policy_check/judge.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "services/policy_check/comparison.h"

namespace terrace::policy_check {

void Errors::Raise(const Errors& other) {
  // Nothing is less than any number.
  output = std::max(output, other.output);
  alpha = std::max(alpha, other.alpha);
  tau = std::max(tau, other.tau);
  stored_output = std::max(stored_output, other.stored_output);
  moved_rows = std::max(moved_rows, other.moved_rows);
}

Judge::Judge(const VectorCase& vector, const StoredCase& stored)
    : expect_(vector.expect),
      exact_(stored.format.exact()),
      given_(TruthOf(vector.policy, vector.problem, vector.problem.k)),
      stored_(TruthOf(vector.policy, stored.problem, stored.index_k)) {}

std::vector<std::string> Judge::CheckFile() const {
  attention::reference::Answer file = expect_;
  // What the file leaves open is not its claim.
  if (file.channels.empty()) file.channels = given_.answer.channels;
  if (file.alpha.empty()) file.alpha = given_.answer.alpha;
  if (file.tau.empty()) file.tau = given_.answer.tau;
  const Expectation reference = {.name = "the file itself against the reference",
                                 .truth = given_,
                                 .answer = given_.answer,
                                 .tolerance = Tolerance::fp32()};
  return Compare(reference, file, /*tells_tau=*/true).problems;
}

Verdict Judge::Check(const attention::reference::Answer& answer, bool tells_tau) const {
  const Expectation file = {.name = "against the file",
                            .truth = given_,
                            .answer = expect_,
                            .tolerance = exact_ ? Tolerance::fp32() : Tolerance::reduced(),
                            .moved_by_rounding = exact_ ? nullptr : &stored_.answer};
  const Expectation held = {.name = "against the reference on stored rows",
                            .truth = stored_,
                            .answer = stored_.answer,
                            .tolerance = Tolerance::fp32()};
  Comparison by_file = Compare(file, answer, tells_tau);
  Comparison by_rows = Compare(held, answer, tells_tau);
  Verdict verdict = {.problems = std::move(by_file.problems), .errors = by_file.errors};
  std::move(by_rows.problems.begin(), by_rows.problems.end(), std::back_inserter(verdict.problems));
  verdict.errors.stored_output = by_rows.errors.output;
  return verdict;
}

}  // namespace terrace::policy_check
