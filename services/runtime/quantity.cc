#include "services/runtime/quantity.h"

#include <array>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace terrace::runtime {
namespace {

struct Unit {
  const char* suffix;
  int shift;
};

constexpr std::array<Unit, 4> kUnits = {{{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}}};

}  // namespace

absl::StatusOr<uint64_t> ParseSize(const std::string& text) {
  absl::string_view digits = text;
  int shift = 0;
  for (const Unit& unit : kUnits) {
    if (absl::ConsumeSuffix(&digits, unit.suffix)) {
      shift = unit.shift;
      break;
    }
  }
  uint64_t count = 0;
  if (!absl::SimpleAtoi(digits, &count) || (count << shift) >> shift != count) {
    return absl::InvalidArgumentError(
        absl::StrCat("got \"", text, "\", expected a size such as 4096, 512KiB, 20MiB or 4GiB"));
  }
  return count << shift;
}

std::string FormatSize(uint64_t bytes) {
  for (const Unit& unit : kUnits) {
    const uint64_t size = uint64_t{1} << unit.shift;
    if (bytes >= size && bytes % size == 0) return absl::StrCat(bytes / size, unit.suffix);
  }
  return absl::StrCat(bytes);
}

absl::StatusOr<absl::Duration> ParseDuration(const std::string& text) {
  absl::Duration duration;
  if (!absl::ParseDuration(text, &duration) || duration < absl::ZeroDuration() ||
      duration == absl::InfiniteDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("got \"", text, "\", expected a duration such as 500ms, 10s or 1m"));
  }
  return duration;
}

}  // namespace terrace::runtime
