// PlacementPolicy: which blocks deserve a place in a bounded tier, as a deterministic state
// machine over touches. It knows names of blocks and their traffic, neither bytes nor budgets: its
// owner says what came and what left, and decides when somebody has to leave.
//
//   policy->Touch(block, mass);                      // every reference, resident or not
//   if (!resident && full) {
//     const std::optional<BlockId> victim = policy->Coldest(evictable);
//     if (!victim || !policy->Admits(block, *victim)) return;   // bypass: serve it, keep it out
//     policy->Evict(*victim);
//   }
//   if (!resident) policy->Insert(block);
//
// Who must have room whatever the policy thinks (a write) skips Admits.
//
// No clock, no threads, no randomness: the same calls give the same answers. Not thread-safe.
#ifndef TERRACE_KVSTORE_PLACEMENT_POLICY_H_
#define TERRACE_KVSTORE_PLACEMENT_POLICY_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"
#include "kvstore/heat.h"

namespace terrace::kvstore {

// Given by the owner of the policy; unique while the block exists.
enum class BlockId : uint64_t {};

enum class PolicyKind {
  // Decayed mass with admission: heat.h. The default.
  kHeat,
  // Whoever was touched longest ago leaves; everything is admitted.
  kLru,
  // A small queue on probation before the main one, and a list of those that failed it (Yang et
  // al., SOSP 2023).
  kS3Fifo,
};
inline constexpr PolicyKind kDefaultPolicy = PolicyKind::kHeat;

struct S3FifoOptions {
  // Share of the residents on probation, in [0, 1].
  double small_fraction = 0.1;
  // Touches after its insertion that take a block from probation to the main queue; 1 to 3.
  uint32_t promote_touches = 2;
  // Blocks that are remembered without being resident, as a multiple of those that are; at least 0.
  double history_factor = 1;
};

struct PlacementOptions {
  HeatOptions heat = {};
  S3FifoOptions s3fifo = {};
};

// Whether a resident block may leave: no pin, nothing unwritten (I3).
using Evictable = absl::FunctionRef<bool(BlockId)>;

class PlacementPolicy {
 public:
  virtual ~PlacementPolicy() = default;

  // A reference that captured `mass`. Requires: mass is finite, at least 0. References that tell no
  // mass count 1 each.
  virtual void Touch(BlockId block, double mass) = 0;

  // Who leaves next among the residents that may; none when nobody may. Those that may not are
  // passed over, and keep their turn. O(log n) and one step for each that is passed over.
  virtual std::optional<BlockId> Coldest(Evictable evictable) = 0;

  // Whether a block that has just been touched is worth the place of a resident one.
  virtual bool Admits(BlockId newcomer, BlockId victim) const = 0;

  // Requires: not resident.
  virtual void Insert(BlockId block) = 0;
  // The block lost its place and may come back. Requires: resident.
  virtual void Evict(BlockId block) = 0;
  // The block ceased to exist; nothing is remembered of it. Any block, known or not.
  virtual void Forget(BlockId block) = 0;
};

std::unique_ptr<PlacementPolicy> MakePlacementPolicy(PolicyKind kind,
                                                     const PlacementOptions& options = {});

// "heat", "lru" or "s3fifo".
absl::string_view PolicyName(PolicyKind kind);
std::optional<PolicyKind> ParsePolicyKind(absl::string_view name);

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_PLACEMENT_POLICY_H_
