// Identity of a block, and its order-preserving encoding.
#ifndef TERRACE_KVSTORE_BLOCK_KEY_H_
#define TERRACE_KVSTORE_BLOCK_KEY_H_

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>

namespace terrace::kvstore {

// Globally unique and never reused: shard in the upper 16 bits, a counter below.
enum class SegmentId : uint64_t {};

// One block: `block` counts from the start of the sequence (position / block_tokens), so that
// blocks of the segments of one sequence never overlap.
struct BlockKey {
  SegmentId segment{};
  uint16_t layer = 0;
  uint16_t head = 0;
  uint32_t block = 0;

  friend auto operator<=>(const BlockKey&, const BlockKey&) = default;
};

inline constexpr size_t kEncodedBlockKeyBytes = 16;

// Big-endian fields in order: byte order equals key order.
std::array<char, kEncodedBlockKeyBytes> Encode(const BlockKey& key);
BlockKey DecodeBlockKey(const std::array<char, kEncodedBlockKeyBytes>& bytes);

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_BLOCK_KEY_H_
