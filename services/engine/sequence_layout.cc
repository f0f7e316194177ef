#include "services/engine/sequence_layout.h"

// On x86 the library's own entry points stay with SSE2.
#if defined(__x86_64__)
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "attention/row_attention.h"

namespace terrace::engine {
namespace {

// Reads below this size cost a disk about as much as this size.
constexpr size_t kGranuleBytes = 8192;

attention::IndexLayout IndexOf(const SequenceSpec& spec, int block_tokens, int index_tokens) {
  return {.format = spec.index_format,
          .dtype = spec.geometry.storage,
          .head_dim = spec.geometry.head_dim,
          .block_tokens = block_tokens,
          .stripe_tokens = index_tokens};
}

}  // namespace

SequenceLayout SequenceLayout::Make(const SequenceSpec& spec, int block_tokens, int index_tokens) {
  SequenceLayout layout;
  layout.shape = spec.geometry.head_shape();
  layout.index = IndexOf(spec, block_tokens, index_tokens);
  const auto dim = static_cast<uint32_t>(spec.geometry.head_dim);
  const auto tokens = static_cast<uint32_t>(block_tokens);
  kvstore::BlockLayout& block = layout.block;
  block.layers = static_cast<uint16_t>(spec.geometry.layers);
  block.heads = static_cast<uint16_t>(spec.geometry.kv_heads);
  block.block_tokens = tokens;
  block.row_bytes = static_cast<uint32_t>(spec.geometry.row_bytes());
  block.granule_tokens = std::bit_floor(static_cast<uint32_t>(
      std::clamp<size_t>(kGranuleBytes / block.row_bytes, (tokens + 63) / 64, tokens)));
  block.stripe_blocks = static_cast<uint32_t>(index_tokens / block_tokens);
  block.planes.push_back({dim, tokens * static_cast<uint32_t>(layout.index.code_bytes())});
  if (layout.index.param_bytes() > 0) {
    block.planes.push_back({dim, static_cast<uint32_t>(layout.index.param_bytes())});
  }
  block.planes.push_back({1, dim * static_cast<uint32_t>(sizeof(float))});
  block.planes.push_back({1, tokens * static_cast<uint32_t>(sizeof(uint32_t))});
  return layout;
}

SequenceLayout SequenceLayout::FromBlock(const SequenceSpec& spec,
                                         const kvstore::BlockLayout& block) {
  SequenceLayout layout;
  layout.block = block;
  layout.shape = spec.geometry.head_shape();
  layout.index = IndexOf(spec, static_cast<int>(block.block_tokens),
                         static_cast<int>(block.block_tokens * block.stripe_blocks));
  return layout;
}

absl::Status SequenceLayout::EncodePiece(const std::byte* rows, std::byte* piece) const {
  if (absl::Status status = attention::EncodeBlock(index, rows, piece); !status.ok()) {
    return status;
  }
  std::vector<double> sum(shape.head_dim, 0.0);
  attention::AddValues(shape, rows, block.block_tokens, sum.data());
  const std::vector<float> narrow(sum.begin(), sum.end());
  std::memcpy(piece + block.plane_offset_in_piece(sum_plane()), narrow.data(),
              narrow.size() * sizeof(float));
  std::byte* digests = piece + block.plane_offset_in_piece(digest_plane());
  for (uint32_t row = 0; row < block.block_tokens; ++row) {
    const uint32_t digest =
        RowDigest({rows + size_t{row} * block.row_bytes, size_t{block.row_bytes}});
    std::memcpy(digests + row * sizeof(digest), &digest, sizeof(digest));
  }
  return absl::OkStatus();
}

const float* SequenceLayout::ValueSum(const std::byte* stripe, uint32_t cell) const {
  const std::byte* plane = stripe + block.plane_offset_in_stripe(sum_plane());
  return reinterpret_cast<const float*>(plane + size_t{cell} * shape.head_dim * sizeof(float));
}

uint32_t SequenceLayout::Digest(const std::byte* stripe, uint32_t cell, uint32_t row) const {
  const std::byte* plane = stripe + block.plane_offset_in_stripe(digest_plane());
  uint32_t digest = 0;
  std::memcpy(&digest, plane + (size_t{cell} * block.block_tokens + row) * sizeof(digest),
              sizeof(digest));
  return digest;
}

uint32_t RowDigest(absl::Span<const std::byte> row) {
  return static_cast<uint32_t>(XXH3_64bits(row.data(), row.size()));
}

}  // namespace terrace::engine
