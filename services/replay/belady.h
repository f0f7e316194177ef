// Belady's optimum: the most references that any policy could serve from a tier, one that knows the
// future and may leave a block out.
#ifndef TERRACE_SERVICES_REPLAY_BELADY_H_
#define TERRACE_SERVICES_REPLAY_BELADY_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"

namespace terrace::replay {

// References to `blocks`, one after the other, that find their block among the `capacity` kept.
// After each reference, what is used next the farthest ahead goes, and what is never used again is
// not kept. O(n log n). Requires: at most 2^32 - 1 references; capacity is at least 1.
uint64_t BeladyHits(absl::Span<const uint32_t> blocks, size_t capacity);

}  // namespace terrace::replay

#endif  // TERRACE_SERVICES_REPLAY_BELADY_H_
