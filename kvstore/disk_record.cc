#include "kvstore/disk_record.h"

#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kvstore/byte_codec.h"
#include "kvstore/checksum.h"

namespace terrace::kvstore {
namespace {

// Tells our format record from somebody else's key "f".
constexpr std::string_view kMagic = "TerraceKV";

std::string Printable(std::string_view key) {
  return absl::CHexEscape(absl::string_view(key.data(), key.size()));
}

absl::Status Malformed(absl::string_view what, std::string_view payload) {
  return absl::DataLossError(absl::StrCat(what, ": ", payload.size(), " bytes are not one"));
}

}  // namespace

RecordKey::RecordKey(RecordKind kind, SegmentId segment) : RecordKey(kind) {
  for (int shift = 56; shift >= 0; shift -= 8) {
    Push(static_cast<char>(static_cast<uint64_t>(segment) >> shift));
  }
}

RecordKey::RecordKey(RecordKind kind, const BlockKey& block) : RecordKey(kind) {
  for (const char byte : Encode(block)) Push(byte);
}

RecordKey RecordKey::Granule(const BlockKey& block, uint8_t granule) {
  RecordKey key(RecordKind::kRows, block);
  key.Push(static_cast<char>(granule));
  return key;
}

std::string ManifestKey(std::string_view name) {
  std::string key(1, static_cast<char>(RecordKind::kManifest));
  key.append(name);
  return key;
}

std::array<char, kChecksumBytes> RecordChecksum(std::string_view key, std::string_view payload) {
  const uint32_t crc =
      ExtendCrc32c(ExtendCrc32c(0, key.data(), key.size()), payload.data(), payload.size());
  std::array<char, kChecksumBytes> bytes;
  for (size_t i = 0; i < kChecksumBytes; ++i) bytes[i] = static_cast<char>(crc >> (8 * i));
  return bytes;
}

void AppendChecksum(std::string_view key, std::string& value) {
  const auto checksum = RecordChecksum(key, value);
  value.append(checksum.data(), checksum.size());
}

absl::StatusOr<std::string_view> CheckedPayload(std::string_view key, std::string_view value) {
  if (value.size() < kChecksumBytes) {
    return absl::DataLossError(
        absl::StrCat("record ", Printable(key), ": only ", value.size(), " bytes"));
  }
  const std::string_view payload = value.substr(0, value.size() - kChecksumBytes);
  const auto checksum = RecordChecksum(key, payload);
  if (std::memcmp(value.data() + payload.size(), checksum.data(), kChecksumBytes) != 0) {
    return absl::DataLossError(absl::StrCat("record ", Printable(key), ": checksum mismatch"));
  }
  return payload;
}

std::string EncodeFormat(const FormatRecord& record) {
  ByteWriter writer;
  writer.PutBytes(kMagic);
  writer.Put(record.version);
  writer.Put(record.shard);
  return std::move(writer).Take();
}

absl::StatusOr<FormatRecord> DecodeFormat(std::string_view payload) {
  ByteReader reader(payload);
  if (reader.GetBytes(kMagic.size()) != kMagic) return Malformed("format record", payload);
  FormatRecord record;
  record.version = reader.Get<uint32_t>();
  record.shard = reader.Get<uint16_t>();
  // A later version may have more fields; its number must still be readable.
  if (!reader.ok()) return Malformed("format record", payload);
  return record;
}

std::string EncodeManifest(const ManifestRecord& record) {
  ByteWriter writer;
  writer.Put(static_cast<uint32_t>(record.attributes.size()));
  writer.PutBytes(record.attributes);
  writer.Put(static_cast<uint32_t>(record.ranges.size()));
  for (const RangeRecord& range : record.ranges) {
    writer.Put(static_cast<uint64_t>(range.segment));
    writer.Put(range.segment_first_block);
    writer.Put(range.first_block);
    writer.Put(range.end_block);
    const std::string layout = range.layout.Encode();
    writer.Put(static_cast<uint16_t>(layout.size()));
    writer.PutBytes(layout);
  }
  return std::move(writer).Take();
}

absl::StatusOr<ManifestRecord> DecodeManifest(std::string_view payload) {
  ByteReader reader(payload);
  ManifestRecord record;
  record.attributes = std::string(reader.GetBytes(reader.Get<uint32_t>()));
  const auto ranges = reader.Get<uint32_t>();
  for (uint32_t i = 0; i < ranges && reader.ok(); ++i) {
    RangeRecord range;
    range.segment = SegmentId{reader.Get<uint64_t>()};
    range.segment_first_block = reader.Get<uint32_t>();
    range.first_block = reader.Get<uint32_t>();
    range.end_block = reader.Get<uint32_t>();
    const std::string_view layout_bytes = reader.GetBytes(reader.Get<uint16_t>());
    if (!reader.ok()) break;
    absl::StatusOr<BlockLayout> layout = BlockLayout::Decode(layout_bytes);
    if (!layout.ok()) return layout.status();
    range.layout = *std::move(layout);
    record.ranges.push_back(std::move(range));
  }
  if (!reader.done()) return Malformed("manifest record", payload);
  return record;
}

std::string EncodeWatermark(absl::Span<const DurableExtent> layers) {
  ByteWriter writer;
  writer.Put(static_cast<uint16_t>(layers.size()));
  for (const DurableExtent& layer : layers) {
    writer.Put(layer.end_block);
    writer.Put(layer.tail_rows);
  }
  return std::move(writer).Take();
}

absl::StatusOr<std::vector<DurableExtent>> DecodeWatermark(std::string_view payload) {
  ByteReader reader(payload);
  std::vector<DurableExtent> layers(reader.Get<uint16_t>());
  for (DurableExtent& layer : layers) {
    layer.end_block = reader.Get<uint32_t>();
    layer.tail_rows = reader.Get<uint32_t>();
  }
  if (!reader.done()) return Malformed("watermark record", payload);
  return layers;
}

}  // namespace terrace::kvstore
