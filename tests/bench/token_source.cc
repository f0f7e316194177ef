#include "tests/bench/token_source.h"

#include <algorithm>
#include <cstring>

#include "tests/bench/require.h"

namespace terrace::bench {
namespace {

// Between the tensors of neighbouring layers; not a multiple of a token.
constexpr size_t kTensorStride = 8216;

}  // namespace

TokenSource::TokenSource(const engine::Geometry& geometry, int64_t tokens)
    : geometry_(geometry),
      token_bytes_(geometry.row_bytes() / 2 * geometry.kv_heads),
      pool_(tokens * token_bytes_ + 2 * geometry.layers * kTensorStride) {}

const std::byte* TokenSource::At(int tensor, int64_t position) const {
  return pool_.data() + tensor * kTensorStride + position * token_bytes_;
}

void TokenSource::Row(int layer, int head, int64_t position, std::byte* out) const {
  const size_t half = geometry_.row_bytes() / 2;
  std::memcpy(out, Keys(layer, position) + head * half, half);
  std::memcpy(out + half, Values(layer, position) + head * half, half);
}

void TokenSource::Append(engine::EmbeddedEngine& engine, const engine::SequenceInfo& sequence,
                         int layer, int64_t position, int64_t count) const {
  const uint32_t shape[] = {static_cast<uint32_t>(count), static_cast<uint32_t>(geometry_.kv_heads),
                            static_cast<uint32_t>(geometry_.head_dim)};
  const auto view = [&](const std::byte* data) -> engine::TensorView {
    return {.dtype = geometry_.storage, .shape = shape, .data = {data, count * token_bytes_}};
  };
  const auto length = engine.Append({}, {.handle = sequence.handle,
                                         .writer_epoch = sequence.writer_epoch,
                                         .layer = layer,
                                         .position = position,
                                         .k = view(Keys(layer, position)),
                                         .v = view(Values(layer, position))});
  RequireOk(length.status(), "append");
}

void TokenSource::AppendAll(engine::EmbeddedEngine& engine, const engine::SequenceInfo& sequence,
                            int64_t tokens, int64_t chunk) const {
  for (int64_t position = 0; position < tokens; position += chunk) {
    for (int layer = 0; layer < geometry_.layers; ++layer) {
      Append(engine, sequence, layer, position, std::min(chunk, tokens - position));
    }
  }
}

bool TokenSource::Holds(engine::EmbeddedEngine& engine, absl::string_view handle, int layer,
                        int head, const std::vector<uint32_t>& positions) const {
  const std::vector<std::byte> got =
      RequireOk(engine.ReadRows({}, handle, layer, head, positions), "reading rows");
  const size_t row_bytes = geometry_.row_bytes();
  std::vector<std::byte> expected(positions.size() * row_bytes);
  for (size_t i = 0; i < positions.size(); ++i) {
    Row(layer, head, positions[i], expected.data() + i * row_bytes);
  }
  return got == expected;
}

engine::SequenceSpec SpecOf(int layers, int kv_heads, int head_dim) {
  engine::SequenceSpec spec;
  spec.geometry = {.layers = layers,
                   .query_heads = kv_heads,
                   .kv_heads = kv_heads,
                   .head_dim = head_dim,
                   .storage = attention::Dtype::kBFloat16};
  spec.geometry.Normalize();
  spec.model_fingerprint = "bench";
  return spec;
}

}  // namespace terrace::bench
