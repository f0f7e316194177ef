#include "services/engine/geometry.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace terrace::engine {
namespace {

absl::Status CheckRange(const char* field, int got, int low, int high) {
  if (got >= low && got <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("geometry.", field, ": got ", got, ", expected ", low, " to ", high));
}

}  // namespace

absl::Status Geometry::Validate() const {
  absl::Status status = CheckRange("layers", layers, 1, 1024);
  if (status.ok()) status = CheckRange("query_heads", query_heads, 1, 1024);
  if (status.ok()) status = CheckRange("kv_heads", kv_heads, 1, 1024);
  if (status.ok()) status = CheckRange("head_dim", head_dim, 8, 512);
  if (!status.ok()) return status;
  if (query_heads % kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("geometry.query_heads: got ", query_heads,
                                                   ", expected a multiple of kv_heads ", kv_heads));
  }
  if (head_dim % 8 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("geometry.head_dim: got ", head_dim, ", expected a multiple of 8"));
  }
  if (!std::isfinite(scale) || scale < 0.0F) {
    return absl::InvalidArgumentError(absl::StrCat("geometry.softmax_scale: got ", scale,
                                                   ", expected a positive number, or 0 for "
                                                   "1/sqrt(head_dim)"));
  }
  return absl::OkStatus();
}

void Geometry::Normalize() {
  if (scale == 0.0F) scale = 1.0F / std::sqrt(static_cast<float>(head_dim));
}

}  // namespace terrace::engine
