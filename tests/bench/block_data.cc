#include "tests/bench/block_data.h"

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

absl::Span<const std::byte> BlockData::Piece(uint16_t layer, uint16_t head, uint32_t block) const {
  return {pool_.Of(~IdOf(layer, head, block), layout_.piece_bytes()), layout_.piece_bytes()};
}

void BlockData::Fill(kvstore::BlockStore& store, kvstore::Segment& segment, uint16_t first_layer,
                     uint16_t end_layer) const {
  const absl::Time deadline = absl::Now() + absl::Minutes(5);
  for (uint32_t block = 0; block < blocks_; ++block) {
    for (uint16_t layer = first_layer; layer < end_layer; ++layer) {
      RequireOk(store.Reserve(segment, layer, block, block + 1, deadline), "reserving a block");
      for (uint16_t head = 0; head < layout_.heads; ++head) {
        std::memcpy(store.OpenRows(segment, layer, head, block), Rows(layer, head, block),
                    layout_.rows_bytes());
        store.Seal(segment, layer, head, block, Piece(layer, head, block));
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
