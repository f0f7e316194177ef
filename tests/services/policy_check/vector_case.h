// Cases for the tests of the policy check, as text and as values.
#ifndef TERRACE_TESTS_SERVICES_POLICY_CHECK_VECTOR_CASE_H_
#define TERRACE_TESTS_SERVICES_POLICY_CHECK_VECTOR_CASE_H_

#include <cstdint>
#include <string>

#include "attention/policy.h"
#include "services/policy_check/vector_file.h"

namespace terrace::testing {

struct CaseShape {
  int query_heads = 4;
  int kv_heads = 2;
  int tokens = 90;
  int head_dim = 16;
};

// Normal inputs by `seed`, and what the reference makes of them.
policy_check::VectorCase RandomCase(const CaseShape& shape, const attention::Policy& policy,
                                    uint64_t seed);

// Lets expect follow from the case's problem and policy.
void Expect(policy_check::VectorCase& vector);

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_SERVICES_POLICY_CHECK_VECTOR_CASE_H_
