// Working memory of kernels: floats on a cache line, in a vector that keeps its capacity.
#ifndef TERRACE_ATTENTION_ALIGNED_FLOATS_H_
#define TERRACE_ATTENTION_ALIGNED_FLOATS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace terrace::attention {

inline constexpr size_t kLineFloats = 16;

// `count` rounded up to whole cache lines.
constexpr size_t WholeLines(size_t count) {
  return (count + kLineFloats - 1) / kLineFloats * kLineFloats;
}

// `count` floats of unspecified value inside `memory`, which grows when it is too small. Valid
// until the next call on `memory`.
inline float* AlignedFloats(std::vector<float>& memory, size_t count) {
  const size_t needed = count + kLineFloats - 1;
  if (memory.size() < needed) memory.resize(needed);
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  const size_t past = address / sizeof(float) % kLineFloats;
  return memory.data() + (kLineFloats - past) % kLineFloats;
}

}  // namespace terrace::attention

#endif  // TERRACE_ATTENTION_ALIGNED_FLOATS_H_
