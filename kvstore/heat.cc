#include "kvstore/heat.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace terrace::kvstore {
namespace {

// log2(2^a + 2^b), where either may be -infinity.
double AddLevels(double a, double b) {
  const double high = std::max(a, b);
  if (std::isinf(high)) return high;
  return high + std::log2(1 + std::exp2(std::min(a, b) - high));
}

}  // namespace

HeatClock::HeatClock(const HeatOptions& options) : options_(options) {}

double HeatClock::half_life_accesses() const {
  if (options_.half_life_accesses > 0) return options_.half_life_accesses;
  return std::max(1.0, options_.half_life_gaps * mean_gap_);
}

void HeatClock::MeasureGap(double gap) {
  // The plain mean until the window is full, so that there is no first guess to outgrow.
  gaps_ = std::min<uint64_t>(gaps_ + 1, options_.gap_window);
  mean_gap_ += (gap - mean_gap_) / static_cast<double>(gaps_);
}

void HeatClock::Touch(double mass, BlockHeat& heat) {
  ++accesses_;
  if (heat.last_access != 0) MeasureGap(static_cast<double>(accesses_ - heat.last_access));
  reading_ += 1 / half_life_accesses();
  heat.level = AddLevels(heat.level, options_.mass_exponent * std::log2(mass) + reading_);
  heat.last_access = accesses_;
  if (heat.touches < std::numeric_limits<uint32_t>::max()) ++heat.touches;
}

double HeatClock::Heat(const BlockHeat& heat) const { return std::exp2(heat.level - reading_); }

bool Colder(const BlockHeat& a, const BlockHeat& b) {
  return std::tie(a.level, a.last_access) < std::tie(b.level, b.last_access);
}

bool Admits(const HeatOptions& options, const BlockHeat& newcomer, const BlockHeat& victim) {
  const double contrast = newcomer.touches < options.admit_touches ? options.contrast : 0;
  // Added, not subtracted: two levels may both be -infinity.
  return newcomer.level > victim.level + contrast;
}

}  // namespace terrace::kvstore
