#include "services/engine/value_layout.h"

#include <algorithm>
#include <bit>

namespace terrace::engine {
namespace {

uint64_t CeilDivide(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

}  // namespace

kvstore::BlockLayout ValueLayout(uint64_t size) {
  const uint64_t blocks = CeilDivide(size, kValueBlockBytesMax);
  const uint64_t share = std::max<uint64_t>(CeilDivide(size, blocks), kValueBlockBytesMin);
  const uint64_t step = std::bit_floor(share) / 4;
  return {.layers = 1,
          .heads = 1,
          .block_tokens = 1,
          .row_bytes = static_cast<uint32_t>(CeilDivide(share, step) * step),
          .granule_tokens = 1,
          .stripe_blocks = 1,
          .planes = {}};
}

}  // namespace terrace::engine
