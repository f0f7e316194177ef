// Files of golden vectors: inputs of single attention steps and what must come out.
//
//   {"format": 1, "notes": "...", "cases": [case, ...]}
//   case: {"name", "policy", "params": {...}, "q": [Hq][d], "k": [Hkv][S][d], "v": [Hkv][S][d],
//          "expect": {"selection": [Hkv][n], "output": [Hq][d],
//                     "channels": [Hkv][r], "alpha": [Hq], "tau": [Hq]}}   the last three optional
//
// Query head h reads KV head h / (Hq / Hkv), the last position is the current token, and lists of
// positions and channels ascend. Policies that are not built have arrays of their own.
#ifndef TERRACE_SERVICES_POLICY_CHECK_VECTOR_FILE_H_
#define TERRACE_SERVICES_POLICY_CHECK_VECTOR_FILE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attention/policy.h"
#include "attention/reference.h"

namespace terrace::policy_check {

struct VectorCase {
  std::string name;
  std::string policy_name;
  // A policy that exists but is not built: the case is skipped, and nothing below is read.
  bool skipped = false;
  // Why the case cannot be run, by name: an unknown policy, parameter or field, or a parameter out
  // of range. Nothing below is read then.
  absl::Status refused;
  attention::Policy policy;
  attention::reference::Problem problem;
  // channels, alpha and tau are empty where the file does not give them; score and lse always.
  attention::reference::Answer expect;
};

// NotFound when the file cannot be read; InvalidArgument names the file, the case and the field of
// what is malformed.
absl::StatusOr<std::vector<VectorCase>> ReadVectorFile(const std::string& path);

// As ReadVectorFile on the text of a file; errors do not name a file.
absl::StatusOr<std::vector<VectorCase>> ParseVectors(absl::string_view text);

}  // namespace terrace::policy_check

#endif  // TERRACE_SERVICES_POLICY_CHECK_VECTOR_FILE_H_
