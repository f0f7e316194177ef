#include "services/engine/step.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "services/engine/work_pool.h"

namespace terrace::engine {
namespace {

// What is worth waking a thread for.
constexpr size_t kShareBytes = size_t{512} << 10;

float LargestMagnitude(const TensorView& tensor, size_t count, WorkPool* pool) {
  const size_t element_bytes = attention::DtypeBytes(tensor.dtype);
  const size_t share = kShareBytes / element_bytes;
  const size_t shares = (count + share - 1) / share;
  if (pool == nullptr || shares <= 1) {
    return attention::LargestMagnitude(tensor.dtype, tensor.data.data(), count);
  }
  // Bits of floats that are not negative order as they do, NaN above all.
  std::vector<uint32_t> largest(shares);
  pool->ParallelFor(static_cast<int>(shares), [&](int i) {
    const size_t first = i * share;
    largest[i] = std::bit_cast<uint32_t>(attention::LargestMagnitude(
        tensor.dtype, tensor.data.data() + first * element_bytes, std::min(share, count - first)));
  });
  return std::bit_cast<float>(*std::max_element(largest.begin(), largest.end()));
}

}  // namespace

absl::StatusOr<int64_t> TensorRows(absl::string_view field, const TensorView& tensor) {
  if (tensor.shape.size() == 3 && tensor.shape[0] > 0) return tensor.shape[0];
  return absl::InvalidArgumentError(
      absl::StrCat(field, ".shape: got [", absl::StrJoin(tensor.shape, ", "),
                   "], expected [n, heads, head_dim] with n of at least 1"));
}

absl::StatusOr<FiniteTensor> CheckTensor(absl::string_view field, const TensorView& tensor,
                                         int64_t n, int heads, int dim, WorkPool* pool) {
  const bool shape_fits = tensor.shape.size() == 3 && tensor.shape[0] == n &&
                          tensor.shape[1] == static_cast<uint32_t>(heads) &&
                          tensor.shape[2] == static_cast<uint32_t>(dim);
  if (!shape_fits) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".shape: got [", absl::StrJoin(tensor.shape, ", "), "], expected [", n,
                     ", ", heads, ", ", dim, "]"));
  }
  const size_t count = static_cast<size_t>(n) * heads * dim;
  const size_t expected = count * attention::DtypeBytes(tensor.dtype);
  if (tensor.data.size() != expected) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".data: got ", tensor.data.size(), " bytes, expected ", expected,
                     " of ", std::string(attention::DtypeName(tensor.dtype))));
  }
  const float magnitude = LargestMagnitude(tensor, count, pool);
  if (!std::isfinite(magnitude)) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": holds NaN or infinity, expected finite numbers"));
  }
  return FiniteTensor{.dtype = tensor.dtype, .data = tensor.data.data(), .magnitude = magnitude};
}

absl::Status ReadTensor(absl::string_view field, const TensorView& tensor, int64_t n, int heads,
                        int dim, std::vector<float>* floats) {
  const absl::StatusOr<FiniteTensor> checked = CheckTensor(field, tensor, n, heads, dim);
  if (!checked.ok()) return checked.status();
  floats->resize(tensor.data.size() / attention::DtypeBytes(tensor.dtype));
  attention::ToFloat(checked->dtype, checked->data, floats->size(), floats->data());
  return absl::OkStatus();
}

TierRead& TierRead::operator+=(const TierRead& other) {
  rows += other.rows;
  row_bytes += other.row_bytes;
  index_bytes += other.index_bytes;
  sum_bytes += other.sum_bytes;
  physical_bytes += other.physical_bytes;
  return *this;
}

}  // namespace terrace::engine
