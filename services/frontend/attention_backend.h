// Where a model runner gets its attention from.
#ifndef TERRACE_SERVICES_FRONTEND_ATTENTION_BACKEND_H_
#define TERRACE_SERVICES_FRONTEND_ATTENTION_BACKEND_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace terrace::frontend {

// Keeps the KV cache of one token stream and attends over it. Not thread-safe.
class AttentionBackend {
 public:
  virtual ~AttentionBackend() = default;

  // Appends k and v of n tokens at positions [position, position + n) of `layer`, then attends:
  // query i sees positions [0, position + i]. token_ids: [n]. q: [n][query_heads][head_dim],
  // k, v: [n][kv_heads][head_dim], RoPE applied. out: [n][query_heads][head_dim].
  // Layers come in order 0, 1, ... for each run of tokens. After an error `out` is unspecified.
  virtual absl::Status Attend(int layer, int64_t position, absl::Span<const uint32_t> token_ids,
                              absl::Span<const float> q, absl::Span<const float> k,
                              absl::Span<const float> v, absl::Span<float> out) = 0;
};

}  // namespace terrace::frontend

#endif  // TERRACE_SERVICES_FRONTEND_ATTENTION_BACKEND_H_
