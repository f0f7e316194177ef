// Which extents leave a full tier: pure functions over what is known of them. No I/O, no locks.
#ifndef TERRACE_KVSTORE_EVICTION_H_
#define TERRACE_KVSTORE_EVICTION_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace terrace::kvstore {

struct EvictionCandidate {
  // Ticks since the last touch; larger is colder.
  uint64_t age = 0;
  // Whether anything forbids eviction: a pin, unwritten bytes, an open block.
  bool evictable = false;
};

// Indices of at most `count` evictable candidates, coldest first; ties keep the lower index.
std::vector<size_t> ChooseLru(absl::Span<const EvictionCandidate> candidates, size_t count);

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_EVICTION_H_
