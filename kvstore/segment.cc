#include "kvstore/segment.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace terrace::kvstore {

Segment::Segment(const void* its_owner, SegmentId its_id, BlockLayout its_layout,
                 uint32_t its_first_block)
    : owner(its_owner),
      id(its_id),
      layout(std::move(its_layout)),
      first_block(its_first_block),
      lanes(size_t{layout.layers} * layout.heads),
      in_host(layout.layers),
      tail_rows(layout.layers, 0) {
  for (Lane& lane : lanes) {
    lane.durable_end = lane.sealed_end = lane.reserved_end = lane.pieces_end = lane.flush_end =
        first_block;
  }
}

BlockKey Segment::Key(uint16_t lane_index, uint32_t block) const {
  return {.segment = id,
          .layer = static_cast<uint16_t>(lane_index / layout.heads),
          .head = static_cast<uint16_t>(lane_index % layout.heads),
          .block = block};
}

Extent& Segment::ExtentAt(uint16_t lane_index, ExtentKind kind, uint32_t index) {
  Lane& lane = lanes[lane_index];
  std::vector<Extent>& extents = kind == ExtentKind::kRows ? lane.rows : lane.stripes;
  if (index >= extents.size()) {
    // Recovered blocks are known at once: one array of the right size.
    const uint32_t last = std::max(lane.reserved_end, first_block + 1) - 1;
    const uint32_t known = kind == ExtentKind::kRows ? last - first_block : StripeIndex(last);
    if (known >= index) extents.reserve(size_t{known} + 1);
    extents.resize(std::max(size_t{known}, size_t{index}) + 1);
  }
  return extents[index];
}

const Extent* Segment::FindExtent(uint16_t lane_index, ExtentKind kind, uint32_t index) const {
  const Lane& lane = lanes[lane_index];
  const std::vector<Extent>& extents = kind == ExtentKind::kRows ? lane.rows : lane.stripes;
  return index < extents.size() ? &extents[index] : nullptr;
}

bool Segment::Freed(ExtentKind kind, uint32_t index) const {
  if (dead) return true;
  return (kind == ExtentKind::kRows ? first_block + index : StripeBlock(index)) >= trim_end;
}

bool Segment::Dirty(uint16_t lane_index, ExtentKind kind, uint32_t index) const {
  const Lane& lane = lanes[lane_index];
  if (kind == ExtentKind::kRows) return first_block + index >= lane.durable_end;
  const uint32_t end = std::min(StripeBlock(index) + layout.stripe_blocks, lane.pieces_end);
  return end > lane.durable_end;
}

HostCells& HostCells::operator-=(const HostCells& other) {
  blocks -= other.blocks;
  granules -= other.granules;
  pieces -= other.pieces;
  return *this;
}

Residency Segment::Describe(uint16_t layer, uint32_t first, uint32_t end) const {
  Residency sum;
  first = std::max(first, first_block);
  end = std::max(first, end);
  uint32_t known_end = first_block;
  for (uint16_t head = 0; head < layout.heads; ++head) {
    const Lane& its = lane(layer, head);
    sum.sealed_blocks += std::clamp(its.sealed_end, first, end) - first;
    sum.disk_blocks += std::clamp(its.durable_end, first, end) - first;
    const auto rows = static_cast<uint32_t>(its.rows.size());
    const auto stripes = static_cast<uint32_t>(its.stripes.size());
    known_end = std::max({known_end, first_block + rows, StripeBlock(stripes)});
  }
  sum.disk_bytes = sum.disk_blocks * (layout.rows_bytes() + layout.piece_bytes());
  end = std::min(end, known_end);
  first = std::min(first, end);
  HostCells cells;
  if (end - first < first - first_block + known_end - end) {
    cells = CountInHost(layer, first, end);
  } else {
    cells = in_host[layer];
    cells -= CountInHost(layer, first_block, first);
    cells -= CountInHost(layer, end, known_end);
  }
  sum.host_blocks = cells.blocks - OpenInHost(layer, first, end);
  sum.host_row_bytes = cells.granules * layout.granule_bytes();
  sum.host_index_bytes = cells.pieces * layout.piece_bytes();
  return sum;
}

uint64_t Segment::OpenInHost(uint16_t layer, uint32_t first, uint32_t end) const {
  uint64_t count = 0;
  for (uint16_t head = 0; head < layout.heads; ++head) {
    for (uint32_t block = std::max(first, lane(layer, head).sealed_end); block < end; ++block) {
      const Extent* rows =
          FindExtent(LaneIndex(layer, head), ExtentKind::kRows, block - first_block);
      if (rows != nullptr && rows->valid != 0) ++count;
    }
  }
  return count;
}

HostCells Segment::CountInHost(uint16_t layer, uint32_t first, uint32_t end) const {
  HostCells cells;
  for (uint16_t head = 0; head < layout.heads; ++head) {
    const uint16_t lane_index = LaneIndex(layer, head);
    for (uint32_t block = first; block < end; ++block) {
      const Extent* rows = FindExtent(lane_index, ExtentKind::kRows, block - first_block);
      if (rows != nullptr && rows->valid != 0) {
        ++cells.blocks;
        cells.granules += std::popcount(rows->valid);
      }
      const Extent* stripe = FindExtent(lane_index, ExtentKind::kStripe, StripeIndex(block));
      if (stripe != nullptr) cells.pieces += stripe->valid >> StripeCell(block) & 1;
    }
  }
  return cells;
}

uint32_t Segment::DurableEnd(uint16_t layer) const {
  uint32_t end = kOpenEnd;
  for (uint16_t head = 0; head < layout.heads; ++head) {
    end = std::min(end, lane(layer, head).durable_end);
  }
  return end;
}

}  // namespace terrace::kvstore
