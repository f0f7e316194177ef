// Keys and values of the disk tier; DESIGN.md has the grammar.
//
// Every value ends with the CRC32C of its key and of the value before it, so that a value found
// under another key than the one it was written to is told from a good one (I1).
#ifndef TERRACE_KVSTORE_DISK_RECORD_H_
#define TERRACE_KVSTORE_DISK_RECORD_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvstore/block_key.h"
#include "kvstore/block_layout.h"
#include "kvstore/block_store.h"

namespace terrace::kvstore {

inline constexpr uint32_t kDiskFormatVersion = 1;
inline constexpr size_t kChecksumBytes = 4;

// First byte of a key.
enum class RecordKind : char {
  kFormat = 'f',
  kManifest = 'm',
  kSegmentCounter = 'n',
  kRows = 'r',
  kTail = 't',
  kWatermark = 'w',
  kPiece = 'x',
};

// A key of at most 18 bytes.
class RecordKey {
 public:
  explicit RecordKey(RecordKind kind) { Push(static_cast<char>(kind)); }
  // Watermark of a segment; or the start of its records of that kind.
  RecordKey(RecordKind kind, SegmentId segment);
  // Piece or tail; or the start of a block's granules.
  RecordKey(RecordKind kind, const BlockKey& block);
  static RecordKey Granule(const BlockKey& block, uint8_t granule);

  std::string_view view() const { return {bytes_.data(), size_}; }

 private:
  void Push(char byte) { bytes_[size_++] = byte; }

  std::array<char, 2 + kEncodedBlockKeyBytes> bytes_;
  uint8_t size_ = 0;
};

std::string ManifestKey(std::string_view name);

// What a value's last bytes are to be.
std::array<char, kChecksumBytes> RecordChecksum(std::string_view key, std::string_view payload);
void AppendChecksum(std::string_view key, std::string& value);
// The value without its checksum. DataLoss when that does not match.
absl::StatusOr<std::string_view> CheckedPayload(std::string_view key, std::string_view value);

struct FormatRecord {
  uint32_t version = kDiskFormatVersion;
  uint16_t shard = 0;
};

// A range of a manifest, by value: what is needed to bring the segment back.
struct RangeRecord {
  SegmentId segment{};
  uint32_t segment_first_block = 0;
  uint32_t first_block = 0;
  uint32_t end_block = 0;
  BlockLayout layout;
};

struct ManifestRecord {
  std::string attributes;
  std::vector<RangeRecord> ranges;
};

// Payloads, without checksum. Decoders say DataLoss when the bytes are not one.
std::string EncodeFormat(const FormatRecord& record);
absl::StatusOr<FormatRecord> DecodeFormat(std::string_view payload);
std::string EncodeManifest(const ManifestRecord& record);
absl::StatusOr<ManifestRecord> DecodeManifest(std::string_view payload);
// By layer.
std::string EncodeWatermark(absl::Span<const DurableExtent> layers);
absl::StatusOr<std::vector<DurableExtent>> DecodeWatermark(std::string_view payload);

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_DISK_RECORD_H_
