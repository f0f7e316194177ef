#include "kvstore/heat_policy.h"

#include <algorithm>

#include "absl/base/internal/raw_logging.h"

namespace terrace::kvstore {

HeatPolicy::HeatPolicy(const HeatOptions& options) : options_(options), clock_(options) {}

HeatPolicy::Known& HeatPolicy::Find(BlockId block) {
  const auto found = known_.find(block);
  ABSL_RAW_CHECK(found != known_.end(), "block was neither touched nor inserted, or is forgotten");
  return found->second;
}

void HeatPolicy::Remember(BlockId block, Known& known) {
  known.resident = false;
  known.place = history_.insert(history_.end(), block);
}

void HeatPolicy::TrimHistory() {
  // Whatever the factor, who was just touched stays: it may be about to be inserted.
  const double bound =
      std::max(1.0, options_.history_factor * static_cast<double>(residents_.size()));
  while (static_cast<double>(history_.size()) > bound) {
    known_.erase(history_.front());
    history_.pop_front();
  }
}

void HeatPolicy::Touch(BlockId block, double mass) {
  const auto [found, unknown] = known_.try_emplace(block);
  Known& known = found->second;
  if (known.resident) {
    residents_.erase({known.heat, block});
    clock_.Touch(mass, known.heat);
    residents_.insert({known.heat, block});
    return;
  }
  clock_.Touch(mass, known.heat);
  if (!unknown) history_.erase(known.place);
  Remember(block, known);
  TrimHistory();
}

std::optional<BlockId> HeatPolicy::Coldest(Evictable evictable) {
  const auto found =
      std::find_if(residents_.begin(), residents_.end(),
                   [&evictable](const Ranked& ranked) { return evictable(ranked.block); });
  if (found == residents_.end()) return std::nullopt;
  return found->block;
}

bool HeatPolicy::Admits(BlockId newcomer, BlockId victim) const {
  const auto heat = [this](BlockId block) {
    const auto found = known_.find(block);
    return found == known_.end() ? BlockHeat{} : found->second.heat;
  };
  return kvstore::Admits(options_, heat(newcomer), heat(victim));
}

void HeatPolicy::Insert(BlockId block) {
  const auto [found, unknown] = known_.try_emplace(block);
  Known& known = found->second;
  ABSL_RAW_CHECK(!known.resident, "block is resident already");
  if (!unknown) history_.erase(known.place);
  known.resident = true;
  residents_.insert({known.heat, block});
}

void HeatPolicy::Evict(BlockId block) {
  Known& known = Find(block);
  ABSL_RAW_CHECK(known.resident, "only a resident block can leave");
  residents_.erase({known.heat, block});
  Remember(block, known);
}

void HeatPolicy::Forget(BlockId block) {
  const auto found = known_.find(block);
  if (found == known_.end()) return;
  if (found->second.resident) {
    residents_.erase({found->second.heat, block});
  } else {
    history_.erase(found->second.place);
  }
  known_.erase(found);
}

}  // namespace terrace::kvstore
