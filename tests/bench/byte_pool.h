// BytePool: bytes that follow from an id, without being remembered or made anew each time. Read as
// bf16 they are finite, from 1 to 2 in magnitude.
#ifndef TERRACE_TESTS_BENCH_BYTE_POOL_H_
#define TERRACE_TESTS_BENCH_BYTE_POOL_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace terrace::bench {

class BytePool {
 public:
  explicit BytePool(size_t bytes) : words_(bytes / sizeof(uint64_t)) {
    std::mt19937_64 random(1);
    for (uint64_t& word : words_) word = (random() & 0x807F807F807F807Fu) | 0x3F803F803F803F80u;
  }

  // `size` bytes; other ids get others, but for chance. Requires: size <= half of the pool.
  const std::byte* Of(uint64_t id, size_t size) const {
    uint64_t mixed = (id + 1) * 0x9E3779B97F4A7C15u;
    mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9u;
    const size_t room = words_.size() - size / sizeof(uint64_t);
    return data() + (mixed >> 20) % room * sizeof(uint64_t);
  }
  const std::byte* data() const { return reinterpret_cast<const std::byte*>(words_.data()); }
  size_t size() const { return words_.size() * sizeof(uint64_t); }

 private:
  std::vector<uint64_t> words_;
};

}  // namespace terrace::bench

#endif  // TERRACE_TESTS_BENCH_BYTE_POOL_H_
