// Heat: the decayed mass that a block received, and the arithmetic of comparing it. Time is the
// count of accesses; there is no clock here, no lock and no I/O.
//
// Mass loses half its weight with each half-life. So that nothing has to be revisited, a block
// carries its *level*: log2 of its heat plus what the clock read, in half-lives, at its last touch.
// Decay moves all levels alike, so levels of any age compare as they stand.
#ifndef TERRACE_KVSTORE_HEAT_H_
#define TERRACE_KVSTORE_HEAT_H_

#include <cstdint>
#include <limits>

namespace terrace::kvstore {

struct HeatOptions {
  // Accesses in which heat halves; 0 measures it: `half_life_gaps` mean gaps between
  // two touches of one block, as far as both were seen. What lies between two uses of a block is a
  // matter of the workload, and it changes with the load.
  double half_life_accesses = 0;
  // Above 0.
  double half_life_gaps = 1;
  // Heat counts mass to this power, in (0, 1]. What a block captures swings by orders of magnitude
  // from step to step, while a miss costs the same: less than 1 makes more of being selected at
  // all.
  double mass_exponent = 0.5;
  // The mean is over about so many gaps, at least 1.
  uint32_t gap_window = 4096;
  // A block that has been touched less often must be `2^contrast` times as hot as what it would
  // displace; from then on, hotter is enough. Both keep what passes by once from pushing out what
  // is waiting for its next use.
  uint32_t admit_touches = 2;
  // At least 0.
  double contrast = 0.5;
  // Blocks that are remembered without being resident, as a multiple of those that are; at least 0.
  // Kept to whenever one of them is touched: who was touched or evicted longest ago is forgotten.
  double history_factor = 8;
};

// What is known of one block, resident or not.
struct BlockHeat {
  // No mass yet.
  double level = -std::numeric_limits<double>::infinity();
  // Access that touched it last, counted from 1; 0 for never.
  uint64_t last_access = 0;
  uint32_t touches = 0;
};

// HeatClock counts accesses and knows how fast heat decays. Deterministic: its state follows from
// the touches. Not thread-safe.
class HeatClock {
 public:
  explicit HeatClock(const HeatOptions& options);

  // One access: time goes on, and `heat` receives `mass`. Requires: mass is finite, at least 0.
  void Touch(double mass, BlockHeat& heat);
  // An access that says nothing of heat; the block remembers when.
  void Pass(BlockHeat& heat) { heat.last_access = ++accesses_; }

  double half_life_accesses() const;
  uint64_t accesses() const { return accesses_; }
  // Decayed mass as of now.
  double Heat(const BlockHeat& heat) const;

 private:
  void MeasureGap(double gap);

  const HeatOptions options_;
  uint64_t accesses_ = 0;
  uint64_t gaps_ = 0;
  double mean_gap_ = 1;
  // Half-lives since the start. The half-life varies, so this is no multiple of accesses_.
  double reading_ = 0;
};

// Whether `a` leaves before `b`: less heat, and among equals the one touched longer ago.
bool Colder(const BlockHeat& a, const BlockHeat& b);

// Whether `newcomer` is worth the place of `victim`.
bool Admits(const HeatOptions& options, const BlockHeat& newcomer, const BlockHeat& victim);

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_HEAT_H_
