#include "services/engine/appender.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "services/engine/error.h"

namespace terrace::engine {
namespace {

// Largest finite values: of fp16, of bf16, and of bf16 within fp16's range.
constexpr float kFloat16Max = 65504.0F;
constexpr float kBFloat16Max = 0x1.FEp127F;
constexpr float kBFloat16InFloat16Max = 65280.0F;

// What a value may be so that it is still finite as stored.
float StorageMax(attention::Dtype storage) {
  if (storage == attention::Dtype::kFloat16) return kFloat16Max;
  return storage == attention::Dtype::kBFloat16 ? kBFloat16Max : std::numeric_limits<float>::max();
}

// What a key may be so that, as stored, an int8 index's fp16 scale and minimum reach it.
float Int8Max(attention::Dtype storage) {
  return storage == attention::Dtype::kBFloat16 ? kBFloat16InFloat16Max : kFloat16Max;
}

absl::Status CheckMagnitude(absl::string_view field, const float* values, size_t count, float max,
                            absl::string_view why) {
  for (size_t i = 0; i < count; ++i) {
    if (std::abs(values[i]) <= max) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        field, ": got ", values[i], ", expected at most ", max, " in magnitude (", why, ")"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Appender::CheckRange(const AppendRows& rows) const {
  const Geometry& geometry = sequence_.spec.geometry;
  const size_t count = static_cast<size_t>(rows.rows) * geometry.kv_heads * geometry.head_dim;
  const float storage_max = StorageMax(geometry.storage);
  const std::string stored =
      absl::StrCat("stored as ", std::string(attention::DtypeName(geometry.storage)));
  absl::Status status = CheckMagnitude("k", rows.k, count, storage_max, stored);
  if (status.ok()) status = CheckMagnitude("v", rows.v, count, storage_max, stored);
  if (status.ok() && sequence_.spec.index_format == attention::IndexFormat::kInt8) {
    status = CheckMagnitude("k", rows.k, count, Int8Max(geometry.storage), "int8 index");
  }
  return status;
}

void Appender::Encode(const AppendRows& rows, int64_t i, int head, std::byte* out) const {
  const Geometry& geometry = sequence_.spec.geometry;
  const auto dim = static_cast<size_t>(geometry.head_dim);
  const size_t offset = (i * geometry.kv_heads + head) * dim;
  attention::FromFloat(geometry.storage, rows.k + offset, dim, out);
  attention::FromFloat(geometry.storage, rows.v + offset, dim,
                       out + dim * attention::DtypeBytes(geometry.storage));
}

absl::Status Appender::Append(const AppendRows& rows, absl::Time deadline) {
  if (absl::Status status = CheckRange(rows); !status.ok()) return status;
  const int64_t length = sequence_.layer_length[rows.layer].load();
  if (rows.position > length) return PositionGap(rows.layer, rows.position, length);
  const int64_t standing = std::min(rows.rows, length - rows.position);
  if (standing > 0) {
    if (absl::Status status = Compare(rows, standing, deadline); !status.ok()) return status;
  }
  const int64_t block_tokens = sequence_.block_tokens();
  for (int64_t first = standing; first < rows.rows;) {
    const int64_t position = rows.position + first;
    const int64_t count = std::min(rows.rows - first, block_tokens - position % block_tokens);
    if (absl::Status status = Write(rows, first, count, deadline); !status.ok()) return status;
    first += count;
  }
  return absl::OkStatus();
}

absl::Status Appender::Compare(const AppendRows& rows, int64_t count, absl::Time deadline) {
  const kvstore::BlockLayout& layout = sequence_.layout.block;
  const auto layer = static_cast<uint16_t>(rows.layer);
  std::vector<std::byte> row(layout.row_bytes);
  for (int64_t i = 0; i < count;) {
    const int64_t position = rows.position + i;
    const auto block = static_cast<uint32_t>(position / layout.block_tokens);
    const int64_t run =
        std::min<int64_t>(count - i, layout.block_tokens - position % layout.block_tokens);
    kvstore::Segment& segment = *sequence_.RangeOf(block).segment;
    for (uint16_t head = 0; head < layout.heads; ++head) {
      const bool sealed = block < store_.SealedEnd(segment, layer, head);
      const uint32_t cell = block % layout.stripe_blocks;
      const kvstore::ReadRequest request = {.segment = &segment,
                                            .layer = layer,
                                            .head = head,
                                            .index = block / layout.stripe_blocks,
                                            .cells = uint64_t{1} << cell};
      kvstore::Pins pins;
      if (sealed) {
        pins = store_.PinStripes(absl::MakeConstSpan(&request, 1), deadline);
        if (pins.extents()[0].missing != 0) return pins.extents()[0].status;
      }
      for (int64_t j = 0; j < run; ++j) {
        const auto row_index = static_cast<uint32_t>((position + j) % layout.block_tokens);
        Encode(rows, i + j, head, row.data());
        const bool same = sealed ? RowDigest(row) == sequence_.layout.Digest(pins.extents()[0].data,
                                                                             cell, row_index)
                                 : std::memcmp(row.data(),
                                               store_.OpenRows(segment, layer, head, block) +
                                                   size_t{row_index} * layout.row_bytes,
                                               row.size()) == 0;
        if (!same) return PositionConflict(rows.layer, position + j);
      }
    }
    i += run;
  }
  return absl::OkStatus();
}

absl::Status Appender::Write(const AppendRows& rows, int64_t first, int64_t count,
                             absl::Time deadline) {
  const kvstore::BlockLayout& layout = sequence_.layout.block;
  const auto layer = static_cast<uint16_t>(rows.layer);
  const int64_t position = rows.position + first;
  const auto block = static_cast<uint32_t>(position / layout.block_tokens);
  const auto row = static_cast<uint32_t>(position % layout.block_tokens);
  kvstore::Segment& segment = sequence_.open_segment();
  if (absl::Status status = store_.Reserve(segment, layer, block, block + 1, deadline);
      !status.ok()) {
    return absl::IsResourceExhausted(status) ? NoRoom(status.message()) : status;
  }
  for (uint16_t head = 0; head < layout.heads; ++head) {
    std::byte* out = store_.OpenRows(segment, layer, head, block) + size_t{row} * layout.row_bytes;
    for (int64_t i = 0; i < count; ++i) Encode(rows, first + i, head, out + i * layout.row_bytes);
  }
  if (row + count == layout.block_tokens) {
    if (absl::Status status = Seal(rows.layer, block); !status.ok()) return status;
  }
  sequence_.layer_length[rows.layer] = position + count;
  return absl::OkStatus();
}

// Keeps I4: encodes every head before it publishes the first, and the layer's length moves only
// after the last.
absl::Status Appender::Seal(int layer, uint32_t block) {
  const kvstore::BlockLayout& layout = sequence_.layout.block;
  kvstore::Segment& segment = sequence_.open_segment();
  const auto layer_index = static_cast<uint16_t>(layer);
  std::vector<std::vector<std::byte>> pieces(layout.heads);
  std::vector<absl::Status> statuses(layout.heads);
  pool_.ParallelFor(layout.heads, [&](int head) {
    pieces[head].resize(layout.piece_bytes());
    statuses[head] = sequence_.layout.EncodePiece(
        store_.OpenRows(segment, layer_index, static_cast<uint16_t>(head), block),
        pieces[head].data());
  });
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return status;
  }
  for (uint16_t head = 0; head < layout.heads; ++head) {
    store_.Seal(segment, layer_index, head, block, pieces[head]);
  }
  return absl::OkStatus();
}

}  // namespace terrace::engine
