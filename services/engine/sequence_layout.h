// How a sequence's bytes lie in the store: the one place that knows both the store's planes and
// the attention library's formats.
//
// Planes of a block's piece: codes, params (int8 only), value sum [head_dim] fp32, digests
// [block_tokens] of 32 bits. The value sum is ΣV of the block's rows in order, so that the mean of
// any prefix is a sum of these; a digest is XXH3 over a row in storage dtype, so that a repeated
// append can be compared with what stands wherever it stands (I7).
#ifndef TERRACE_SERVICES_ENGINE_SEQUENCE_LAYOUT_H_
#define TERRACE_SERVICES_ENGINE_SEQUENCE_LAYOUT_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "attention/score_index.h"
#include "kvstore/block_layout.h"
#include "services/engine/sequence_info.h"

namespace terrace::engine {

struct SequenceLayout {
  kvstore::BlockLayout block;
  attention::IndexLayout index;
  attention::HeadShape shape;

  // block_tokens and index_tokens are powers of two, block_tokens <= index_tokens <= 64 blocks.
  static SequenceLayout Make(const SequenceSpec& spec, int block_tokens, int index_tokens);
  // For a sequence that exists: from what its segments were made with.
  static SequenceLayout FromBlock(const SequenceSpec& spec, const kvstore::BlockLayout& block);

  // Index, value sum and digests of one full block. rows: [block_tokens][row_bytes];
  // piece: block.piece_bytes(). The errors of attention::EncodeBlock.
  absl::Status EncodePiece(const std::byte* rows, std::byte* piece) const;

  // Value sum of the block in cell `cell` of a stripe, [head_dim]; always aligned.
  const float* ValueSum(const std::byte* stripe, uint32_t cell) const;
  // Digest of row `row` of the block in cell `cell`.
  uint32_t Digest(const std::byte* stripe, uint32_t cell, uint32_t row) const;

 private:
  size_t sum_plane() const { return block.planes.size() - 2; }
  size_t digest_plane() const { return block.planes.size() - 1; }
};

// Digest of one row in storage dtype.
uint32_t RowDigest(absl::Span<const std::byte> row);

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_SEQUENCE_LAYOUT_H_
