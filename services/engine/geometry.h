// Shape of one model's KV cache.
#ifndef TERRACE_SERVICES_ENGINE_GEOMETRY_H_
#define TERRACE_SERVICES_ENGINE_GEOMETRY_H_

#include "absl/status/status.h"
#include "attention/head_shape.h"

namespace terrace::engine {

struct Geometry {
  int layers = 0;
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  attention::Dtype storage = attention::Dtype::kBFloat16;
  // Factor on q·k before the softmax. 0 becomes 1/sqrt(head_dim) by Normalize.
  float scale = 0.0F;

  int group() const { return query_heads / kv_heads; }
  attention::HeadShape head_shape() const {
    return {.head_dim = head_dim, .group = group(), .dtype = storage, .scale = scale};
  }
  size_t row_bytes() const { return head_shape().row_bytes(); }

  // InvalidArgument names the field, what was got and what is allowed.
  absl::Status Validate() const;
  // Replaces defaults by what they mean. Requires: Validate() is OK.
  void Normalize();

  friend bool operator==(const Geometry&, const Geometry&) = default;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_GEOMETRY_H_
