// Sizes of the blocks of a segment. The store never interprets the bytes; this is all it knows.
//
// A block has two parts:
//   rows   [block_tokens][row_bytes], read granule by granule (granule_tokens rows)
//   piece  what the block adds to its stripe: for each plane, [count] cells of cell_bytes,
//          planes one after the other
// A stripe is stripe_blocks pieces laid out for scanning: for each plane
// [count][stripe_blocks][cell_bytes], planes one after the other. Block b is cell b %
// stripe_blocks.
#ifndef TERRACE_KVSTORE_BLOCK_LAYOUT_H_
#define TERRACE_KVSTORE_BLOCK_LAYOUT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace terrace::kvstore {

struct Plane {
  uint32_t count = 0;
  uint32_t cell_bytes = 0;

  friend bool operator==(const Plane&, const Plane&) = default;
};

struct BlockLayout {
  uint16_t layers = 0;
  uint16_t heads = 0;
  // A power of two.
  uint32_t block_tokens = 64;
  uint32_t row_bytes = 0;
  // Rows that are checksummed and read together: a power of two, at most block_tokens, and
  // at most 64 granules a block.
  uint32_t granule_tokens = 16;
  // Blocks per stripe: a power of two, at most 64.
  uint32_t stripe_blocks = 16;
  std::vector<Plane> planes;

  size_t granule_bytes() const { return size_t{granule_tokens} * row_bytes; }
  uint32_t granules() const { return block_tokens / granule_tokens; }
  size_t rows_bytes() const { return size_t{block_tokens} * row_bytes; }
  size_t piece_bytes() const;
  size_t stripe_bytes() const { return piece_bytes() * stripe_blocks; }
  // Offset of a plane in a stripe, and in a piece.
  size_t plane_offset_in_stripe(size_t plane) const;
  size_t plane_offset_in_piece(size_t plane) const;

  // Copies pieces of `count` blocks, one after the other, into a stripe from cell `cell` on; and
  // one of them back.
  void Scatter(const std::byte* pieces, uint32_t cell, uint32_t count, std::byte* stripe) const;
  void Gather(const std::byte* stripe, uint32_t cell, std::byte* piece) const;

  // InvalidArgument names the field, what was got and what is allowed.
  absl::Status Validate() const;

  // For manifests. DataLoss when the bytes are not a layout.
  std::string Encode() const;
  static absl::StatusOr<BlockLayout> Decode(std::string_view bytes);

  friend bool operator==(const BlockLayout&, const BlockLayout&) = default;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_BLOCK_LAYOUT_H_
