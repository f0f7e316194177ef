// HeatPolicy: the coldest block leaves, and only for a hotter one. O(log n).
#ifndef TERRACE_KVSTORE_HEAT_POLICY_H_
#define TERRACE_KVSTORE_HEAT_POLICY_H_

#include <cstddef>
#include <list>
#include <optional>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "kvstore/heat.h"
#include "kvstore/placement_policy.h"

namespace terrace::kvstore {

class HeatPolicy final : public PlacementPolicy {
 public:
  explicit HeatPolicy(const HeatOptions& options);

  void Touch(BlockId block, double mass) override;
  std::optional<BlockId> Coldest(Evictable evictable) override;
  bool Admits(BlockId newcomer, BlockId victim) const override;
  void Insert(BlockId block) override;
  void Evict(BlockId block) override;
  void Forget(BlockId block) override;

  // Blocks that are remembered without being resident.
  size_t history_count() const { return history_.size(); }

 private:
  struct Ranked {
    BlockHeat heat;
    BlockId block{};

    friend bool operator<(const Ranked& a, const Ranked& b) {
      if (Colder(a.heat, b.heat)) return true;
      return !Colder(b.heat, a.heat) && a.block < b.block;
    }
  };
  struct Known {
    BlockHeat heat;
    bool resident = false;
    // In history_, unless resident.
    std::list<BlockId>::iterator place;
  };

  Known& Find(BlockId block);
  void Remember(BlockId block, Known& known);
  void TrimHistory();

  const HeatOptions options_;
  HeatClock clock_;
  absl::flat_hash_map<BlockId, Known> known_;
  // Coldest first.
  absl::btree_set<Ranked> residents_;
  // Touched or evicted longest ago first.
  std::list<BlockId> history_;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_HEAT_POLICY_H_
