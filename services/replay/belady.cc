#include "services/replay/belady.h"

#include <iterator>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"

namespace terrace::replay {
namespace {

constexpr uint32_t kNever = UINT32_MAX;

// By reference: the next one to the same block.
std::vector<uint32_t> NextUses(absl::Span<const uint32_t> blocks) {
  std::vector<uint32_t> next(blocks.size(), kNever);
  absl::flat_hash_map<uint32_t, uint32_t> upcoming;
  for (size_t i = blocks.size(); i-- > 0;) {
    const auto [found, last] = upcoming.try_emplace(blocks[i], kNever);
    next[i] = found->second;
    found->second = static_cast<uint32_t>(i);
  }
  return next;
}

}  // namespace

uint64_t BeladyHits(absl::Span<const uint32_t> blocks, size_t capacity) {
  const std::vector<uint32_t> next = NextUses(blocks);
  // Next uses of what is kept: no two blocks have the same. Those that are never used again share
  // one place, and it is the first to go.
  absl::btree_set<uint32_t> kept;
  uint64_t hits = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    hits += kept.erase(static_cast<uint32_t>(i));
    kept.insert(next[i]);
    if (kept.size() > capacity) kept.erase(std::prev(kept.end()));
  }
  return hits;
}

}  // namespace terrace::replay
