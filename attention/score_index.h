// The score index: a second copy of K, dim-major, that approximate scores read.
//
// Tokens are grouped into stripes of `stripe_tokens`; a stripe is filled block by block as blocks
// seal. Memory of one stripe of one KV head, two planes:
//   codes  [head_dim][stripe_tokens]                  element: storage dtype (exact) or uint8
//   params [head_dim][stripe_tokens / block_tokens]   int8 only: fp16 scale, fp16 minimum
// so that one channel is contiguous over the stripe. A key element is minimum + scale * code. The
// minimum is rounded down and the scale up in fp16, so that every code decodes within
// [minimum, minimum + 255 * scale] and those two bound the block's keys.
//
// A piece is what one block adds: its codes [head_dim][block_tokens], then its params
// [head_dim]. A store scatters pieces into stripes; planes and cells tell it how.
#ifndef TERRACE_ATTENTION_SCORE_INDEX_H_
#define TERRACE_ATTENTION_SCORE_INDEX_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "attention/head_shape.h"

namespace terrace::attention {

enum class IndexFormat : uint8_t { kExact = 1, kInt8 = 2 };

struct IndexLayout {
  IndexFormat format = IndexFormat::kInt8;
  // Stored type of rows, and of codes in kExact.
  Dtype dtype = Dtype::kFloat32;
  int head_dim = 0;
  // A power of two, at least 4.
  int block_tokens = 64;
  int stripe_tokens = 1024;

  size_t code_bytes() const { return format == IndexFormat::kExact ? DtypeBytes(dtype) : 1; }
  // Scale and minimum of one channel and block.
  size_t param_bytes() const { return format == IndexFormat::kInt8 ? 4 : 0; }
  int blocks_per_stripe() const { return stripe_tokens / block_tokens; }
  size_t code_plane_bytes() const {
    return static_cast<size_t>(head_dim) * stripe_tokens * code_bytes();
  }
  size_t piece_bytes() const {
    return static_cast<size_t>(head_dim) * (block_tokens * code_bytes() + param_bytes());
  }
  // Index bytes that `channels` channels of `blocks` blocks take, params included.
  uint64_t scan_bytes(uint64_t channels, uint64_t blocks) const {
    return channels * blocks * (block_tokens * code_bytes() + param_bytes());
  }
};

// Encodes the keys of one full block. rows: [block_tokens][K, V] in layout.dtype.
// piece: layout.piece_bytes().
// OutOfRange names the channel when a channel of a block does not fit fp16 scale and minimum
// (|k| beyond 65504); the caller stores such keys with IndexFormat::kExact.
absl::Status EncodeBlock(const IndexLayout& layout, const std::byte* rows, std::byte* piece);

// Blocks of one stripe that a scan reads.
struct IndexStrip {
  // Start of the stripe's codes plane; the params plane follows it.
  const std::byte* stripe = nullptr;
  // Blocks [first_block, first_block + block_count) of the stripe, in the stripe's own count.
  int first_block = 0;
  int block_count = 0;
};

// Keys of positions [0, tokens()) of one KV head for approximate scoring. Does not own.
struct ScoreView {
  IndexLayout layout;
  // In order of position, without holes: together they cover [0, indexed_tokens()).
  absl::Span<const IndexStrip> strips;
  // The rows after them, contiguous: [tail_rows][K, V] in layout.dtype; fewer than block_tokens.
  const std::byte* tail = nullptr;
  int tail_rows = 0;

  int64_t indexed_tokens() const {
    int64_t blocks = 0;
    for (const IndexStrip& strip : strips) blocks += strip.block_count;
    return blocks * layout.block_tokens;
  }
  int64_t tokens() const { return indexed_tokens() + tail_rows; }
};

}  // namespace terrace::attention

#endif  // TERRACE_ATTENTION_SCORE_INDEX_H_
