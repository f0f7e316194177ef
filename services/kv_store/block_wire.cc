#include "services/kv_store/block_wire.h"

#include <google/protobuf/io/coded_stream.h>

#include <algorithm>
#include <array>
#include <utility>

namespace terrace::kv_store {
namespace {

using google::protobuf::io::CodedOutputStream;

enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kLengthDelimited = 2, kFixed32 = 5 };
constexpr int kVarintBytesMax = 10;

// Reads over the borders of slices.
class SliceCursor {
 public:
  explicit SliceCursor(const std::vector<grpc::Slice>& slices) : slices_(slices) { SkipEmpty(); }

  bool at_end() const { return slice_ == slices_.size(); }

  // The next bytes in pieces; false when there are fewer.
  template <typename Piece>
  bool Take(uint64_t count, Piece piece) {
    while (count > 0) {
      if (at_end()) return false;
      const grpc::Slice& slice = slices_[slice_];
      const auto here = static_cast<size_t>(std::min<uint64_t>(count, slice.size() - offset_));
      piece(absl::MakeConstSpan(reinterpret_cast<const std::byte*>(slice.begin()) + offset_, here));
      count -= here;
      offset_ += here;
      if (offset_ == slice.size()) {
        ++slice_;
        offset_ = 0;
        SkipEmpty();
      }
    }
    return true;
  }

  // Appends what it reads to `raw`.
  bool TakeVarint(uint64_t* value, std::string* raw) {
    *value = 0;
    for (int i = 0; i < kVarintBytesMax; ++i) {
      uint8_t byte = 0;
      if (!Take(1, [&](absl::Span<const std::byte> at) { byte = static_cast<uint8_t>(at[0]); })) {
        return false;
      }
      raw->push_back(static_cast<char>(byte));
      *value |= uint64_t{byte & 0x7FU} << (7 * i);
      if ((byte & 0x80U) == 0) return true;
    }
    return false;
  }

  bool TakeRaw(uint64_t count, std::string* raw) {
    return Take(count, [raw](absl::Span<const std::byte> bytes) {
      raw->append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    });
  }

 private:
  void SkipEmpty() {
    while (slice_ < slices_.size() && slices_[slice_].size() == 0) ++slice_;
  }

  const std::vector<grpc::Slice>& slices_;
  size_t slice_ = 0;
  size_t offset_ = 0;
};

bool TakeField(SliceCursor& cursor, SplitMessage* split) {
  std::string raw;
  uint64_t tag = 0;
  uint64_t value = 0;
  if (!cursor.TakeVarint(&tag, &raw) || tag >> 3 == 0 || tag > UINT32_MAX) return false;
  bool taken = false;
  switch (tag & 7) {
    case kVarint:
      taken = cursor.TakeVarint(&value, &raw);
      break;
    case kFixed64:
      taken = cursor.TakeRaw(8, &raw);
      break;
    case kFixed32:
      taken = cursor.TakeRaw(4, &raw);
      break;
    case kLengthDelimited:
      if (!cursor.TakeVarint(&value, &raw)) return false;
      if (tag >> 3 == kDataField) {
        // As protobuf has it, the last one counts.
        split->data.clear();
        return cursor.Take(
            value, [split](absl::Span<const std::byte> bytes) { split->data.push_back(bytes); });
      }
      taken = cursor.TakeRaw(value, &raw);
      break;
    default:
      return false;
  }
  split->fields += raw;
  return taken;
}

}  // namespace

bool SplitData(const grpc::ByteBuffer& message, SplitMessage* split) {
  if (!message.Dump(&split->slices).ok()) return false;
  SliceCursor cursor(split->slices);
  while (!cursor.at_end()) {
    if (!TakeField(cursor, split)) return false;
  }
  return true;
}

grpc::ByteBuffer JoinData(const google::protobuf::MessageLite& fields,
                          std::vector<grpc::Slice> data) {
  uint64_t size = 0;
  for (const grpc::Slice& slice : data) size += slice.size();
  std::string head = fields.SerializeAsString();
  if (size > 0) {
    std::array<uint8_t, 2 * kVarintBytesMax> header{};
    uint8_t* end =
        CodedOutputStream::WriteTagToArray(kDataField << 3 | kLengthDelimited, header.data());
    end = CodedOutputStream::WriteVarint64ToArray(size, end);
    head.append(header.begin(), header.begin() + (end - header.data()));
  }
  data.insert(data.begin(), grpc::Slice(head));
  return {data.data(), data.size()};
}

grpc::ByteBuffer Serialize(const google::protobuf::MessageLite& message) {
  return JoinData(message, {});
}

}  // namespace terrace::kv_store
