#include "attention/score_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "attention/half.h"
#include "tests/attention/kv_head.h"
#include "tests/attention/simd_targets.h"
#include "tests/status_matchers.h"

namespace terrace::attention {
namespace {

using ::terrace::testing::ForEachSimdTarget;
using ::terrace::testing::KvHead;
using ::terrace::testing::RandomKvHead;
using ::terrace::testing::ScoreIndex;
using ::terrace::testing::StatusIs;
using ::testing::HasSubstr;

IndexLayout Layout(const KvHead& head, IndexFormat format) {
  IndexLayout layout;
  layout.format = format;
  layout.dtype = head.shape.dtype;
  layout.head_dim = head.shape.head_dim;
  return layout;
}

// Replaces the keys of a head, in the rows too.
void SetKey(KvHead& head, int token, int channel, float value) {
  std::byte* const at =
      head.rows.data() + token * head.shape.row_bytes() + channel * DtypeBytes(head.shape.dtype);
  FromFloat(head.shape.dtype, &value, 1, at);
  ToFloat(head.shape.dtype, at, 1, &head.k[token * head.shape.head_dim + channel]);
}

// Every code is within half a step of its key, and no key leaves the bounds that the parameters
// promise.
void ExpectFaithful(const KvHead& head, const ScoreIndex& index, int tokens) {
  for (int t = 0; t < tokens; ++t) {
    for (int c = 0; c < head.shape.head_dim; ++c) {
      const double key = head.k[static_cast<size_t>(t) * head.shape.head_dim + c];
      const double step = index.Step(t, c);
      const double minimum = index.Minimum(t, c);
      ASSERT_LE(minimum, key) << "token " << t << " channel " << c;
      ASSERT_GE(minimum + 255 * step, key) << "token " << t << " channel " << c;
      // The fp32 quotient may be off by one rounding just beside a half.
      ASSERT_LE(std::abs(index.Decode(t, c) - key), step * 0.50002)
          << "token " << t << " channel " << c;
    }
  }
}

TEST(ScoreIndex, SizesAddUp) {
  IndexLayout layout;
  layout.head_dim = 128;
  layout.format = IndexFormat::kInt8;
  EXPECT_EQ(layout.code_plane_bytes(), 128U * 1024);
  EXPECT_EQ(layout.piece_bytes(), 128U * 64 + 128U * 4);
  EXPECT_EQ(layout.scan_bytes(32, 512), 32U * 32768 + 32U * 512 * 4);
  layout.format = IndexFormat::kExact;
  layout.dtype = Dtype::kBFloat16;
  EXPECT_EQ(layout.code_plane_bytes(), 128U * 1024 * 2);
  EXPECT_EQ(layout.piece_bytes(), 128U * 64 * 2);
}

TEST(ScoreIndex, AnExactPieceIsTheKeysChannelByChannel) {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16}) {
    const KvHead head = RandomKvHead(16, 1, 64, dtype, 5);
    const IndexLayout layout = Layout(head, IndexFormat::kExact);
    std::vector<std::byte> piece(layout.piece_bytes());
    ASSERT_OK(EncodeBlock(layout, head.rows.data(), piece.data()));
    for (int c = 0; c < 16; ++c) {
      std::vector<float> channel(64);
      ToFloat(dtype, piece.data() + c * 64 * DtypeBytes(dtype), 64, channel.data());
      for (int t = 0; t < 64; ++t) ASSERT_EQ(channel[t], head.k[t * 16 + c]);
    }
  }
}

TEST(ScoreIndex, AnInt8PieceIsCodesThenScaleAndMinimumOfEachChannel) {
  KvHead head = RandomKvHead(8, 1, 64, Dtype::kFloat32, 5);
  for (int t = 0; t < 64; ++t) {
    for (int c = 0; c < 8; ++c) SetKey(head, t, c, 0);
  }
  // 0, 1, ... 255 in steps of 0.5 from -1, at channel 2.
  for (int t = 0; t < 64; ++t) SetKey(head, t, 2, -1.0F + 0.5F * static_cast<float>(4 * t));
  SetKey(head, 63, 2, -1.0F + 0.5F * 255);
  const IndexLayout layout = Layout(head, IndexFormat::kInt8);
  std::vector<std::byte> piece(layout.piece_bytes());
  ASSERT_OK(EncodeBlock(layout, head.rows.data(), piece.data()));
  for (int t = 0; t < 63; ++t) EXPECT_EQ(piece[2 * 64 + t], std::byte(4 * t));
  EXPECT_EQ(piece[2 * 64 + 63], std::byte{255});
  uint16_t params[2];
  std::memcpy(params, piece.data() + 8 * 64 + 2 * sizeof(params), sizeof(params));
  EXPECT_EQ(FloatFromHalf(params[0]), 0.5F);
  EXPECT_EQ(FloatFromHalf(params[1]), -1.0F);
}

