// What exact attention over a given selection gives, in fp64.
#ifndef TERRACE_SERVICES_POLICY_CHECK_SELECTION_TRUTH_H_
#define TERRACE_SERVICES_POLICY_CHECK_SELECTION_TRUTH_H_

#include <cstdint>
#include <vector>

#include "attention/policy.h"
#include "attention/reference.h"

namespace terrace::policy_check {

// Where an answer comes from: inputs, the keys that approximate scores read, and what
// attention::reference answers to them.
struct Truth {
  attention::Policy policy;
  attention::reference::Problem problem;
  // Unused for dense.
  std::vector<double> index_k;
  attention::reference::Answer answer;
};

// Runs the reference.
Truth TruthOf(const attention::Policy& policy, const attention::reference::Problem& problem,
              const std::vector<double>& index_k);

// The query heads of one group.
struct GroupAnswer {
  std::vector<double> alpha;   // [group]
  std::vector<double> output;  // [group][head_dim]
};

// The answer of the query heads of one KV head, had the policy selected `selection` (ascending, not
// empty). Channels and tau are truth.answer's.
GroupAnswer AnswerFor(const Truth& truth, int kv_head, const std::vector<uint32_t>& selection);

}  // namespace terrace::policy_check

#endif  // TERRACE_SERVICES_POLICY_CHECK_SELECTION_TRUTH_H_
