// PrefixIndex: which sequences hold a prefix, by the hash of its last block. A sequence that holds
// a block's hash holds all before it, so the longest match of a chain is the last hash that is
// known.
//
// Tenants are part of the hashes: a look-up costs and answers the same whatever others hold (I11).
#ifndef TERRACE_SERVICES_ENGINE_PREFIX_INDEX_H_
#define TERRACE_SERVICES_ENGINE_PREFIX_INDEX_H_

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/types/span.h"
#include "kvstore/mutex.h"
#include "services/engine/prefix_hash.h"
#include "services/engine/sequence.h"

namespace terrace::engine {

struct PrefixMatch {
  // Null when nothing matches.
  std::shared_ptr<Sequence> holder;
  // Blocks that match, and the hash of the last one.
  uint32_t blocks = 0;
  BlockHash last;
};

// Thread-safe; its lock is inside all others. What it says may be outdated when it is used: whoever
// takes the holder's gate asks the holder again.
class PrefixIndex {
 public:
  // `hashes` are those of blocks that `holder` has come to hold, or has given up.
  void Add(Sequence& holder, absl::Span<const BlockHash> hashes);
  void Remove(Sequence& holder, absl::Span<const BlockHash> hashes);

  // The longest prefix of `tokens`, whole blocks only. Blocks of sparse provenance count only when
  // the asker accepts them, and then those of dense provenance still do.
  PrefixMatch Find(const PrefixHasher& hasher, absl::Span<const uint32_t> tokens,
                   bool accept_sparse) const;

  size_t size() const {
    const kvstore::MutexLock lock(mu_);
    return holders_.size();
  }

 private:
  // Follows blocks of one provenance from `match` on, as far as they are known.
  void Follow(const PrefixHasher& hasher, Provenance provenance, absl::Span<const uint32_t> tokens,
              PrefixMatch& match) const;
  // Null when there is none.
  std::shared_ptr<Sequence> HolderOf(const BlockHash& hash) const;

  mutable kvstore::Mutex mu_;
  // By hash, a few each; weak because the engine decides how long a sequence lives.
  std::unordered_map<BlockHash, std::vector<std::weak_ptr<Sequence>>, BlockHashHasher> holders_
      ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_PREFIX_INDEX_H_
