// A wait for stores that have not said who they are: all are asked at once, and each answer counts
// when it comes.
#ifndef TERRACE_SERVICES_KV_STORE_SHARD_SEARCH_H_
#define TERRACE_SERVICES_KV_STORE_SHARD_SEARCH_H_

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "services/kv_store/shard.h"

namespace terrace::kv_store {

// For one thread. The shards must outlive it. Holds a slot of each store that it waits for.
class ShardSearch {
 public:
  // Asks those of `shards` whose number is not known; not those that too many threads wait for.
  ShardSearch(const std::vector<Shard*>& shards, absl::Time deadline);
  ~ShardSearch();
  ShardSearch(const ShardSearch&) = delete;
  ShardSearch& operator=(const ShardSearch&) = delete;

  // Waits until one more of them has answered or failed. False when none is left, or at the
  // deadline.
  bool AwaitNext();

 private:
  struct Answers;

  const absl::Time deadline_;
  size_t asked_ = 0;
  size_t seen_ = 0;
  // Owned with the shards that have yet to answer, which may be after this search.
  const std::shared_ptr<Answers> answers_;
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_SHARD_SEARCH_H_
