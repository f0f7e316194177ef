// Element types in which rows are stored, and their conversion to and from fp32.
#ifndef TERRACE_ATTENTION_DTYPE_H_
#define TERRACE_ATTENTION_DTYPE_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace terrace::attention {

enum class Dtype : uint8_t { kFloat32 = 1, kBFloat16 = 2, kFloat16 = 3 };

constexpr size_t DtypeBytes(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }
std::string_view DtypeName(Dtype dtype);

// `count` little-endian elements of `dtype` at `in` (any alignment) become floats.
void ToFloat(Dtype dtype, const std::byte* in, size_t count, float* out);

// Floats become elements of `dtype`, rounded to nearest, ties to even.
void FromFloat(Dtype dtype, const float* in, size_t count, std::byte* out);

// `count` elements of `from` become elements of `to`: the same bytes when the types are the same,
// else rounded as above. Any alignment; `in` and `out` do not overlap.
void Convert(Dtype from, const std::byte* in, size_t count, Dtype to, std::byte* out);

// The largest |element|, 0 of none. NaN when one is NaN, else infinite when one is.
float LargestMagnitude(Dtype dtype, const std::byte* in, size_t count);

}  // namespace terrace::attention

#endif  // TERRACE_ATTENTION_DTYPE_H_
