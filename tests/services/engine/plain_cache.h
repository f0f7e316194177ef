// A KV cache as plain arrays: what tests append, and what they judge an engine's answers by.
#ifndef TERRACE_TESTS_SERVICES_ENGINE_PLAIN_CACHE_H_
#define TERRACE_TESTS_SERVICES_ENGINE_PLAIN_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention/policy.h"
#include "attention/reference.h"
#include "services/engine/geometry.h"

namespace terrace::testing {

// K and V of consecutive positions of one layer, [n, kv_heads, head_dim] each.
struct KvRows {
  int64_t n = 0;
  std::vector<float> k;
  std::vector<float> v;
};

// Rows that follow from (seed, layer, position) alone, so that a second sequence can be given the
// same ones in other portions.
KvRows MakeRows(const engine::Geometry& geometry, uint64_t seed, int layer, int64_t position,
                int64_t n);
// Queries of positions [position, position + n): [n, query_heads, head_dim].
std::vector<float> MakeQueries(const engine::Geometry& geometry, uint64_t seed, int layer,
                               int64_t position, int64_t n);

// Values as they read after they were stored.
std::vector<float> Rounded(attention::Dtype storage, const std::vector<float>& values);

// Not thread-safe.
class PlainCache {
 public:
  explicit PlainCache(const engine::Geometry& geometry);

  void Append(int layer, const KvRows& rows);
  // Cuts every layer.
  void Truncate(int64_t length);
  int64_t length(int layer) const { return lengths_[layer]; }

  // Rows as stored.
  KvRows RowsAt(int layer, int64_t position, int64_t n) const;

  // What one query at position visible - 1 should get. q: [query_heads, head_dim].
  attention::reference::Answer Attend(int layer, int64_t visible, const float* q,
                                      const attention::Policy& policy) const;
  // Row of one position in storage dtype: K then V.
  std::vector<std::byte> StoredRow(int layer, int head, int64_t position) const;

 private:
  attention::reference::Problem ProblemOf(int layer, int64_t visible, const float* q) const;

  engine::Geometry geometry_;
  std::vector<int64_t> lengths_;
  // [layers][tokens, kv_heads, head_dim], as stored.
  std::vector<std::vector<float>> k_;
  std::vector<std::vector<float>> v_;
};

// |got - expected| / |expected|, Euclidean.
double RelativeError(const std::vector<double>& expected, const float* got);

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_SERVICES_ENGINE_PLAIN_CACHE_H_
