// ExtentRanking: the placement policies for an owner that keeps what is known of a block beside the
// block, resident or not, and ranks a sample of the residents instead of all. With everything in
// the sample it decides as PlacementPolicy does, but for what that forgets of the absent.
//
//   ranking.Touch(mass, block);                        // every reference, resident or not
//   if (!resident && full) {
//     const std::vector<size_t> victim = ranking.Coldest(sample, 1);
//     if (victim.empty() || !ranking.Admits(block, *sample[victim[0]])) return;   // bypass
//     ranking.Evict(*sample[victim[0]]);
//   }
//   if (!resident) ranking.Insert(block);
//
// No clock, no threads, no randomness, no memory of single blocks. A touch is O(1). Not
// thread-safe.
#ifndef TERRACE_KVSTORE_EXTENT_RANKING_H_
#define TERRACE_KVSTORE_EXTENT_RANKING_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kvstore/heat.h"
#include "kvstore/placement_policy.h"

namespace terrace::kvstore {

// The mass of a reference that tells none: it counts like the geometric mean of those that do, so
// that copies and exports neither wash heat out nor go unnoticed.
inline constexpr float kUntoldMass = -1;

// What is known of one block.
struct Standing {
  // All of it under `heat`, the last access under any policy. Under `s3fifo` the level is the place
  // in its queue, and touches are those not yet spent.
  BlockHeat heat;
  // Of `s3fifo`.
  enum class Queue : uint8_t { kNone, kProbation, kMain, kFailed };
  Queue queue = Queue::kNone;
};

class ExtentRanking {
 public:
  // Rankings that share a clock share the count of accesses. `clock` must outlive this.
  ExtentRanking(PolicyKind kind, const PlacementOptions& options, HeatClock& clock);

  // Requires: mass is finite and at least 0, or kUntoldMass.
  void Touch(float mass, Standing& block);
  // Requires: not resident.
  void Insert(Standing& block);
  // The block lost its place and may come back. Requires: resident.
  void Evict(Standing& block);
  // The block ceased to exist. Requires: resident.
  void Forget(Standing& block);

  // Indices of those of the sample that leave next, at most `count`, coldest first; ties keep the
  // lower index. Under `s3fifo`, some of the others get another round.
  // Requires: all are resident, and may leave.
  std::vector<size_t> Coldest(absl::Span<Standing* const> sample, size_t count);
  // Whether `a` leaves before `b`.
  bool Colder(const Standing& a, const Standing& b) const;
  // Whether a block that has just been touched is worth the place of a resident one.
  bool Admits(const Standing& newcomer, const Standing& victim) const;
  // Whether a block that nobody has asked for yet is.
  bool AdmitsAhead(const Standing& newcomer, const Standing& victim) const;

 private:
  // Whether those on probation leave before the others.
  bool ProbationFirst() const;
  // Gives another round to who has earned one.
  bool Spare(Standing& block);

  const PolicyKind kind_;
  const PlacementOptions options_;
  HeatClock& clock_;
  // Mean log2 of the masses that were told.
  double typical_level_ = 0;
  uint64_t told_ = 0;

  // Of s3fifo. Places are handed out in order; those of the failed count themselves only.
  uint64_t places_ = 0;
  uint64_t failures_ = 0;
  uint64_t probation_count_ = 0;
  uint64_t main_count_ = 0;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_EXTENT_RANKING_H_
