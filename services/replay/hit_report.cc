#include "services/replay/hit_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace terrace::replay {
namespace {

// "s3fifo", and "100.00%".
constexpr int kNameWidth = 6;
constexpr int kRateWidth = 7;

double Rate(uint64_t part, const ReferenceTrace& trace) {
  return static_cast<double>(part) / static_cast<double>(trace.blocks.size());
}

}  // namespace

std::string HitTable(const ReferenceTrace& trace, const HitCounts& counts) {
  std::string text = absl::StrFormat(
      "%d references to %d blocks in %d steps; first ones aside, %.2f%% could be hits\n\n",
      trace.blocks.size(), trace.distinct_blocks, trace.steps,
      100 * Rate(trace.blocks.size() - trace.distinct_blocks, trace));
  absl::StrAppendFormat(&text, "%-*s", kNameWidth, "BLOCKS");
  for (const uint64_t capacity : counts.capacities) {
    absl::StrAppendFormat(&text, "  %*d", kRateWidth, capacity);
  }
  text += '\n';
  for (size_t i = 0; i < counts.policies.size(); ++i) {
    absl::StrAppendFormat(&text, "%-*s", kNameWidth, Name(counts.policies[i]));
    for (size_t j = 0; j < counts.capacities.size(); ++j) {
      // As wide as the capacity above it.
      const int width =
          std::max(kRateWidth, static_cast<int>(absl::StrCat(counts.capacities[j]).size()));
      const std::string rate = absl::StrFormat("%.2f%%", 100 * Rate(counts.hits[i][j], trace));
      absl::StrAppendFormat(&text, "  %*s", width, rate);
    }
    text += '\n';
  }
  return text;
}

std::string HitJson(const ReferenceTrace& trace, const HitCounts& counts) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (size_t i = 0; i < counts.policies.size(); ++i) {
    for (size_t j = 0; j < counts.capacities.size(); ++j) {
      nlohmann::ordered_json& entry = list.emplace_back();
      entry["policy"] = Name(counts.policies[i]);
      entry["capacity_blocks"] = counts.capacities[j];
      entry["hit_rate"] = Rate(counts.hits[i][j], trace);
    }
  }
  return list.dump(1) + "\n";
}

}  // namespace terrace::replay
