// What a block store should hold, as plain maps.
#ifndef TERRACE_TESTS_SIM_STORE_MODEL_H_
#define TERRACE_TESTS_SIM_STORE_MODEL_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvstore/block_store.h"

namespace terrace::kvstore {

// A segment, by lane (layer * heads + head).
struct SegmentModel {
  SegmentRef segment;
  uint32_t first_block = 0;
  std::vector<uint32_t> sealed_end;
  // Blocks that a flush has acknowledged.
  std::vector<uint32_t> flushed_end;
  // Lane and block to what tells its bytes from those of an earlier life of the block.
  std::map<std::pair<uint16_t, uint32_t>, uint32_t> salts;
  // By layer: rows of the open block that a flush has acknowledged, of which block, and their salt.
  struct Tail {
    uint32_t block = 0;
    uint32_t rows = 0;
    uint32_t salt = 0;
  };
  std::vector<Tail> tails;

  uint32_t SealedEnd() const { return *std::min_element(sealed_end.begin(), sealed_end.end()); }
  // A manifest gave up the blocks from there on.
  void Trim(uint32_t end) {
    for (uint32_t& sealed : sealed_end) sealed = std::min(sealed, end);
    for (uint32_t& flushed : flushed_end) flushed = std::min(flushed, end);
    for (Tail& tail : tails) {
      if (tail.block >= end) tail = {};
    }
  }
};
// Shared by all sequences that name the segment.
using SegmentModelRef = std::shared_ptr<SegmentModel>;

struct RangeModel {
  SegmentModelRef segment;
  uint32_t first_block = 0;
  uint32_t end_block = 0;
};

struct SequenceModel {
  std::string attributes;
  std::vector<RangeModel> ranges;

  const SegmentModelRef& open() const { return ranges.back().segment; }
  // Blocks sealed in all lanes.
  uint32_t Length() const { return open()->SealedEnd(); }
  // The ranges of the first `end` blocks.
  std::vector<RangeModel> Prefix(uint32_t end) const {
    std::vector<RangeModel> prefix;
    for (const RangeModel& range : ranges) {
      if (range.first_block >= end) break;
      prefix.push_back({range.segment, range.first_block, std::min(range.end_block, end)});
    }
    return prefix;
  }
};

using StoreModel = std::map<std::string, SequenceModel>;

// Trims what no range of the model names any more, as a change of manifests does.
inline void TrimUnnamed(const StoreModel& model, const std::vector<RangeModel>& before) {
  for (const RangeModel& gone : before) {
    uint32_t end = 0;
    for (const auto& [name, sequence] : model) {
      for (const RangeModel& range : sequence.ranges) {
        if (range.segment == gone.segment) end = std::max(end, range.end_block);
      }
    }
    gone.segment->Trim(end);
  }
}

}  // namespace terrace::kvstore

#endif  // TERRACE_TESTS_SIM_STORE_MODEL_H_
