// Names of prefixes: a hash per block of tokens, chained from the first, over all that decides
// whether two sequences hold the same rows.
//
//   root  = H("terrace prefix 1", tenant, salt, fingerprint, adapter, geometry, row format)
//   block = H(block before it or root, provenance, token ids)
//
// twice: with SHA-256, and with XXH3-128 over a chain of its own. Two prefixes are the same when
// both agree, so that a collision of one shares nothing.
#ifndef TERRACE_SERVICES_ENGINE_PREFIX_HASH_H_
#define TERRACE_SERVICES_ENGINE_PREFIX_HASH_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "services/engine/sequence_info.h"

namespace terrace::engine {

// How the keys and values of a block came about.
enum class Provenance : uint8_t {
  kDense = 0,
  // Some attention on the way left rows out.
  kSparse = 1,
};

struct BlockHash {
  std::array<std::byte, 32> first{};
  std::array<std::byte, 16> second{};

  friend bool operator==(const BlockHash&, const BlockHash&) = default;
};

// For hash tables: the second digest is as good as random.
struct BlockHashHasher {
  size_t operator()(const BlockHash& hash) const;
};

using PrefixDigest = std::array<std::byte, 32> (*)(absl::string_view bytes);
std::array<std::byte, 32> Sha256(absl::string_view bytes);

// A value; its calls change nothing.
class PrefixHasher {
 public:
  // `digest` is Sha256, but for tests of what a collision does.
  PrefixHasher(absl::string_view tenant, const SequenceSpec& spec, uint32_t block_tokens,
               PrefixDigest digest);

  uint32_t block_tokens() const { return block_tokens_; }
  // What the first block is chained to.
  const BlockHash& root() const { return root_; }
  // Requires: tokens.size() == block_tokens().
  BlockHash Next(const BlockHash& parent, Provenance provenance,
                 absl::Span<const uint32_t> tokens) const;

 private:
  uint32_t block_tokens_;
  PrefixDigest digest_;
  BlockHash root_;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_PREFIX_HASH_H_
