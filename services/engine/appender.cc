#include "services/engine/appender.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

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

absl::Status CheckMagnitude(absl::string_view field, const FiniteTensor& tensor, float max,
                            absl::string_view why) {
  if (tensor.magnitude <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      field, ": got ", tensor.magnitude, ", expected at most ", max, " in magnitude for ", why));
}

}  // namespace

absl::Status Appender::CheckRange(const AppendRows& rows) const {
  const attention::Dtype storage = sequence_.spec.geometry.storage;
  const std::string name(attention::DtypeName(storage));
  absl::Status status = CheckMagnitude("k", rows.k, StorageMax(storage), name);
  if (status.ok()) status = CheckMagnitude("v", rows.v, StorageMax(storage), name);
  if (status.ok() && sequence_.spec.index_format == attention::IndexFormat::kInt8) {
    status = CheckMagnitude("k", rows.k, Int8Max(storage), "int8 index");
  }
  return status;
}

void Appender::Encode(const AppendRows& rows, int64_t first, int64_t count, int head,
                      std::byte* out) const {
  const Geometry& geometry = sequence_.spec.geometry;
  const auto dim = static_cast<size_t>(geometry.head_dim);
  const size_t half_bytes = dim * attention::DtypeBytes(geometry.storage);
  for (int64_t i = first; i < first + count; ++i) {
    for (const FiniteTensor* tensor : {&rows.k, &rows.v}) {
      const size_t element = (i * geometry.kv_heads + head) * dim;
      attention::Convert(tensor->dtype,
                         tensor->data + element * attention::DtypeBytes(tensor->dtype), dim,
                         geometry.storage, out);
      out += half_bytes;
    }
  }
}

absl::Status Appender::Append(const AppendRows& rows, absl::Time deadline) {
  if (absl::Status status = CheckRange(rows); !status.ok()) return status;
  const int64_t length = sequence_.layer_length[rows.layer].load();
  if (rows.position > length) return PositionGap(rows.layer, rows.position, length);
  const int64_t standing = std::min(rows.rows, length - rows.position);
  if (standing > 0) {
    if (absl::Status status = Compare(rows, standing, deadline); !status.ok()) return status;
  }
  for (int64_t first = standing; first < rows.rows;) {
    const absl::StatusOr<int64_t> count = Write(rows, first, deadline);
    if (!count.ok()) return count.status();
    first += *count;
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
        Encode(rows, i + j, 1, head, row.data());
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

absl::StatusOr<uint32_t> Appender::Reserve(int layer, uint32_t block, uint32_t end,
                                           uint32_t full_end, absl::Time deadline) {
  kvstore::Segment& segment = sequence_.open_segment();
  const auto reserve = [&](absl::Time until) {
    const auto layer_index = static_cast<uint16_t>(layer);
    return block < full_end ? store_.Reserve(segment, layer_index, block, block + 1, until)
                            : store_.ReserveRows(segment, layer_index, block, block + 1, until);
  };
  absl::Status status = reserve(deadline);
  if (absl::IsResourceExhausted(status)) return NoRoom(status.message());
  if (!status.ok()) return status;
  // Whoever waits for the next waits with this one sealed, so that it may leave.
  for (++block; block < end; ++block) {
    status = reserve(absl::InfinitePast());
    if (!status.ok()) break;
  }
  return block;
}

absl::StatusOr<int64_t> Appender::Write(const AppendRows& rows, int64_t first,
                                        absl::Time deadline) {
  const kvstore::BlockLayout& layout = sequence_.layout.block;
  const int64_t position = rows.position + first;
  const auto block = static_cast<uint32_t>(position / layout.block_tokens);
  const int64_t rows_end = rows.position + rows.rows;
  const auto last = static_cast<uint32_t>((rows_end - 1) / layout.block_tokens);
  // Stripe by stripe: blocks of one stripe seal together.
  const uint32_t stripe_end = (block / layout.stripe_blocks + 1) * layout.stripe_blocks;
  const absl::StatusOr<uint32_t> end =
      Reserve(rows.layer, block, std::min(last + 1, stripe_end),
              static_cast<uint32_t>(rows_end / layout.block_tokens), deadline);
  if (!end.ok()) return end.status();
  const int64_t count = std::min(rows.rows - first, int64_t{*end} * layout.block_tokens - position);
  const auto full_end = static_cast<uint32_t>((position + count) / layout.block_tokens);
  if (full_end > block) {
    absl::Status status = FillAndSeal(rows, first, block, full_end);
    if (!status.ok()) return status;
  }
  if (full_end < *end) {
    const std::vector<std::byte*> open = OpenRows(rows.layer, full_end, *end);
    for (int head = 0; head < layout.heads; ++head) {
      Fill(rows, first, count, head, full_end, open[head]);
    }
  }
  sequence_.layer_length[rows.layer] = position + count;
  return count;
}

std::vector<std::byte*> Appender::OpenRows(int layer, uint32_t block, uint32_t end) {
  const size_t heads = sequence_.layout.block.heads;
  std::vector<std::byte*> open((end - block) * heads);
  for (std::byte** rows = open.data(); block < end; ++block, rows += heads) {
    store_.OpenRows(sequence_.open_segment(), static_cast<uint16_t>(layer), block,
                    absl::MakeSpan(rows, heads));
  }
  return open;
}

void Appender::Fill(const AppendRows& rows, int64_t first, int64_t count, int head, uint32_t block,
                    std::byte* open) const {
  const kvstore::BlockLayout& layout = sequence_.layout.block;
  const int64_t start = int64_t{block} * layout.block_tokens - rows.position;
  const int64_t from = std::max(first, start);
  const int64_t to = std::min(first + count, start + layout.block_tokens);
  Encode(rows, from, to - from, head, open + (from - start) * layout.row_bytes);
}

// Keeps I4: encodes everything before it publishes anything, and the layer's length moves only
// after the last.
absl::Status Appender::FillAndSeal(const AppendRows& rows, int64_t first, uint32_t block,
                                   uint32_t end) {
  const kvstore::BlockLayout& layout = sequence_.layout.block;
  const size_t heads = layout.heads;
  const size_t blocks = end - block;
  const size_t piece_bytes = layout.piece_bytes();
  const std::vector<std::byte*> open = OpenRows(rows.layer, block, end);
  // Not cleared: encoding fills it. By head, then by block.
  const std::unique_ptr<std::byte[]> pieces(new std::byte[open.size() * piece_bytes]);
  std::vector<absl::Status> statuses(open.size());
  pool_.ParallelFor(static_cast<int>(open.size()), [&](int item) {
    const size_t head = item / blocks;
    const size_t index = item % blocks;
    std::byte* const its_rows = open[index * heads + head];
    Fill(rows, first, rows.rows - first, static_cast<int>(head),
         static_cast<uint32_t>(block + index), its_rows);
    statuses[item] = sequence_.layout.EncodePiece(its_rows, pieces.get() + item * piece_bytes);
  });
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return status;
  }
  pool_.ParallelFor(static_cast<int>(heads), [&](int head) {
    store_.Seal(sequence_.open_segment(), static_cast<uint16_t>(rows.layer),
                static_cast<uint16_t>(head), block, end,
                {pieces.get() + head * blocks * piece_bytes, blocks * piece_bytes});
  });
  return absl::OkStatus();
}

}  // namespace terrace::engine
