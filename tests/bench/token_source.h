// TokenSource: K and V of any layer and position in bf16, and what an engine should make of them.
#ifndef TERRACE_TESTS_BENCH_TOKEN_SOURCE_H_
#define TERRACE_TESTS_BENCH_TOKEN_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "services/engine/embedded_engine.h"
#include "tests/bench/byte_pool.h"

namespace terrace::bench {

class TokenSource {
 public:
  TokenSource(const engine::Geometry& geometry, int64_t tokens);

  // [tokens, kv_heads, head_dim] from `position` on.
  const std::byte* Keys(int layer, int64_t position) const { return At(2 * layer, position); }
  const std::byte* Values(int layer, int64_t position) const { return At(2 * layer + 1, position); }
  size_t token_bytes() const { return token_bytes_; }

  // The row that the store should hold: K, then V.
  void Row(int layer, int head, int64_t position, std::byte* out) const;

  // Ends the process on an error.
  void Append(engine::EmbeddedEngine& engine, const engine::SequenceInfo& sequence, int layer,
              int64_t position, int64_t count) const;
  // Whole chunks of `chunk` tokens, each through all layers, as prompts arrive.
  void AppendAll(engine::EmbeddedEngine& engine, const engine::SequenceInfo& sequence,
                 int64_t tokens, int64_t chunk) const;
  // Whether the engine holds these rows of one layer and head.
  bool Holds(engine::EmbeddedEngine& engine, absl::string_view handle, int layer, int head,
             const std::vector<uint32_t>& positions) const;

 private:
  const std::byte* At(int tensor, int64_t position) const;

  const engine::Geometry geometry_;
  // Of K, and of V, in all heads of one layer.
  const size_t token_bytes_;
  const BytePool pool_;
};

// A sequence of that shape, bf16 with an int8 index.
engine::SequenceSpec SpecOf(int layers, int kv_heads, int head_dim);

}  // namespace terrace::bench

#endif  // TERRACE_TESTS_BENCH_TOKEN_SOURCE_H_
