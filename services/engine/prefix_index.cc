#include "services/engine/prefix_index.h"

#include <algorithm>
#include <utility>

namespace terrace::engine {

void PrefixIndex::Add(Sequence& holder, absl::Span<const BlockHash> hashes) {
  if (hashes.empty()) return;
  const kvstore::MutexLock lock(mu_);
  for (const BlockHash& hash : hashes) holders_[hash].push_back(holder.weak_from_this());
}

void PrefixIndex::Remove(Sequence& holder, absl::Span<const BlockHash> hashes) {
  if (hashes.empty()) return;
  const std::weak_ptr<Sequence> self = holder.weak_from_this();
  const kvstore::MutexLock lock(mu_);
  for (const BlockHash& hash : hashes) {
    const auto found = holders_.find(hash);
    if (found == holders_.end()) continue;
    auto& list = found->second;
    const auto entry = std::find_if(list.begin(), list.end(), [&](const auto& other) {
      return !other.owner_before(self) && !self.owner_before(other);
    });
    if (entry == list.end()) continue;
    std::swap(*entry, list.back());
    list.pop_back();
    if (list.empty()) holders_.erase(found);
  }
}

std::shared_ptr<Sequence> PrefixIndex::HolderOf(const BlockHash& hash) const {
  const kvstore::MutexLock lock(mu_);
  const auto found = holders_.find(hash);
  return found == holders_.end() ? nullptr : found->second.back().lock();
}

void PrefixIndex::Follow(const PrefixHasher& hasher, Provenance provenance,
                         absl::Span<const uint32_t> tokens, PrefixMatch& match) const {
  const size_t block_tokens = hasher.block_tokens();
  while ((match.blocks + size_t{1}) * block_tokens <= tokens.size()) {
    const BlockHash hash = hasher.Next(match.last, provenance,
                                       tokens.subspan(match.blocks * block_tokens, block_tokens));
    std::shared_ptr<Sequence> holder = HolderOf(hash);
    if (holder == nullptr) return;
    match = {.holder = std::move(holder), .blocks = match.blocks + 1, .last = hash};
  }
}

PrefixMatch PrefixIndex::Find(const PrefixHasher& hasher, absl::Span<const uint32_t> tokens,
                              bool accept_sparse) const {
  PrefixMatch match = {.holder = nullptr, .blocks = 0, .last = hasher.root()};
  if (!accept_sparse) {
    Follow(hasher, Provenance::kDense, tokens, match);
    return match;
  }
  // Rows that follow sparse ones are sparse, so sparse blocks branch off some dense prefix.
  PrefixMatch longest = match;
  while (true) {
    PrefixMatch branch = match;
    Follow(hasher, Provenance::kSparse, tokens, branch);
    if (branch.blocks > longest.blocks) longest = std::move(branch);
    const uint32_t before = match.blocks;
    const size_t next = std::min(tokens.size(), (before + size_t{1}) * hasher.block_tokens());
    Follow(hasher, Provenance::kDense, tokens.first(next), match);
    if (match.blocks == before) break;
    if (match.blocks > longest.blocks) longest = match;
  }
  return longest;
}

}  // namespace terrace::engine
