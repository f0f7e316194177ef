#include "kvstore/block_key.h"

namespace terrace::kvstore {
namespace {

template <typename T>
char* PutBigEndian(T value, char* out) {
  for (size_t i = 0; i < sizeof(T); ++i) {
    out[i] = static_cast<char>(value >> (8 * (sizeof(T) - 1 - i)));
  }
  return out + sizeof(T);
}

template <typename T>
const char* GetBigEndian(const char* in, T* value) {
  uint64_t sum = 0;
  for (size_t i = 0; i < sizeof(T); ++i) sum = sum << 8 | static_cast<unsigned char>(in[i]);
  *value = static_cast<T>(sum);
  return in + sizeof(T);
}

}  // namespace

std::array<char, kEncodedBlockKeyBytes> Encode(const BlockKey& key) {
  std::array<char, kEncodedBlockKeyBytes> bytes;
  char* out = PutBigEndian(static_cast<uint64_t>(key.segment), bytes.data());
  out = PutBigEndian(key.layer, out);
  out = PutBigEndian(key.head, out);
  PutBigEndian(key.block, out);
  return bytes;
}

BlockKey DecodeBlockKey(const std::array<char, kEncodedBlockKeyBytes>& bytes) {
  BlockKey key;
  const char* in = GetBigEndian(bytes.data(), &key.segment);
  in = GetBigEndian(in, &key.layer);
  in = GetBigEndian(in, &key.head);
  GetBigEndian(in, &key.block);
  return key;
}

}  // namespace terrace::kvstore
