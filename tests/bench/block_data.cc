#include "tests/bench/block_data.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "services/engine/sequence_layout.h"
#include "tests/bench/require.h"
#include "tests/bench/token_source.h"

namespace terrace::bench {

BlockData::BlockData(kvstore::BlockLayout layout, uint32_t blocks)
    : layout_(std::move(layout)), blocks_(blocks), pool_(size_t{64} << 20) {}

const std::byte* BlockData::Rows(uint16_t layer, uint16_t head, uint32_t block) const {
  return pool_.Of(IdOf(layer, head, block), layout_.rows_bytes());
}

absl::Span<const std::byte> BlockData::Pieces(uint16_t layer, uint16_t head, uint32_t first_block,
                                              uint32_t end_block) const {
  const size_t bytes = (end_block - first_block) * layout_.piece_bytes();
  return {pool_.Of(~IdOf(layer, head, first_block), bytes), bytes};
}

void BlockData::Fill(kvstore::BlockStore& store, kvstore::Segment& segment, uint16_t first_layer,
                     uint16_t end_layer) const {
  const absl::Time deadline = absl::Now() + absl::Minutes(5);
  for (uint32_t first = 0; first < blocks_; first += layout_.stripe_blocks) {
    const uint32_t end = std::min(blocks_, first + layout_.stripe_blocks);
    for (uint16_t layer = first_layer; layer < end_layer; ++layer) {
      RequireOk(store.Reserve(segment, layer, first, end, deadline), "reserving blocks");
      for (uint16_t head = 0; head < layout_.heads; ++head) {
        for (uint32_t block = first; block < end; ++block) {
          std::memcpy(store.OpenRows(segment, layer, head, block), Rows(layer, head, block),
                      layout_.rows_bytes());
        }
        store.Seal(segment, layer, head, first, end, Pieces(layer, head, first, end));
      }
    }
  }
}

bool BlockData::Matches(absl::Span<const kvstore::ReadRequest> requests,
                        const kvstore::Pins& pins) const {
  for (size_t i = 0; i < requests.size(); ++i) {
    const kvstore::ReadRequest& request = requests[i];
    const kvstore::PinnedExtent& extent = pins.extents()[i];
    if (extent.missing != 0) return false;
    const std::byte* rows = Rows(request.layer, request.head, request.index);
    for (uint32_t granule = 0; granule < layout_.granules(); ++granule) {
      const size_t offset = granule * layout_.granule_bytes();
      if ((request.cells >> granule & 1) != 0 &&
          std::memcmp(extent.data + offset, rows + offset, layout_.granule_bytes()) != 0) {
        return false;
      }
    }
  }
  return true;
}

kvstore::BlockLayout EngineLayout(int layers, int kv_heads) {
  return engine::SequenceLayout::Make(SpecOf(layers, kv_heads, 128), 64, 1024).block;
}

}  // namespace terrace::bench
