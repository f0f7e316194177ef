// CellRead: one granule or piece on its way from disk into an extent.
#ifndef TERRACE_KVSTORE_CELL_READ_H_
#define TERRACE_KVSTORE_CELL_READ_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "kvstore/block_key.h"
#include "kvstore/block_layout.h"
#include "kvstore/disk_record.h"

namespace terrace::kvstore {

struct CellRead {
  enum class Outcome { kPending, kRead, kCorrupt, kFailed, kLate };

  // kRows or kPiece.
  RecordKind kind = RecordKind::kRows;
  BlockKey block;
  // Granule of the rows; unused for a piece.
  uint8_t granule = 0;
  const BlockLayout* layout = nullptr;
  // Start of the rows, or of the stripe.
  std::byte* extent = nullptr;

  Outcome outcome = Outcome::kPending;
  // Why not kRead.
  std::string error;
  // Bytes of the value, checksum included.
  size_t stored_bytes = 0;

  RecordKey key() const;
  // Verifies the value found under key() and puts it where it belongs: kRead or kCorrupt. The
  // extent is untouched unless it is kRead (I1).
  void Place(std::string_view value);
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_CELL_READ_H_
