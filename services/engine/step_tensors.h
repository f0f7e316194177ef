// The tensors of a step, checked, and queries as floats.
#ifndef TERRACE_SERVICES_ENGINE_STEP_TENSORS_H_
#define TERRACE_SERVICES_ENGINE_STEP_TENSORS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "services/engine/geometry.h"
#include "services/engine/step.h"

namespace terrace::engine {

struct StepTensors {
  int64_t queries = 0;
  // [queries, query_heads, head_dim].
  std::vector<float> q;
  // [queries, kv_heads, head_dim], in the request's memory; null for a step that only reads.
  FiniteTensor k;
  FiniteTensor v;

  bool appends() const { return k.data != nullptr; }
};

// InvalidArgument names the field, what was got and what was expected.
absl::StatusOr<StepTensors> ReadStepTensors(const StepRequest& request, const Geometry& geometry,
                                            int64_t max_queries);

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_STEP_TENSORS_H_
