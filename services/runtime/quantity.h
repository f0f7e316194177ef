// Sizes and durations as people write them in flags.
#ifndef TERRACE_SERVICES_RUNTIME_QUANTITY_H_
#define TERRACE_SERVICES_RUNTIME_QUANTITY_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace terrace::runtime {

// "4096", "512KiB", "20MiB", "4GiB", "1TiB". InvalidArgument says what was got and expected.
absl::StatusOr<uint64_t> ParseSize(const std::string& text);
// The shortest exact form of ParseSize.
std::string FormatSize(uint64_t bytes);

// "500ms", "10s", "1m30s"; at least 0.
absl::StatusOr<absl::Duration> ParseDuration(const std::string& text);

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_QUANTITY_H_
