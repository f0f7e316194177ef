#include "tests/services/policy_check/vector_case.h"

#include <random>
#include <vector>

namespace terrace::testing {
namespace {

std::vector<double> Normal(size_t count, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  std::vector<double> values(count);
  for (double& value : values) value = normal(random);
  return values;
}

}  // namespace

policy_check::VectorCase RandomCase(const CaseShape& shape, const attention::Policy& policy,
                                    uint64_t seed) {
  std::mt19937_64 random(seed);
  policy_check::VectorCase vector;
  vector.name = "random";
  vector.policy_name = std::holds_alternative<attention::DensePolicy>(policy) ? "dense" : "sparq";
  vector.policy = policy;
  attention::reference::Problem& problem = vector.problem;
  problem.query_heads = shape.query_heads;
  problem.kv_heads = shape.kv_heads;
  problem.tokens = shape.tokens;
  problem.head_dim = shape.head_dim;
  const auto dim = static_cast<size_t>(shape.head_dim);
  problem.q = Normal(shape.query_heads * dim, random);
  problem.k = Normal(shape.kv_heads * shape.tokens * dim, random);
  problem.v = Normal(shape.kv_heads * shape.tokens * dim, random);
  Expect(vector);
  return vector;
}

void Expect(policy_check::VectorCase& vector) {
  vector.expect = Attend(vector.problem, vector.policy);
  vector.expect.score.clear();
  vector.expect.lse.clear();
}

}  // namespace terrace::testing
