// LruPolicy: whoever was touched longest ago leaves. O(1).
#ifndef TERRACE_KVSTORE_LRU_POLICY_H_
#define TERRACE_KVSTORE_LRU_POLICY_H_

#include <list>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "kvstore/placement_policy.h"

namespace terrace::kvstore {

class LruPolicy final : public PlacementPolicy {
 public:
  void Touch(BlockId block, double mass) override;
  std::optional<BlockId> Coldest(Evictable evictable) override;
  bool Admits(BlockId newcomer, BlockId victim) const override;
  void Insert(BlockId block) override;
  void Evict(BlockId block) override;
  void Forget(BlockId block) override;

 private:
  // The residents, coldest first.
  std::list<BlockId> order_;
  absl::flat_hash_map<BlockId, std::list<BlockId>::iterator> places_;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_LRU_POLICY_H_
