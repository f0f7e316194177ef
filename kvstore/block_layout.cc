#include "kvstore/block_layout.h"

#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kvstore/byte_codec.h"

namespace terrace::kvstore {
namespace {

// Bounds that keep every product below in 64 bits and metadata per segment small.
constexpr uint32_t kLanesMax = 65536;
constexpr uint32_t kTokensMax = 65536;
constexpr uint64_t kExtentBytesMax = uint64_t{64} << 20;
constexpr size_t kPlanesMax = 16;
constexpr uint32_t kCellsMax = 64;

absl::Status Refuse(absl::string_view field, uint64_t got, absl::string_view allowed) {
  return absl::InvalidArgumentError(
      absl::StrCat("block layout: ", field, " is ", got, ", allowed: ", allowed));
}

absl::Status ValidatePlanes(const BlockLayout& layout) {
  if (layout.planes.size() > kPlanesMax) return Refuse("planes", layout.planes.size(), "0 to 16");
  uint64_t piece_bytes = 0;
  for (const Plane& plane : layout.planes) {
    if (plane.count == 0) return Refuse("plane count", plane.count, "at least 1");
    if (plane.cell_bytes == 0) return Refuse("plane cell_bytes", plane.cell_bytes, "at least 1");
    // At most 16 products of 32-bit factors, each checked before the next is added.
    piece_bytes += uint64_t{plane.count} * plane.cell_bytes;
    if (piece_bytes > kExtentBytesMax / layout.stripe_blocks) {
      return Refuse("stripe bytes", piece_bytes * layout.stripe_blocks, "at most 64 MiB");
    }
  }
  return absl::OkStatus();
}

}  // namespace

size_t BlockLayout::piece_bytes() const { return plane_offset_in_piece(planes.size()); }

size_t BlockLayout::plane_offset_in_stripe(size_t plane) const {
  return plane_offset_in_piece(plane) * stripe_blocks;
}

size_t BlockLayout::plane_offset_in_piece(size_t plane) const {
  size_t offset = 0;
  for (size_t i = 0; i < plane; ++i) offset += size_t{planes[i].count} * planes[i].cell_bytes;
  return offset;
}

void BlockLayout::Scatter(const std::byte* pieces, uint32_t cell, uint32_t count,
                          std::byte* stripe) const {
  const size_t stride = piece_bytes();
  for (const Plane& plane : planes) {
    // Along the stripe: what pieces are made of is in a cache by now, the stripe is not.
    for (uint32_t i = 0; i < plane.count; ++i) {
      std::byte* out = stripe + size_t{cell} * plane.cell_bytes;
      for (uint32_t block = 0; block < count; ++block) {
        std::memcpy(out, pieces + block * stride, plane.cell_bytes);
        out += plane.cell_bytes;
      }
      pieces += plane.cell_bytes;
      stripe += size_t{stripe_blocks} * plane.cell_bytes;
    }
  }
}

void BlockLayout::Gather(const std::byte* stripe, uint32_t cell, std::byte* piece) const {
  for (const Plane& plane : planes) {
    const std::byte* in = stripe + size_t{cell} * plane.cell_bytes;
    const size_t stride = size_t{stripe_blocks} * plane.cell_bytes;
    for (uint32_t i = 0; i < plane.count; ++i) {
      std::memcpy(piece, in, plane.cell_bytes);
      piece += plane.cell_bytes;
      in += stride;
    }
    stripe += stride * plane.count;
  }
}

absl::Status BlockLayout::Validate() const {
  if (layers == 0) return Refuse("layers", layers, "at least 1");
  if (heads == 0) return Refuse("heads", heads, "at least 1");
  if (uint64_t{layers} * heads > kLanesMax) {
    return Refuse("layers * heads", uint64_t{layers} * heads, "at most 65536");
  }
  if (!std::has_single_bit(block_tokens) || block_tokens > kTokensMax) {
    return Refuse("block_tokens", block_tokens, "a power of two up to 65536");
  }
  if (row_bytes == 0) return Refuse("row_bytes", row_bytes, "at least 1");
  if (uint64_t{block_tokens} * row_bytes > kExtentBytesMax) {
    return Refuse("block_tokens * row_bytes", uint64_t{block_tokens} * row_bytes, "at most 64 MiB");
  }
  if (!std::has_single_bit(granule_tokens) || granule_tokens > block_tokens ||
      granules() > kCellsMax) {
    return Refuse("granule_tokens", granule_tokens,
                  absl::StrCat("a power of two up to block_tokens (", block_tokens,
                               ") with at most 64 granules a block"));
  }
  if (!std::has_single_bit(stripe_blocks) || stripe_blocks > kCellsMax) {
    return Refuse("stripe_blocks", stripe_blocks, "a power of two up to 64");
  }
  return ValidatePlanes(*this);
}

std::string BlockLayout::Encode() const {
  ByteWriter writer;
  writer.Put(layers);
  writer.Put(heads);
  writer.Put(block_tokens);
  writer.Put(row_bytes);
  writer.Put(granule_tokens);
  writer.Put(stripe_blocks);
  writer.Put(static_cast<uint16_t>(planes.size()));
  for (const Plane& plane : planes) {
    writer.Put(plane.count);
    writer.Put(plane.cell_bytes);
  }
  return std::move(writer).Take();
}

absl::StatusOr<BlockLayout> BlockLayout::Decode(std::string_view bytes) {
  ByteReader reader(bytes);
  BlockLayout layout;
  layout.layers = reader.Get<uint16_t>();
  layout.heads = reader.Get<uint16_t>();
  layout.block_tokens = reader.Get<uint32_t>();
  layout.row_bytes = reader.Get<uint32_t>();
  layout.granule_tokens = reader.Get<uint32_t>();
  layout.stripe_blocks = reader.Get<uint32_t>();
  const size_t planes = reader.Get<uint16_t>();
  for (size_t i = 0; i < planes && reader.ok(); ++i) {
    const auto count = reader.Get<uint32_t>();
    layout.planes.push_back({.count = count, .cell_bytes = reader.Get<uint32_t>()});
  }
  if (!reader.done()) {
    return absl::DataLossError(absl::StrCat("block layout: ", bytes.size(), " bytes are not one"));
  }
  if (const absl::Status valid = layout.Validate(); !valid.ok()) {
    return absl::DataLossError(valid.message());
  }
  return layout;
}

}  // namespace terrace::kvstore
