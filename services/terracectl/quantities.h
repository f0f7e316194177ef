// Numbers, sizes and times as people read them. Pure functions.
#ifndef TERRACE_SERVICES_TERRACECTL_QUANTITIES_H_
#define TERRACE_SERVICES_TERRACECTL_QUANTITIES_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace terrace::terracectl {

// "0 B" to "1023 B", then one decimal, half rounded up: "1.0 KiB" to "16.0 EiB". The number before
// the unit stays below 1024.0: what would round to it takes the next unit.
std::string FormatBytes(uint64_t bytes);

// "1,234,567".
std::string FormatCount(uint64_t count);

// "1 shard", "0 shards", "1,024 shards". `noun` is one that takes an s.
std::string FormatCountOf(uint64_t count, absl::string_view noun);

// "37.5%". "0.0%" and "100.0%" only when exact, else "<0.1%" and ">99.9%"; ">100%" beyond the
// whole; "-" of nothing.
std::string FormatPercent(uint64_t part, uint64_t whole);

// "[####......]", `cells` wide inside. The first cell is filled by any part above 0, the last only
// by the whole. Empty of nothing.
std::string FormatBar(uint64_t part, uint64_t whole, size_t cells);

// "0s ago", "59m ago", "23h ago", "364d ago", "2y ago", cut to the unit below; "in 5s" for a time
// that is a second or more ahead (another machine's clock).
std::string FormatAge(absl::Duration age);

// a + b, or the largest number if that does not fit.
uint64_t SaturatingAdd(uint64_t a, uint64_t b);

}  // namespace terrace::terracectl

#endif  // TERRACE_SERVICES_TERRACECTL_QUANTITIES_H_
