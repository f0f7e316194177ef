#include "kvstore/eviction.h"

#include <algorithm>

namespace terrace::kvstore {

std::vector<size_t> ChooseLru(absl::Span<const EvictionCandidate> candidates, size_t count) {
  std::vector<size_t> chosen;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (candidates[i].evictable) chosen.push_back(i);
  }
  const auto colder = [&](size_t a, size_t b) {
    if (candidates[a].age != candidates[b].age) return candidates[a].age > candidates[b].age;
    return a < b;
  };
  const size_t kept = std::min(count, chosen.size());
  std::partial_sort(chosen.begin(), chosen.begin() + static_cast<ptrdiff_t>(kept), chosen.end(),
                    colder);
  chosen.resize(kept);
  return chosen;
}

}  // namespace terrace::kvstore
