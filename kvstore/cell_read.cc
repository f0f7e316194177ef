#include "kvstore/cell_read.h"

#include <cstring>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace terrace::kvstore {

RecordKey CellRead::key() const {
  return kind == RecordKind::kRows ? RecordKey::Granule(block, granule)
                                   : RecordKey(RecordKind::kPiece, block);
}

void CellRead::Place(std::string_view value) {
  stored_bytes = value.size();
  const bool is_rows = kind == RecordKind::kRows;
  const size_t expected = is_rows ? layout->granule_bytes() : layout->piece_bytes();
  const absl::StatusOr<std::string_view> payload = CheckedPayload(key().view(), value);
  if (!payload.ok() || payload->size() != expected) {
    outcome = Outcome::kCorrupt;
    error = payload.ok() ? absl::StrCat(payload->size(), " bytes stored, ", expected, " expected")
                         : std::string(payload.status().message());
    return;
  }
  const auto* bytes = reinterpret_cast<const std::byte*>(payload->data());
  if (is_rows) {
    std::memcpy(extent + granule * expected, bytes, expected);
  } else {
    layout->Scatter(bytes, block.block % layout->stripe_blocks, 1, extent);
  }
  outcome = Outcome::kRead;
}

}  // namespace terrace::kvstore
