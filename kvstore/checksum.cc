#include "kvstore/checksum.h"

#include <isa-l/crc.h>

#include <algorithm>

namespace terrace::kvstore {

uint32_t ExtendCrc32c(uint32_t crc, const void* bytes, size_t size) {
  // ISA-L takes an int length and keeps the register uninverted.
  constexpr size_t kPieceBytes = size_t{1} << 30;
  auto* cursor = static_cast<unsigned char*>(const_cast<void*>(bytes));
  uint32_t reg = ~crc;
  while (size > 0) {
    const size_t piece = std::min(size, kPieceBytes);
    reg = crc32_iscsi(cursor, static_cast<int>(piece), reg);
    cursor += piece;
    size -= piece;
  }
  return ~reg;
}

}  // namespace terrace::kvstore
