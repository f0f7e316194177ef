// Whether an answer is right. Three statements are checked about every case:
//
//  1. The file agrees with attention::reference on the inputs as given. Otherwise a wrong file
//  could
//     hide behind the allowances of statement 3.
//  2. The answer agrees with the reference on what the backend holds: rows rounded to the storage
//     dtype, approximate scores from the decoded index (StoredCase, whose rounding is checked on
//     its own). Rounding is no excuse here, so the fp32 tolerances hold for every format.
//  3. The answer agrees with the file. With fp32 rows and an exact index by the same tolerances,
//     otherwise by those of reduced(). A row chosen otherwise than in the file then lies within the
//     band, or is one that the reference of statement 2 chooses likewise: rounding moved it, and
//     not the backend.
//
// A selection may differ from the expected one in rows whose group score, in fp64, lies within the
// band around the k-th; sinks and window never. Where it does, alpha and output are compared with
// exact attention over the rows that were really chosen, so that no head goes unjudged.
#ifndef TERRACE_SERVICES_POLICY_CHECK_JUDGE_H_
#define TERRACE_SERVICES_POLICY_CHECK_JUDGE_H_

#include <optional>
#include <string>
#include <vector>

#include "attention/reference.h"
#include "services/policy_check/selection_truth.h"
#include "services/policy_check/stored_case.h"
#include "services/policy_check/vector_file.h"

namespace terrace::policy_check {

struct Tolerance {
  // Relative L2 error over all heads of a case.
  double output = 0;
  // Absolute.
  double alpha = 0;
  // Relative; a tau of 0 has none.
  double tau = 0;
  // Around the k-th group score, relative.
  double band = 0;

  static Tolerance fp32() { return {.output = 1e-5, .alpha = 1e-5, .tau = 1e-5, .band = 1e-5}; }
  static Tolerance reduced() { return {.output = 1e-2, .alpha = 1e-2, .tau = 1e-5, .band = 1e-2}; }
};

// The largest errors met, in the units of Tolerance; none where nothing was compared.
struct Errors {
  std::optional<double> output;
  std::optional<double> alpha;
  std::optional<double> tau;
  // Of statement 2.
  std::optional<double> stored_output;
  // Rows selected that the file does not have, all of them allowed.
  int moved_rows = 0;

  void Raise(const Errors& other);
};

struct Verdict {
  // What is wrong, one sentence each; none for a right answer.
  std::vector<std::string> problems;
  Errors errors = {};
};

// Judges the answers to one case.
class Judge {
 public:
  // Requires: `vector` is neither skipped nor refused, and `stored` was made of its problem.
  Judge(const VectorCase& vector, const StoredCase& stored);

  // The reference's answers to the inputs as given, and to what is stored.
  const attention::reference::Answer& given() const { return given_.answer; }
  const attention::reference::Answer& stored() const { return stored_.answer; }

  // Statement 1.
  std::vector<std::string> CheckFile() const;
  // Statements 2 and 3. channels are empty for dense. Without `tells_tau` answer.tau is not read.
  Verdict Check(const attention::reference::Answer& answer, bool tells_tau) const;

 private:
  const attention::reference::Answer expect_;
  const bool exact_;
  const Truth given_;
  const Truth stored_;
};

}  // namespace terrace::policy_check

#endif  // TERRACE_SERVICES_POLICY_CHECK_JUDGE_H_
