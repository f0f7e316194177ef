// Random finite K, V and q that anybody can compute again: a function of seed, layer and position.
#ifndef TERRACE_TESTS_E2E_ROWS_H_
#define TERRACE_TESTS_E2E_ROWS_H_

#include <cstdint>
#include <string>

#include "terrace/v1/attention.pb.h"

namespace terrace::testing {

// Layers, heads and head_dim of a sequence; stored as bf16, so that what is stored is what is sent.
struct Shape {
  uint32_t layers = 3;
  uint32_t query_heads = 8;
  uint32_t kv_heads = 2;
  uint32_t head_dim = 32;

  uint64_t row_bytes() const { return uint64_t{2} * head_dim * sizeof(uint16_t); }
};

// A seed from the environment (TERRACE_TEST_SEED) or a random one; printed.
uint64_t TestSeed();

// The tokens of one text: every tensor is bf16.
class Rows {
 public:
  Rows(const Shape& shape, uint64_t seed) : shape_(shape), seed_(seed) {}

  const Shape& shape() const { return shape_; }
  // [n, kv_heads or query_heads, head_dim] of positions [position, position + n).
  v1::Tensor K(uint32_t layer, uint64_t position, uint32_t n) const;
  v1::Tensor V(uint32_t layer, uint64_t position, uint32_t n) const;
  v1::Tensor Q(uint32_t layer, uint64_t position, uint32_t n) const;
  // K then V of one KV head and position: what ReadRows serves.
  std::string Row(uint32_t layer, uint32_t kv_head, uint64_t position) const;

 private:
  v1::Tensor Make(uint32_t kind, uint32_t heads, uint32_t layer, uint64_t position,
                  uint32_t n) const;

  const Shape shape_;
  const uint64_t seed_;
};

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_E2E_ROWS_H_
