// A weight matrix of a model and its product with activations.
#ifndef TERRACE_SERVICES_FRONTEND_WEIGHT_MATRIX_H_
#define TERRACE_SERVICES_FRONTEND_WEIGHT_MATRIX_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "services/frontend/safetensors.h"
#include "services/frontend/workers.h"

namespace terrace::frontend {

// WeightMatrix holds W [rows][cols] in fp32, whatever the checkpoint's dtype, for BLAS. Immutable;
// move-only in practice (copies are expensive).
class WeightMatrix {
 public:
  WeightMatrix() = default;
  // InvalidArgument if the tensor is not two-dimensional or its dtype is none of F32, BF16, F16.
  static absl::StatusOr<WeightMatrix> FromTensor(const TensorView& tensor);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }

  // Writes row `row` as floats to out[cols].
  void CopyRow(int64_t row, float* out) const;

  // y[t][r] = Σ_c W[r][c] · x[t][c].  x: [tokens][cols], y: [tokens][rows].
  // The same operands give the same bits; one token alone and in a chunk agree to rounding.
  void Multiply(const float* x, int64_t tokens, float* y, Workers& workers) const;

 private:
  int64_t rows_ = 0;
  int64_t cols_ = 0;
  std::vector<float> weights_;  // [rows][cols]
};

}  // namespace terrace::frontend

#endif  // TERRACE_SERVICES_FRONTEND_WEIGHT_MATRIX_H_
