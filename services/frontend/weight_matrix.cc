#include "services/frontend/weight_matrix.h"

#include <cblas.h>

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace terrace::frontend {
namespace {

// Below this many products a hand-over to another thread costs more than it saves.
constexpr int64_t kProductsPerThreadMin = 1 << 20;

// Workers share a product out; BLAS must not start threads of its own inside them.
void UseOneBlasThread() {
  static const bool once = [] {
    openblas_set_num_threads(1);
    return true;
  }();
  static_cast<void>(once);
}

}  // namespace

absl::StatusOr<WeightMatrix> WeightMatrix::FromTensor(const TensorView& tensor) {
  if (tensor.shape.size() != 2) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", tensor.name, ": shape ",
                                                   ShapeText(tensor.shape), ", a matrix expected"));
  }
  WeightMatrix matrix;
  matrix.rows_ = tensor.shape[0];
  matrix.cols_ = tensor.shape[1];
  matrix.weights_.resize(static_cast<size_t>(tensor.elements()));
  if (absl::Status status = ReadFloats(tensor, absl::MakeSpan(matrix.weights_)); !status.ok()) {
    return status;
  }
  return matrix;
}

void WeightMatrix::CopyRow(int64_t row, float* out) const {
  std::copy_n(weights_.data() + row * cols_, cols_, out);
}

void WeightMatrix::Multiply(const float* x, int64_t tokens, float* y, Workers& workers) const {
  UseOneBlasThread();
  const int cols = static_cast<int>(cols_);
  auto multiply = [&](int64_t first_row, int64_t end_row) {
    const int count = static_cast<int>(end_row - first_row);
    if (count == 0) return;
    const float* weights = weights_.data() + first_row * cols_;
    if (tokens == 1) {
      cblas_sgemv(CblasRowMajor, CblasNoTrans, count, cols, 1.0F, weights, cols, x, 1, 0.0F,
                  y + first_row, 1);
    } else {
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(tokens), count, cols,
                  1.0F, x, cols, weights, cols, 0.0F, y + first_row, static_cast<int>(rows_));
    }
  };
  if (rows_ * cols_ * tokens < kProductsPerThreadMin * workers.threads()) {
    multiply(0, rows_);
  } else {
    workers.Run(rows_, multiply);
  }
}

}  // namespace terrace::frontend
