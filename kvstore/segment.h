// Segment: what the store knows of one run of blocks. All but the constants is guarded by the
// mutex of the store that the segment belongs to.
//
// Per lane (one layer and head) the blocks are in states by position, so that no block carries
// flags of its own:
//
//   first_block ... durable_end ... sealed_end ... reserved_end
//     on disk, and     in memory,     in memory,
//     maybe in memory  not on disk    being written
//
// Positions only grow, except when a manifest gives the end of the segment up (trim_end), and when
// seals are taken off (unseal).
#ifndef TERRACE_KVSTORE_SEGMENT_H_
#define TERRACE_KVSTORE_SEGMENT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "kvstore/block_key.h"
#include "kvstore/block_layout.h"
#include "kvstore/block_store.h"
#include "kvstore/extent_pool.h"
#include "kvstore/extent_ranking.h"

namespace terrace::kvstore {

// Rows of a block (cells are granules), or a stripe (cells are blocks).
struct Extent {
  // Null when not in memory.
  std::byte* data = nullptr;
  // Cells that are in memory. Rows have all from their reservation on. Changed by
  // HostTier::SetValid only, which counts them.
  uint64_t valid = 0;
  // Cells that somebody reads from disk; nobody else writes their bytes.
  uint64_t loading = 0;
  // Cells that failed their checksum. They stay so (I1).
  uint64_t bad = 0;
  // Cells that were read ahead of a request, in memory or still loading.
  uint64_t ahead = 0;
  // What the host tier ranks it by, in memory or not.
  Standing standing;
  uint32_t pins = 0;
  // Whether the host tier counts it among what cannot leave.
  bool held = false;
};

struct Lane {
  // By block, and by stripe, counted from the segment's first. Grown when needed.
  std::vector<Extent> rows;
  std::vector<Extent> stripes;
  uint32_t durable_end = 0;
  uint32_t sealed_end = 0;
  uint32_t reserved_end = 0;
  // Up to where there is room in stripes, from sealed_end to reserved_end.
  uint32_t pieces_end = 0;
  // Up to where a flush wants blocks on disk in a store that does not write behind.
  uint32_t flush_end = 0;
};

// What is in memory of some blocks.
struct HostCells {
  // Blocks with some of their rows.
  uint64_t blocks = 0;
  uint64_t granules = 0;
  uint64_t pieces = 0;

  HostCells& operator-=(const HostCells& other);
};

class Segment : public std::enable_shared_from_this<Segment> {
 public:
  // `its_owner` identifies the store.
  Segment(const void* its_owner, SegmentId its_id, BlockLayout its_layout,
          uint32_t its_first_block);
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  Lane& lane(uint16_t layer, uint16_t head) { return lanes[LaneIndex(layer, head)]; }
  const Lane& lane(uint16_t layer, uint16_t head) const { return lanes[LaneIndex(layer, head)]; }
  uint16_t LaneIndex(uint16_t layer, uint16_t head) const {
    return static_cast<uint16_t>(uint32_t{layer} * layout.heads + head);
  }

  // Position of a block's stripe in Lane::stripes, and of the block in it.
  uint32_t StripeIndex(uint32_t block) const {
    return block / layout.stripe_blocks - first_block / layout.stripe_blocks;
  }
  uint32_t StripeCell(uint32_t block) const { return block % layout.stripe_blocks; }
  // Block of cell 0; may lie before the first block.
  uint32_t StripeBlock(uint32_t index) const {
    return (first_block / layout.stripe_blocks + index) * layout.stripe_blocks;
  }
  BlockKey Key(uint16_t lane_index, uint32_t block) const;

  // Grows the array as needed.
  Extent& ExtentAt(uint16_t lane_index, ExtentKind kind, uint32_t index);
  // Null when the array never grew so far.
  const Extent* FindExtent(uint16_t lane_index, ExtentKind kind, uint32_t index) const;
  size_t ExtentBytes(ExtentKind kind) const {
    return kind == ExtentKind::kRows ? layout.rows_bytes() : layout.stripe_bytes();
  }

  // No manifest wants it any more; it leaves with its last pin.
  bool Freed(ExtentKind kind, uint32_t index) const;
  // Holds bytes that are not on disk, or room for bytes to come.
  bool Dirty(uint16_t lane_index, ExtentKind kind, uint32_t index) const;

  // Lowest over the heads of a layer.
  uint32_t DurableEnd(uint16_t layer) const;

  // Where blocks [first, end) of a layer are. Costs the heads, and the blocks that the
  // range has or those that it leaves out, whichever are fewer: none for all.
  Residency Describe(uint16_t layer, uint32_t first, uint32_t end) const;

  const void* const owner;
  const SegmentId id;
  const BlockLayout layout;
  const uint32_t first_block;

  // By LaneIndex.
  std::vector<Lane> lanes;
  // What is in memory, by layer.
  std::vector<HostCells> in_host;
  // Rows of the open block that are on disk, by layer: in a record of their own, or in those that
  // the block had before it was unsealed. With none there is neither.
  std::vector<uint32_t> tail_rows;
  // Ends of the ranges by which manifests name this segment, and of those that are not parked.
  std::multiset<uint32_t> named_ends;
  std::multiset<uint32_t> active_ends;
  // Blocks from here on are freed.
  uint32_t trim_end = kOpenEnd;
  // All blocks are freed.
  bool dead = false;
  // Blocks from here on are being deleted on disk, or are freed.
  uint32_t deleted_end = kOpenEnd;
  // Blocks from here on are being unsealed: nobody may begin to read them.
  uint32_t unsealing_from = kOpenEnd;
  // How often that was done, and the first block that it was ever done to.
  uint32_t unseals = 0;
  uint32_t unsealed_from = kOpenEnd;
  // Records of it are on disk.
  bool stored = false;
  // Its watermark is damaged, so it seems empty.
  bool unreadable = false;
  // The writer has it in its queue.
  bool queued = false;
  // Where the writer goes on, so that all lanes advance alike.
  uint32_t next_lane = 0;

 private:
  // By looking at each extent.
  HostCells CountInHost(uint16_t layer, uint32_t first, uint32_t end) const;
  // Blocks that are not sealed and have rows in memory.
  uint64_t OpenInHost(uint16_t layer, uint32_t first, uint32_t end) const;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_SEGMENT_H_
