#include "kvstore/lru_policy.h"

#include <algorithm>

#include "absl/base/internal/raw_logging.h"

namespace terrace::kvstore {

void LruPolicy::Touch(BlockId block, double /*mass*/) {
  const auto place = places_.find(block);
  if (place != places_.end()) order_.splice(order_.end(), order_, place->second);
}

std::optional<BlockId> LruPolicy::Coldest(Evictable evictable) {
  const auto found = std::find_if(order_.begin(), order_.end(), evictable);
  if (found == order_.end()) return std::nullopt;
  return *found;
}

bool LruPolicy::Admits(BlockId /*newcomer*/, BlockId /*victim*/) const { return true; }

void LruPolicy::Insert(BlockId block) {
  const bool inserted = places_.emplace(block, order_.insert(order_.end(), block)).second;
  ABSL_RAW_CHECK(inserted, "block is resident already");
}

void LruPolicy::Evict(BlockId block) {
  ABSL_RAW_CHECK(places_.contains(block), "only a resident block can leave");
  Forget(block);
}

void LruPolicy::Forget(BlockId block) {
  const auto place = places_.find(block);
  if (place == places_.end()) return;
  order_.erase(place->second);
  places_.erase(place);
}

}  // namespace terrace::kvstore
