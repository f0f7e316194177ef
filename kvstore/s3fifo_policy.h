// S3FifoPolicy: new blocks are on probation in a small queue. Those that were touched often enough
// by its end move to the main queue, the others leave and are remembered: one that comes back goes
// to the main queue at once. The main queue gives one more round for each of up to three touches.
// O(1), amortised.
#ifndef TERRACE_KVSTORE_S3FIFO_POLICY_H_
#define TERRACE_KVSTORE_S3FIFO_POLICY_H_

#include <cstdint>
#include <list>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "kvstore/placement_policy.h"

namespace terrace::kvstore {

class S3FifoPolicy final : public PlacementPolicy {
 public:
  explicit S3FifoPolicy(const S3FifoOptions& options);

  void Touch(BlockId block, double mass) override;
  std::optional<BlockId> Coldest(Evictable evictable) override;
  bool Admits(BlockId newcomer, BlockId victim) const override;
  void Insert(BlockId block) override;
  void Evict(BlockId block) override;
  void Forget(BlockId block) override;

 private:
  // Oldest first.
  using Queue = std::list<BlockId>;
  struct Known {
    // The queue that holds it: small_, main_ or history_.
    Queue* queue = nullptr;
    Queue::iterator place;
    // Touches not yet spent, up to three.
    uint32_t touches = 0;
  };

  // The oldest of `queue` that may leave, or its end.
  static Queue::iterator Oldest(Queue& queue, Evictable evictable);
  void MoveToBack(Known& known, Queue& queue);
  void TrimHistory();

  const S3FifoOptions options_;
  absl::flat_hash_map<BlockId, Known> known_;
  Queue small_;
  Queue main_;
  Queue history_;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_S3FIFO_POLICY_H_
