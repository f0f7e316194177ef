#include "kvstore/record_log.h"

#include <cstddef>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "kvstore/byte_codec.h"
#include "kvstore/checksum.h"

namespace terrace::kvstore {
namespace {

// No record crosses a block's end; what is too short for a header there is filled with zeros.
constexpr size_t kBlockBytes = 32768;
// Masked sum of what follows the length, length, type.
constexpr size_t kSumBytes = 4;
constexpr size_t kHeaderBytes = kSumBytes + 2 + 1;
constexpr size_t kTypeOffset = kHeaderBytes - 1;
// Of a whole record, its first, middle and last piece.
constexpr char kTypes[] = {1, 2, 3, 4};

// As it is stored: the sum of bytes that hold their sum would say little.
uint32_t Masked(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8; }

// Whether `sum` is of a record that begins as this one does, with any type and length.
bool HoldsWholeRecord(std::string_view record, uint32_t sum) {
  for (const char type : kTypes) {
    uint32_t crc = ExtendCrc32c(0, &type, 1);
    for (size_t end = kHeaderBytes; Masked(crc) != sum && end < record.size(); ++end) {
      crc = ExtendCrc32c(crc, record.data() + end, 1);
    }
    if (Masked(crc) == sum) return true;
  }
  return false;
}

constexpr size_t kRotten = ~size_t{0};

// Bytes of the record that `rest` begins with; 0 for one that was not written whole, and ends the
// file; kRotten otherwise.
size_t CheckRecord(std::string_view rest, bool ends_file) {
  ByteReader header(rest);
  const auto sum = header.Get<uint32_t>();
  const size_t end = kHeaderBytes + header.Get<uint16_t>();
  if (end > rest.size()) return ends_file && !HoldsWholeRecord(rest, sum) ? 0 : kRotten;
  const bool known =
      std::string_view(kTypes, sizeof(kTypes)).find(rest[kTypeOffset]) != std::string_view::npos;
  const uint32_t crc = ExtendCrc32c(0, rest.data() + kTypeOffset, end - kTypeOffset);
  return known && Masked(crc) == sum ? end : kRotten;
}

}  // namespace

absl::Status CheckRecordLog(std::string_view log) {
  for (size_t begin = 0; begin < log.size(); begin += kBlockBytes) {
    const std::string_view block = log.substr(begin, kBlockBytes);
    for (size_t offset = 0; block.size() - offset >= kHeaderBytes;) {
      const std::string_view rest = block.substr(offset);
      // What a file system leaves of bytes that it had no time to write.
      if (log.find_first_not_of('\0', begin + offset) == log.npos) return absl::OkStatus();
      const size_t bytes = CheckRecord(rest, begin + block.size() == log.size());
      if (bytes == kRotten) {
        return absl::DataLossError(
            absl::StrCat("the record at ", begin + offset, " is not as it was written"));
      }
      if (bytes == 0) return absl::OkStatus();
      offset += bytes;
    }
  }
  return absl::OkStatus();
}

}  // namespace terrace::kvstore
