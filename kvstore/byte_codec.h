// Little-endian fields in a string: what record values are made of.
#ifndef TERRACE_KVSTORE_BYTE_CODEC_H_
#define TERRACE_KVSTORE_BYTE_CODEC_H_

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>

namespace terrace::kvstore {

class ByteWriter {
 public:
  template <std::unsigned_integral T>
  void Put(T value) {
    for (size_t i = 0; i < sizeof(T); ++i) {
      bytes_.push_back(static_cast<char>(static_cast<uint64_t>(value) >> (8 * i)));
    }
  }
  void PutBytes(std::string_view bytes) { bytes_.append(bytes); }

  std::string Take() && { return std::move(bytes_); }

 private:
  std::string bytes_;
};

// Reads fields in the order they were put. Past the end it returns zeros and ok() turns false.
class ByteReader {
 public:
  explicit ByteReader(std::string_view bytes) : rest_(bytes) {}

  template <std::unsigned_integral T>
  T Get() {
    uint64_t value = 0;
    const std::string_view field = GetBytes(sizeof(T));
    for (size_t i = 0; i < field.size(); ++i) {
      value |= uint64_t{static_cast<unsigned char>(field[i])} << (8 * i);
    }
    return static_cast<T>(value);
  }
  std::string_view GetBytes(size_t count) {
    if (count > rest_.size()) {
      ok_ = false;
      rest_ = {};
      return {};
    }
    const std::string_view field = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return field;
  }

  bool ok() const { return ok_; }
  // Everything was read, and nothing beyond it.
  bool done() const { return ok_ && rest_.empty(); }

 private:
  std::string_view rest_;
  bool ok_ = true;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_BYTE_CODEC_H_
