// TokenChain: what is known of the tokens of one sequence. Ids of a run of tokens from the first
// on, and a hash for each block of them that is complete in all layers. Copies share what they have
// in common (shared_list.h), so that a fork of a long sequence costs little. Not thread-safe.
#ifndef TERRACE_SERVICES_ENGINE_TOKEN_CHAIN_H_
#define TERRACE_SERVICES_ENGINE_TOKEN_CHAIN_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "services/engine/prefix_hash.h"
#include "services/engine/shared_list.h"

namespace terrace::engine {

// What of a chain survives a restart: all hashes, 48 bytes each, and the last ids.
struct TokenRecord {
  std::vector<BlockHash> blocks;
  // Of `tokens`.
  int64_t first_position = 0;
  // Of the last block that has a hash, so that a truncate may cut it, and of those after it; before
  // it, of those that a crash may cut.
  std::vector<uint32_t> tokens;
  // Rows from here on came about under sparse attention.
  int64_t sparse_from = INT64_MAX;

  bool empty() const { return blocks.empty() && tokens.empty() && sparse_from == INT64_MAX; }
  // Tokens known: [0, end()).
  int64_t end() const { return first_position + static_cast<int64_t>(tokens.size()); }
};

class TokenChain {
 public:
  // 12 and 4 KiB, which is what a copy copies. A chunk of ids is whole blocks.
  using Hashes = SharedList<BlockHash, 256>;
  using Ids = SharedList<uint32_t, 1024>;

  // Requires: block_tokens() is a power of two, at most 1024.
  explicit TokenChain(PrefixHasher hasher) : hasher_(hasher) {}

  const PrefixHasher& hasher() const { return hasher_; }
  // Tokens known: [0, end()).
  int64_t end() const { return first_ + static_cast<int64_t>(tokens_.size()); }
  // Of blocks [0, blocks().size()).
  const Hashes& blocks() const { return blocks_; }

  // Ids of the tokens at [position, position + ids.size()). Those that are known stay as they are;
  // those after a gap are not taken. Whether there were new ones.
  bool Add(int64_t position, absl::Span<const uint32_t> ids);
  // Rows at `position` and after it are not those of dense attention. Requires: none of those rows
  // is complete in all layers, or they are marked already.
  void MarkSparse(int64_t position);
  // Where the first `length` tokens stop being those of dense attention; INT64_MAX for nowhere.
  int64_t SparseFrom(int64_t length) const {
    return sparse_from_ < length ? sparse_from_ : INT64_MAX;
  }
  // Hashes blocks below `length`, which is that of the shortest layer.
  void Advance(int64_t length);
  // Forgets tokens from `length` on.
  void Cut(int64_t length);

  // Of the first `length` tokens, of which a crash leaves `durable`.
  TokenRecord Record(int64_t length, int64_t durable) const;
  // What was recorded; nothing when the record contradicts itself, as that of another version may.
  // Requires: nothing was added.
  void Restore(const TokenRecord& record);

 private:
  PrefixHasher hasher_;
  Hashes blocks_;
  // Position of tokens_[0]: 0, or after a restart a block's.
  int64_t first_ = 0;
  Ids tokens_;
  int64_t sparse_from_ = INT64_MAX;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_TOKEN_CHAIN_H_
