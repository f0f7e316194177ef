#include "services/policy_check/stored_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "attention/half.h"

namespace terrace::policy_check {
namespace {

using attention::Dtype;
using attention::reference::Problem;

// Largest error of one element rounded to nearest: relative, and absolute among subnormals.
struct Rounding {
  double relative = 0;
  double absolute = 0;
};

Rounding RoundingOf(Dtype dtype) {
  // The way through fp32 rounds once more, which may lead a tie of the second rounding astray.
  const double twice = 1 + std::ldexp(1.0, -10);
  switch (dtype) {
    case Dtype::kFloat32:
      return {std::ldexp(1.0, -24), std::ldexp(1.0, -150)};
    case Dtype::kBFloat16:
      return {std::ldexp(twice, -8), std::ldexp(twice, -134)};
    case Dtype::kFloat16:
      return {std::ldexp(twice, -11), std::ldexp(twice, -25)};
  }
  return {};
}

absl::Status CheckRounding(absl::string_view field, Dtype dtype, const std::vector<double>& given,
                           const std::vector<double>& stored, int head_dim) {
  const Rounding rounding = RoundingOf(dtype);
  for (size_t i = 0; i < given.size(); ++i) {
    const double allowed = std::max(std::abs(given[i]) * rounding.relative, rounding.absolute);
    if (std::abs(stored[i] - given[i]) <= allowed) continue;
    return absl::OutOfRangeError(absl::StrCat(
        field, " row ", i / head_dim, ", element ", i % head_dim, ": ", given[i], " became ",
        stored[i], " as ", attention::DtypeName(dtype).data(), ", allowed error ", allowed));
  }
  return absl::OkStatus();
}

std::vector<double> ThroughFloat(const std::vector<double>& values) {
  std::vector<double> rounded;
  rounded.reserve(values.size());
  for (const double value : values) rounded.push_back(static_cast<float>(value));
  return rounded;
}

// Element [head][token][0] of k or v.
size_t RowStart(const Problem& problem, int head, int token) {
  return (static_cast<size_t>(head) * problem.tokens + token) * problem.head_dim;
}

// Rounds one half of a row: `values` become bytes at `out` and what those mean.
void EncodeHalf(Dtype dtype, absl::Span<double> values, std::byte* out) {
  std::vector<float> floats(values.begin(), values.end());
  attention::FromFloat(dtype, floats.data(), floats.size(), out);
  attention::ToFloat(dtype, out, floats.size(), floats.data());
  std::copy(floats.begin(), floats.end(), values.begin());
}

void EncodeRows(StoredCase& stored) {
  Problem& problem = stored.problem;
  const auto dim = static_cast<size_t>(problem.head_dim);
  const size_t row_bytes = stored.shape().row_bytes();
  for (int head = 0; head < problem.kv_heads; ++head) {
    std::vector<std::byte>& rows = stored.rows.emplace_back(problem.tokens * row_bytes);
    for (int t = 0; t < problem.tokens; ++t) {
      const size_t start = RowStart(problem, head, t);
      std::byte* const row = rows.data() + t * row_bytes;
      EncodeHalf(stored.format.storage, absl::MakeSpan(problem.k).subspan(start, dim), row);
      EncodeHalf(stored.format.storage, absl::MakeSpan(problem.v).subspan(start, dim),
                 row + row_bytes / 2);
    }
  }
}

uint16_t HalfAt(const std::byte* bytes) {
  uint16_t half;
  std::memcpy(&half, bytes, sizeof(half));
  return half;
}

// The key of one channel and row that a piece holds.
double Decode(const attention::IndexLayout& layout, const std::byte* piece, int channel, int row) {
  const size_t element = static_cast<size_t>(channel) * layout.block_tokens + row;
  if (layout.format == attention::IndexFormat::kExact) {
    float key = 0;
    attention::ToFloat(layout.dtype, piece + element * layout.code_bytes(), 1, &key);
    return key;
  }
  const std::byte* const params = piece +
                                  static_cast<size_t>(layout.head_dim) * layout.block_tokens +
                                  channel * layout.param_bytes();
  const double scale = attention::FloatFromHalf(HalfAt(params));
  const double minimum = attention::FloatFromHalf(HalfAt(params + 2));
  return minimum + scale * static_cast<int>(piece[element]);
}

// Half a step of an int8 channel, with what fp16 adds to step and minimum; 0 for an exact index.
double IndexError(attention::IndexFormat format, const std::vector<double>& keys) {
  if (format == attention::IndexFormat::kExact) return 0;
  const auto [low, high] = std::minmax_element(keys.begin(), keys.end());
  const double half_relative = std::ldexp(1.0, -10);
  const double half_smallest = std::ldexp(1.0, -24);
  const double range = *high - *low + std::abs(*low) * half_relative + half_smallest;
  const double step = range / 255 * (1 + half_relative) + half_smallest;
  return 0.501 * step;
}

// Decodes one block of one head into index_k and checks every key.
absl::Status DecodeBlock(const std::byte* piece, int head, int block, StoredCase& stored) {
  const attention::IndexLayout layout = stored.layout();
  for (int c = 0; c < layout.head_dim; ++c) {
    std::vector<double> keys;
    for (int row = 0; row < layout.block_tokens; ++row) {
      const int token = block * layout.block_tokens + row;
      keys.push_back(stored.problem.k[RowStart(stored.problem, head, token) + c]);
    }
    const double allowed = IndexError(layout.format, keys);
    for (int row = 0; row < layout.block_tokens; ++row) {
      const double key = Decode(layout, piece, c, row);
      const int token = block * layout.block_tokens + row;
      stored.index_k[RowStart(stored.problem, head, token) + c] = key;
      if (std::abs(key - keys[row]) <= allowed) continue;
      return absl::OutOfRangeError(absl::StrCat("score index, KV head ", head, ", position ", token,
                                                ", channel ", c, ": ", keys[row], " became ", key,
                                                ", allowed error ", allowed));
    }
  }
  return absl::OkStatus();
}

absl::Status EncodeIndex(StoredCase& stored) {
  const attention::IndexLayout layout = stored.layout();
  const size_t block_bytes = layout.block_tokens * stored.shape().row_bytes();
  const int blocks = stored.problem.tokens / layout.block_tokens;
  stored.index_k = stored.problem.k;
  for (int head = 0; head < stored.problem.kv_heads; ++head) {
    std::vector<std::byte>& pieces = stored.pieces.emplace_back(blocks * layout.piece_bytes());
    for (int block = 0; block < blocks; ++block) {
      std::byte* const piece = pieces.data() + block * layout.piece_bytes();
      absl::Status status =
          attention::EncodeBlock(layout, stored.rows[head].data() + block * block_bytes, piece);
      if (status.ok()) status = DecodeBlock(piece, head, block, stored);
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace

attention::HeadShape StoredCase::shape() const {
  return {.head_dim = problem.head_dim,
          .group = problem.query_heads / problem.kv_heads,
          .dtype = format.storage,
          .scale = 1.0F / std::sqrt(static_cast<float>(problem.head_dim))};
}

attention::IndexLayout StoredCase::layout() const {
  return {.format = format.index,
          .dtype = format.storage,
          .head_dim = problem.head_dim,
          .block_tokens = format.block_tokens,
          .stripe_tokens = format.index_tokens};
}

absl::StatusOr<StoredCase> Store(const Problem& given, const StoreFormat& format) {
  if (given.head_dim % 8 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("q: got ", given.head_dim, " elements per head, expected a multiple of 8"));
  }
  StoredCase stored;
  stored.format = format;
  stored.problem = given;
  stored.problem.q = ThroughFloat(given.q);
  EncodeRows(stored);
  absl::Status status =
      CheckRounding("q", Dtype::kFloat32, given.q, stored.problem.q, given.head_dim);
  if (status.ok()) {
    status = CheckRounding("k", format.storage, given.k, stored.problem.k, given.head_dim);
  }
  if (status.ok()) {
    status = CheckRounding("v", format.storage, given.v, stored.problem.v, given.head_dim);
  }
  if (status.ok()) status = EncodeIndex(stored);
  if (!status.ok()) return status;
  return stored;
}

}  // namespace terrace::policy_check
