#include "kvstore/extent_ranking.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "absl/base/internal/raw_logging.h"

namespace terrace::kvstore {
namespace {

using Queue = Standing::Queue;

constexpr uint32_t kTouchesMax = 3;

bool IsResident(const Standing& block) {
  return block.queue == Queue::kProbation || block.queue == Queue::kMain;
}

}  // namespace

ExtentRanking::ExtentRanking(PolicyKind kind, const PlacementOptions& options, HeatClock& clock)
    : kind_(kind), options_(options), clock_(clock) {}

void ExtentRanking::Touch(float mass, Standing& block) {
  if (kind_ == PolicyKind::kHeat) {
    if (mass < 0) {
      clock_.Touch(std::exp2(typical_level_), block.heat);
      return;
    }
    clock_.Touch(mass, block.heat);
    if (mass == 0) return;
    told_ = std::min<uint64_t>(told_ + 1, options_.heat.gap_window);
    typical_level_ += (std::log2(double{mass}) - typical_level_) / static_cast<double>(told_);
    return;
  }
  clock_.Pass(block.heat);
  if (kind_ == PolicyKind::kS3Fifo && IsResident(block)) {
    block.heat.touches = std::min(block.heat.touches + 1, kTouchesMax);
  }
}

void ExtentRanking::Insert(Standing& block) {
  if (kind_ != PolicyKind::kS3Fifo) return;
  ABSL_RAW_CHECK(!IsResident(block), "block is resident already");
  const double remembered =
      options_.s3fifo.history_factor * static_cast<double>(probation_count_ + main_count_ + 1);
  const bool comes_back = block.queue == Queue::kFailed &&
                          static_cast<double>(failures_) - block.heat.level <= remembered;
  block.queue = comes_back ? Queue::kMain : Queue::kProbation;
  block.heat.level = static_cast<double>(++places_);
  block.heat.touches = 0;
  ++(comes_back ? main_count_ : probation_count_);
}

void ExtentRanking::Evict(Standing& block) {
  if (kind_ != PolicyKind::kS3Fifo) return;
  const bool failed = block.queue == Queue::kProbation;
  Forget(block);
  if (!failed) return;
  block.queue = Queue::kFailed;
  block.heat.level = static_cast<double>(++failures_);
}

void ExtentRanking::Forget(Standing& block) {
  if (kind_ != PolicyKind::kS3Fifo) return;
  ABSL_RAW_CHECK(IsResident(block), "only a resident block can leave");
  --(block.queue == Queue::kProbation ? probation_count_ : main_count_);
  block.queue = Queue::kNone;
}

bool ExtentRanking::ProbationFirst() const {
  const double bound =
      options_.s3fifo.small_fraction * static_cast<double>(probation_count_ + main_count_);
  return static_cast<double>(probation_count_) >= std::max(1.0, bound);
}

bool ExtentRanking::Colder(const Standing& a, const Standing& b) const {
  if (kind_ == PolicyKind::kHeat) return kvstore::Colder(a.heat, b.heat);
  if (kind_ == PolicyKind::kLru) return a.heat.last_access < b.heat.last_access;
  const Queue first = ProbationFirst() ? Queue::kProbation : Queue::kMain;
  return std::make_tuple(a.queue != first, a.heat.level) <
         std::make_tuple(b.queue != first, b.heat.level);
}

bool ExtentRanking::Spare(Standing& block) {
  if (kind_ != PolicyKind::kS3Fifo) return false;
  const bool probation = block.queue == Queue::kProbation;
  if (block.heat.touches < (probation ? options_.s3fifo.promote_touches : 1)) return false;
  block.heat.touches = probation ? 0 : block.heat.touches - 1;
  if (probation) {
    --probation_count_;
    ++main_count_;
    block.queue = Queue::kMain;
  }
  block.heat.level = static_cast<double>(++places_);
  return true;
}

std::vector<size_t> ExtentRanking::Coldest(absl::Span<Standing* const> sample, size_t count) {
  std::vector<size_t> rest(sample.size());
  for (size_t i = 0; i < rest.size(); ++i) rest[i] = i;
  std::vector<size_t> chosen;
  // Ends: each round takes one, promotes one for good, or spends one of its touches.
  while (chosen.size() < count && !rest.empty()) {
    const auto coldest = std::min_element(rest.begin(), rest.end(), [&](size_t a, size_t b) {
      return Colder(*sample[a], *sample[b]);
    });
    if (Spare(*sample[*coldest])) continue;
    chosen.push_back(*coldest);
    rest.erase(coldest);
  }
  return chosen;
}

bool ExtentRanking::Admits(const Standing& newcomer, const Standing& victim) const {
  return kind_ != PolicyKind::kHeat || kvstore::Admits(options_.heat, newcomer.heat, victim.heat);
}

bool ExtentRanking::AdmitsAhead(const Standing& newcomer, const Standing& victim) const {
  if (kind_ == PolicyKind::kHeat) return kvstore::Admits(options_.heat, newcomer.heat, victim.heat);
  return victim.heat.last_access < newcomer.heat.last_access;
}

}  // namespace terrace::kvstore
