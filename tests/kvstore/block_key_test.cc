#include "kvstore/block_key.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>

namespace terrace::kvstore {
namespace {

bool BytesLess(const BlockKey& a, const BlockKey& b) {
  const auto x = Encode(a);
  const auto y = Encode(b);
  return std::memcmp(x.data(), y.data(), x.size()) < 0;
}

TEST(BlockKey, EncodesFieldsBigEndianInOrder) {
  const BlockKey key{SegmentId{0x0102030405060708}, 0x090a, 0x0b0c, 0x0d0e0f10};
  const auto bytes = Encode(key);
  for (size_t i = 0; i < bytes.size(); ++i) EXPECT_EQ(bytes[i], static_cast<char>(i + 1));
}

TEST(BlockKey, ByteOrderIsKeyOrder) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  // Bytes around the sign bit and the carry, so that neighbouring fields meet often.
  const auto draw = [&](uint64_t mask) {
    constexpr uint64_t kEdges[] = {0, 1, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff};
    return (random() % 2 == 0 ? random() : kEdges[random() % std::size(kEdges)]) & mask;
  };
  const auto draw_key = [&] {
    return BlockKey{SegmentId{draw(UINT64_MAX)}, static_cast<uint16_t>(draw(UINT16_MAX)),
                    static_cast<uint16_t>(draw(UINT16_MAX)),
                    static_cast<uint32_t>(draw(UINT32_MAX))};
  };
  for (int i = 0; i < 20'000; ++i) {
    const BlockKey a = draw_key();
    BlockKey b = draw_key();
    if (i % 2 == 0) b.segment = a.segment;
    if (i % 4 == 0) b.layer = a.layer;
    if (i % 8 == 0) b.head = a.head;
    EXPECT_EQ(BytesLess(a, b), a < b);
    EXPECT_EQ(BytesLess(b, a), b < a);
    EXPECT_FALSE(BytesLess(a, a));
    EXPECT_EQ(DecodeBlockKey(Encode(a)), a);
  }
}

}  // namespace
}  // namespace terrace::kvstore
