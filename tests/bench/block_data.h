// BlockData: a segment's worth of blocks whose bytes follow from which block it is, without an
// engine: what a store under test is filled with and compared to.
#ifndef TERRACE_TESTS_BENCH_BLOCK_DATA_H_
#define TERRACE_TESTS_BENCH_BLOCK_DATA_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kvstore/block_store.h"
#include "tests/bench/byte_pool.h"

namespace terrace::bench {

class BlockData {
 public:
  BlockData(kvstore::BlockLayout layout, uint32_t blocks);

  const std::byte* Rows(uint16_t layer, uint16_t head, uint32_t block) const;
  // Of blocks [first_block, end_block), one after the other.
  absl::Span<const std::byte> Pieces(uint16_t layer, uint16_t head, uint32_t first_block,
                                     uint32_t end_block) const;

  // Writes layers [first_layer, end_layer) of a segment of this layout, from block 0 on, a stripe's
  // blocks of a layer at a time: Reserve, copy, Seal. Ends the process on an error.
  void Fill(kvstore::BlockStore& store, kvstore::Segment& segment, uint16_t first_layer,
            uint16_t end_layer) const;
  // Whether each extent holds the wanted cells of its request, and they are right.
  bool Matches(absl::Span<const kvstore::ReadRequest> requests, const kvstore::Pins& pins) const;

  const kvstore::BlockLayout& layout() const { return layout_; }
  uint32_t blocks() const { return blocks_; }
  uint64_t row_bytes() const {
    return layout_.rows_bytes() * layout_.layers * layout_.heads * blocks_;
  }

 private:
  uint64_t IdOf(uint16_t layer, uint16_t head, uint32_t block) const {
    return (uint64_t{layer} * layout_.heads + head) << 32 | block;
  }

  const kvstore::BlockLayout layout_;
  const uint32_t blocks_;
  const BytePool pool_;
};

// The blocks of an engine's sequence of 128 dimensions in bf16 with an int8 index.
kvstore::BlockLayout EngineLayout(int layers, int kv_heads);

}  // namespace terrace::bench

#endif  // TERRACE_TESTS_BENCH_BLOCK_DATA_H_