TEST(ScoreIndex, EveryCodeDecodesWithinHalfAStepAndInsideTheBounds) {
  ForEachSimdTarget([] {
    for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16}) {
      for (const int head_dim : {8, 24, 64}) {
        for (const int block_tokens : {8, 64}) {
          const uint64_t seed = 100 + head_dim + block_tokens;
          SCOPED_TRACE(::testing::Message() << DtypeName(dtype) << " seed " << seed);
          const KvHead head = RandomKvHead(head_dim, 1, 128, dtype, seed);
          IndexLayout layout = Layout(head, IndexFormat::kInt8);
          layout.block_tokens = block_tokens;
          ExpectFaithful(head, ScoreIndex(head, layout), 128);
        }
      }
    }
  });
}

TEST(ScoreIndex, HardChannelsKeepTheBound) {
  constexpr float kTiny = std::numeric_limits<float>::denorm_min();
  // Two values that the keys of a channel alternate between.
  const std::vector<std::pair<float, float>> pairs = {
      {0, 0},
      {1, 1},
      {-1.0001F, -1.0001F},  // not a half: minimum lies below
      {1e-7F, -1e-7F},       // steps below the smallest half
      {kTiny, -kTiny},
      {kHalfMax, -kHalfMax},
      {kHalfMax, kHalfMax},
      {-kHalfMax, -kHalfMax},
      {65000.5F, 64999.9F},
      {1000.3F, 1000.2F}};
  for (size_t i = 0; i < pairs.size(); ++i) {
    SCOPED_TRACE(i);
    KvHead head = RandomKvHead(8, 1, 64, Dtype::kFloat32, 9);
    for (int t = 0; t < 64; ++t) {
      SetKey(head, t, 3, t % 2 == 0 ? pairs[i].first : pairs[i].second);
    }
    ExpectFaithful(head, ScoreIndex(head, Layout(head, IndexFormat::kInt8)), 64);
  }
}

TEST(ScoreIndex, AConstantChannelThatIsAHalfHasScaleAndCodesZero) {
  KvHead head = RandomKvHead(8, 1, 64, Dtype::kBFloat16, 9);
  for (int t = 0; t < 64; ++t) SetKey(head, t, 0, -2.5F);
  const IndexLayout layout = Layout(head, IndexFormat::kInt8);
  std::vector<std::byte> piece(layout.piece_bytes());
  ASSERT_OK(EncodeBlock(layout, head.rows.data(), piece.data()));
  EXPECT_TRUE(std::all_of(piece.begin(), piece.begin() + 64,
                          [](std::byte code) { return code == std::byte{0}; }));
  uint16_t params[2];
  std::memcpy(params, piece.data() + 8 * 64, sizeof(params));
  EXPECT_EQ(params[0], 0);
  EXPECT_EQ(FloatFromHalf(params[1]), -2.5F);
}

TEST(ScoreIndex, KeysBeyondHalfAreOutOfRangeByChannelForInt8Only) {
  for (const float bad : {65505.0F, -65505.0F, 1e30F, INFINITY, -INFINITY, NAN}) {
    KvHead head = RandomKvHead(8, 1, 64, Dtype::kFloat32, 9);
    SetKey(head, 0, 5, bad);
    std::vector<std::byte> piece(8 * 64 * 4);
    EXPECT_THAT(EncodeBlock(Layout(head, IndexFormat::kInt8), head.rows.data(), piece.data()),
                StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("channel 5")))
        << bad;
    EXPECT_OK(EncodeBlock(Layout(head, IndexFormat::kExact), head.rows.data(), piece.data()));
  }
}

TEST(ScoreIndex, NanAnywhereInABlockIsOutOfRange) {
  ForEachSimdTarget([] {
    for (const int token : {0, 1, 31, 63}) {
      KvHead head = RandomKvHead(8, 1, 64, Dtype::kFloat32, 9);
      SetKey(head, token, 5, NAN);
      std::vector<std::byte> piece(8 * 64 + 8 * 4);
      EXPECT_THAT(EncodeBlock(Layout(head, IndexFormat::kInt8), head.rows.data(), piece.data()),
                  StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("channel 5")))
          << token;
    }
  });
}

}  // namespace
}  // namespace terrace::attention
