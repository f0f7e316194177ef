// How a value lies in blocks of the store: one lane of blocks of equal size, the last one padded
// with zeros.
#ifndef TERRACE_SERVICES_ENGINE_VALUE_LAYOUT_H_
#define TERRACE_SERVICES_ENGINE_VALUE_LAYOUT_H_

#include <cstdint>

#include "kvstore/block_layout.h"

namespace terrace::engine {

// Large, so that a value is few reads; fits every host tier.
inline constexpr uint32_t kValueBlockBytesMax = 256 << 10;
inline constexpr uint32_t kValueBlockBytesMin = 4 << 10;

// Blocks of one of 25 sizes, four to a doubling, so that values of all sizes share slabs. Padding
// is at most a quarter of the value, or less than kValueBlockBytesMin.
// Requires: size > 0.
kvstore::BlockLayout ValueLayout(uint64_t size);

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_VALUE_LAYOUT_H_
