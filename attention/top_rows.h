// The k largest of many scores, without a sort.
#ifndef TERRACE_ATTENTION_TOP_ROWS_H_
#define TERRACE_ATTENTION_TOP_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace terrace::attention {

// The positions in [begin, end) of the `count` largest scores, ascending; ties keep the lower
// position. They lie in `order`, which also serves as working memory, until it is next changed.
// Expected time is linear in end - begin with few comparisons per score beyond the first.
// Requires: begin <= end <= 2^32 - 1, count <= end - begin, finite scores.
absl::Span<const uint32_t> TopRows(const float* scores, size_t begin, size_t end, size_t count,
                                   std::vector<uint32_t>& order);

}  // namespace terrace::attention

#endif  // TERRACE_ATTENTION_TOP_ROWS_H_
