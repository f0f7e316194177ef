#include "tests/services/engine/plain_cache.h"

#include <cmath>
#include <utility>

namespace terrace::testing {
namespace {

enum class Kind : uint64_t { kKey = 1, kValue = 2, kQuery = 3 };

// A bijection whose outputs look random (the finalizer of SplitMix64).
uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// About normal: the sum of eight uniform bytes, to unit variance.
float Bell(uint64_t bits) {
  int sum = 0;
  for (int i = 0; i < 8; ++i) sum += static_cast<int>(bits >> (8 * i) & 0xff);
  // The low bits keep values of different positions apart.
  const auto fine = static_cast<float>(Mix(bits) & 0xffff) / 65536.0F;
  return (static_cast<float>(sum) - 1020.0F + fine) / 209.0F;
}

std::vector<float> Values(Kind kind, uint64_t seed, int layer, int64_t position, int64_t n,
                          size_t width) {
  std::vector<float> values;
  values.reserve(n * width);
  for (int64_t i = 0; i < n; ++i) {
    uint64_t state = Mix(seed ^ static_cast<uint64_t>(kind) << 60);
    state = Mix(state ^ static_cast<uint64_t>(layer));
    state = Mix(state ^ static_cast<uint64_t>(position + i));
    for (size_t c = 0; c < width; ++c) values.push_back(Bell(Mix(state + c)));
  }
  return values;
}

}  // namespace

KvRows MakeRows(const engine::Geometry& geometry, uint64_t seed, int layer, int64_t position,
                int64_t n) {
  const auto width = static_cast<size_t>(geometry.kv_heads) * geometry.head_dim;
  return {.n = n,
          .k = Values(Kind::kKey, seed, layer, position, n, width),
          .v = Values(Kind::kValue, seed, layer, position, n, width)};
}

std::vector<float> MakeQueries(const engine::Geometry& geometry, uint64_t seed, int layer,
                               int64_t position, int64_t n) {
  const auto width = static_cast<size_t>(geometry.query_heads) * geometry.head_dim;
  return Values(Kind::kQuery, seed, layer, position, n, width);
}

std::vector<float> Rounded(attention::Dtype storage, const std::vector<float>& values) {
  std::vector<std::byte> stored(values.size() * attention::DtypeBytes(storage));
  attention::FromFloat(storage, values.data(), values.size(), stored.data());
  std::vector<float> rounded(values.size());
  attention::ToFloat(storage, stored.data(), values.size(), rounded.data());
  return rounded;
}

PlainCache::PlainCache(const engine::Geometry& geometry)
    : geometry_(geometry), lengths_(geometry.layers, 0), k_(geometry.layers), v_(geometry.layers) {}

void PlainCache::Append(int layer, const KvRows& rows) {
  const std::vector<float> k = Rounded(geometry_.storage, rows.k);
  const std::vector<float> v = Rounded(geometry_.storage, rows.v);
  k_[layer].insert(k_[layer].end(), k.begin(), k.end());
  v_[layer].insert(v_[layer].end(), v.begin(), v.end());
  lengths_[layer] += rows.n;
}

void PlainCache::Truncate(int64_t length) {
  const auto width = static_cast<size_t>(geometry_.kv_heads) * geometry_.head_dim;
  for (int layer = 0; layer < geometry_.layers; ++layer) {
    k_[layer].resize(length * width);
    v_[layer].resize(length * width);
    lengths_[layer] = length;
  }
}

KvRows PlainCache::RowsAt(int layer, int64_t position, int64_t n) const {
  const int64_t width = int64_t{geometry_.kv_heads} * geometry_.head_dim;
  const auto cut = [&](const std::vector<float>& all) {
    return std::vector<float>(all.begin() + position * width, all.begin() + (position + n) * width);
  };
  return {.n = n, .k = cut(k_[layer]), .v = cut(v_[layer])};
}

attention::reference::Problem PlainCache::ProblemOf(int layer, int64_t visible,
                                                    const float* q) const {
  attention::reference::Problem problem;
  problem.query_heads = geometry_.query_heads;
  problem.kv_heads = geometry_.kv_heads;
  problem.tokens = static_cast<int>(visible);
  problem.head_dim = geometry_.head_dim;
  problem.scale = geometry_.scale;
  const auto dim = static_cast<size_t>(geometry_.head_dim);
  problem.q.assign(q, q + geometry_.query_heads * dim);
  for (int head = 0; head < geometry_.kv_heads; ++head) {
    for (int64_t t = 0; t < visible; ++t) {
      const size_t row = (t * geometry_.kv_heads + head) * dim;
      problem.k.insert(problem.k.end(), &k_[layer][row], &k_[layer][row] + dim);
      problem.v.insert(problem.v.end(), &v_[layer][row], &v_[layer][row] + dim);
    }
  }
  return problem;
}

attention::reference::Answer PlainCache::Attend(int layer, int64_t visible, const float* q,
                                                const attention::Policy& policy) const {
  return attention::reference::Attend(ProblemOf(layer, visible, q), policy);
}

std::vector<std::byte> PlainCache::StoredRow(int layer, int head, int64_t position) const {
  const auto dim = static_cast<size_t>(geometry_.head_dim);
  const size_t row = (position * geometry_.kv_heads + head) * dim;
  std::vector<std::byte> stored(geometry_.row_bytes());
  attention::FromFloat(geometry_.storage, &k_[layer][row], dim, stored.data());
  attention::FromFloat(geometry_.storage, &v_[layer][row], dim, &stored[stored.size() / 2]);
  return stored;
}

double RelativeError(const std::vector<double>& expected, const float* got) {
  double difference = 0;
  double size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double off = expected[i] - static_cast<double>(got[i]);
    difference += off * off;
    size += expected[i] * expected[i];
  }
  return std::sqrt(difference / size);
}

}  // namespace terrace::testing
