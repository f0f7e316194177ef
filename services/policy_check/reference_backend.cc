#include "services/policy_check/backend.h"
#include "services/policy_check/selection_truth.h"

namespace terrace::policy_check {
namespace {

class ReferenceBackend final : public Backend {
 public:
  absl::StatusOr<std::vector<Run>> Answer(const VectorCase& vector,
                                          const StoredCase& stored) override {
    const Truth truth = stored.format.exact()
                            ? TruthOf(vector.policy, vector.problem, vector.problem.k)
                            : TruthOf(vector.policy, stored.problem, stored.index_k);
    return std::vector<Run>{{.label = "", .answer = truth.answer}};
  }
};

}  // namespace

std::unique_ptr<Backend> MakeReferenceBackend() { return std::make_unique<ReferenceBackend>(); }

}  // namespace terrace::policy_check
