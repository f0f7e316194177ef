#include "services/terracectl/quantities.h"

#include <algorithm>
#include <limits>

#include "absl/numeric/int128.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace terrace::terracectl {

std::string FormatBytes(uint64_t bytes) {
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  for (int unit = 0;; ++unit) {
    const int shift = 10 * (unit + 1);
    const uint64_t size = uint64_t{1} << shift;
    const uint64_t whole = bytes >> shift;
    // The remainder is below 2^60, so that ten times it, and a half, fit in 64 bits.
    const uint64_t tenths = whole * 10 + (((bytes & (size - 1)) * 10 + size / 2) >> shift);
    if (tenths < 10240 || unit == 5) {
      return absl::StrFormat("%d.%d %s", tenths / 10, tenths % 10, kUnits[unit]);
    }
  }
}

std::string FormatCount(uint64_t count) {
  std::string text = absl::StrCat(count);
  for (size_t end = text.size(); end > 3; end -= 3) text.insert(end - 3, 1, ',');
  return text;
}

std::string FormatCountOf(uint64_t count, absl::string_view noun) {
  return absl::StrCat(FormatCount(count), " ", noun, count == 1 ? "" : "s");
}

std::string FormatPercent(uint64_t part, uint64_t whole) {
  if (whole == 0) return "-";
  if (part > whole) return ">100%";
  if (part == 0) return "0.0%";
  if (part == whole) return "100.0%";
  const absl::uint128 doubled = absl::uint128(part) * 2000 / whole;
  const uint64_t tenths = (absl::Uint128Low64(doubled) + 1) / 2;
  if (tenths == 0) return "<0.1%";
  if (tenths == 1000) return ">99.9%";
  return absl::StrFormat("%d.%d%%", tenths / 10, tenths % 10);
}

std::string FormatBar(uint64_t part, uint64_t whole, size_t cells) {
  if (whole == 0) return "";
  const absl::uint128 exact = absl::uint128(std::min(part, whole)) * cells / whole;
  size_t filled = absl::Uint128Low64(exact);
  if (part > 0) filled = std::max<size_t>(filled, 1);
  return absl::StrCat("[", std::string(filled, '#'), std::string(cells - filled, '.'), "]");
}

std::string FormatAge(absl::Duration age) {
  const bool ahead = age <= -absl::Seconds(1);
  const absl::Duration distance = absl::AbsDuration(age);
  struct Unit {
    absl::Duration length;
    absl::Duration below;
    const char* name;
  };
  const absl::Duration day = absl::Hours(24);
  const Unit units[] = {{absl::Seconds(1), absl::Minutes(1), "s"},
                        {absl::Minutes(1), absl::Hours(1), "m"},
                        {absl::Hours(1), day, "h"},
                        {day, 365 * day, "d"},
                        {365 * day, absl::InfiniteDuration(), "y"}};
  const Unit* unit = std::begin(units);
  while (distance >= unit->below && unit + 1 != std::end(units)) ++unit;
  absl::Duration rest;
  const std::string number =
      absl::StrCat(absl::IDivDuration(distance, unit->length, &rest), unit->name);
  return ahead ? absl::StrCat("in ", number) : absl::StrCat(number, " ago");
}

uint64_t SaturatingAdd(uint64_t a, uint64_t b) {
  const uint64_t sum = a + b;
  return sum < a ? std::numeric_limits<uint64_t>::max() : sum;
}

}  // namespace terrace::terracectl
