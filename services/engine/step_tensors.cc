#include "services/engine/step_tensors.h"

#include "absl/strings/str_cat.h"

namespace terrace::engine {

absl::StatusOr<StepTensors> ReadStepTensors(const StepRequest& request, const Geometry& geometry,
                                            int64_t max_queries) {
  const absl::StatusOr<int64_t> queries = TensorRows("q", request.q);
  if (!queries.ok()) return queries.status();
  if (*queries > max_queries) {
    return absl::InvalidArgumentError(
        absl::StrCat("q.shape: got ", *queries, " queries, expected at most ", max_queries));
  }
  if (!request.token_ids.empty() && static_cast<int64_t>(request.token_ids.size()) != *queries) {
    return absl::InvalidArgumentError(absl::StrCat("token_ids: got ", request.token_ids.size(),
                                                   ", expected ", *queries, " or none"));
  }
  StepTensors tensors = {.queries = *queries, .q = {}, .k = {}, .v = {}};
  absl::Status status =
      ReadTensor("q", request.q, *queries, geometry.query_heads, geometry.head_dim, &tensors.q);
  if (!status.ok()) return status;
  if (request.k.absent() && request.v.absent()) return tensors;
  absl::StatusOr<FiniteTensor> k =
      CheckTensor("k", request.k, *queries, geometry.kv_heads, geometry.head_dim);
  if (!k.ok()) return k.status();
  absl::StatusOr<FiniteTensor> v =
      CheckTensor("v", request.v, *queries, geometry.kv_heads, geometry.head_dim);
  if (!v.ok()) return v.status();
  tensors.k = *k;
  tensors.v = *v;
  return tensors;
}

}  // namespace terrace::engine
