#include "tests/e2e/rows.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

namespace terrace::testing {
namespace {

enum Kind : uint32_t { kK, kV, kQ };

// SplitMix64.
uint64_t Next(uint64_t& state) {
  uint64_t x = state += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// bf16 of either sign and a magnitude of 2^-3 to 2.
uint16_t Element(uint64_t bits) {
  const uint64_t exponent = 124 + ((bits >> 8) & 3);
  return static_cast<uint16_t>((bits & 0x8000) | (exponent << 7) | (bits & 0x7f));
}

}  // namespace

uint64_t TestSeed() {
  static const uint64_t seed = [] {
    const char* given = std::getenv("TERRACE_TEST_SEED");
    const uint64_t chosen =
        given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
    std::printf("TERRACE_TEST_SEED=%llu\n", static_cast<unsigned long long>(chosen));
    return chosen;
  }();
  return seed;
}

v1::Tensor Rows::Make(uint32_t kind, uint32_t heads, uint32_t layer, uint64_t position,
                      uint32_t n) const {
  v1::Tensor tensor;
  tensor.set_dtype(v1::DTYPE_BFLOAT16);
  for (const uint32_t extent : {n, heads, shape_.head_dim}) tensor.add_shape(extent);
  std::string& data = *tensor.mutable_data();
  data.resize(size_t{n} * heads * shape_.head_dim * sizeof(uint16_t));
  uint16_t element[4];
  char* out = data.data();
  for (uint64_t token = position; token < position + n; ++token) {
    uint64_t state = seed_ ^ (token * 4 + kind) << 12 ^ layer;
    for (uint32_t i = 0; i < heads * shape_.head_dim; i += 4) {
      const uint64_t bits = Next(state);
      for (int e = 0; e < 4; ++e) element[e] = Element(bits >> (16 * e));
      std::memcpy(out, element, sizeof(element));
      out += sizeof(element);
    }
  }
  return tensor;
}

v1::Tensor Rows::K(uint32_t layer, uint64_t position, uint32_t n) const {
  return Make(kK, shape_.kv_heads, layer, position, n);
}

v1::Tensor Rows::V(uint32_t layer, uint64_t position, uint32_t n) const {
  return Make(kV, shape_.kv_heads, layer, position, n);
}

v1::Tensor Rows::Q(uint32_t layer, uint64_t position, uint32_t n) const {
  return Make(kQ, shape_.query_heads, layer, position, n);
}

std::string Rows::Row(uint32_t layer, uint32_t kv_head, uint64_t position) const {
  const size_t half = shape_.row_bytes() / 2;
  return K(layer, position, 1).data().substr(kv_head * half, half) +
         V(layer, position, 1).data().substr(kv_head * half, half);
}

}  // namespace terrace::testing
