// Sets of cells: granules of a block's rows, or blocks of a stripe, one bit each.
#ifndef TERRACE_SERVICES_ENGINE_CELL_MASK_H_
#define TERRACE_SERVICES_ENGINE_CELL_MASK_H_

#include <algorithm>
#include <cstdint>

#include "kvstore/block_layout.h"

namespace terrace::engine {

// Cells [first, end), first < 64.
constexpr uint64_t CellMask(uint32_t first, uint32_t end) {
  const uint64_t below_end = end >= 64 ? ~uint64_t{0} : (uint64_t{1} << end) - 1;
  return below_end & ~((uint64_t{1} << first) - 1);
}

// Granules that hold the first `rows` rows of a block.
inline uint64_t GranulesOf(const kvstore::BlockLayout& layout, uint32_t rows) {
  return CellMask(0, (rows + layout.granule_tokens - 1) / layout.granule_tokens);
}

// The granule that holds row `row` of a block.
inline uint64_t GranuleOf(const kvstore::BlockLayout& layout, uint32_t row) {
  return uint64_t{1} << row / layout.granule_tokens;
}

// Of the first `rows` rows of a block, how many lie in `granules`.
inline uint64_t RowsIn(const kvstore::BlockLayout& layout, uint64_t granules, uint32_t rows) {
  uint64_t count = 0;
  for (uint32_t granule = 0; granule < layout.granules(); ++granule) {
    const uint32_t first = granule * layout.granule_tokens;
    if ((granules >> granule & 1) == 0 || first >= rows) continue;
    count += std::min(layout.granule_tokens, rows - first);
  }
  return count;
}

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_CELL_MASK_H_
