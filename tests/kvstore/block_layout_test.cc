#include "kvstore/block_layout.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

using ::terrace::testing::StatusIs;
using ::testing::HasSubstr;

BlockLayout Valid() {
  return {.layers = 32,
          .heads = 8,
          .block_tokens = 64,
          .row_bytes = 512,
          .granule_tokens = 16,
          .stripe_blocks = 16,
          .planes = {{.count = 128, .cell_bytes = 64},
                     {.count = 128, .cell_bytes = 4},
                     {.count = 128, .cell_bytes = 4}}};
}

TEST(BlockLayout, SizesFollowFromTheFields) {
  const BlockLayout layout = Valid();
  EXPECT_EQ(layout.granules(), 4u);
  EXPECT_EQ(layout.granule_bytes(), 8192u);
  EXPECT_EQ(layout.rows_bytes(), 32768u);
  EXPECT_EQ(layout.piece_bytes(), 128u * 72);
  EXPECT_EQ(layout.stripe_bytes(), 16u * 128 * 72);
  EXPECT_EQ(layout.plane_offset_in_piece(1), 128u * 64);
  EXPECT_EQ(layout.plane_offset_in_stripe(1), 16u * 128 * 64);
  EXPECT_EQ(layout.plane_offset_in_stripe(2), 16u * 128 * 68);
}

TEST(BlockLayout, ScatterPutsEachCellWhereTheStripeFormulaSays) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 50; ++round) {
    BlockLayout layout = Valid();
    layout.stripe_blocks = 1u << random() % 7;
    layout.planes.resize(1 + random() % 3);
    for (Plane& plane : layout.planes) {
      plane.count = static_cast<uint32_t>(1 + random() % 9);
      plane.cell_bytes = static_cast<uint32_t>(1 + random() % 33);
    }
    const size_t piece_bytes = layout.piece_bytes();
    std::vector<std::byte> pieces(layout.stripe_bytes());
    for (std::byte& byte : pieces) byte = static_cast<std::byte>(random());
    std::vector<std::byte> stripe(layout.stripe_bytes());
    for (uint32_t cell = 0; cell < layout.stripe_blocks;) {
      const auto count = static_cast<uint32_t>(1 + random() % (layout.stripe_blocks - cell));
      layout.Scatter(pieces.data() + cell * piece_bytes, cell, count, stripe.data());
      cell += count;
    }
    for (uint32_t cell = 0; cell < layout.stripe_blocks; ++cell) {
      size_t at = 0;
      for (size_t p = 0; p < layout.planes.size(); ++p) {
        const Plane& plane = layout.planes[p];
        for (uint32_t i = 0; i < plane.count * plane.cell_bytes; ++i, ++at) {
          const size_t row = i / plane.cell_bytes;
          const size_t offset = layout.plane_offset_in_stripe(p) +
                                (row * layout.stripe_blocks + cell) * plane.cell_bytes +
                                i % plane.cell_bytes;
          ASSERT_EQ(stripe[offset], pieces[cell * piece_bytes + at]);
        }
      }
      std::vector<std::byte> back(piece_bytes);
      layout.Gather(stripe.data(), cell, back.data());
      EXPECT_TRUE(std::equal(back.begin(), back.end(), pieces.data() + cell * piece_bytes));
    }
  }
}

struct FieldCase {
  const char* name;
  void (*change)(BlockLayout&);
  // Empty: valid. Else part of the message.
  const char* refused;
};

class BlockLayoutFieldTest : public ::testing::TestWithParam<FieldCase> {};

TEST_P(BlockLayoutFieldTest, IsCheckedAgainstItsLimits) {
  BlockLayout layout = Valid();
  GetParam().change(layout);
  if (*GetParam().refused == '\0') {
    EXPECT_OK(layout.Validate());
    const auto decoded = BlockLayout::Decode(layout.Encode());
    ASSERT_OK(decoded);
    EXPECT_EQ(*decoded, layout);
  } else {
    EXPECT_THAT(layout.Validate(),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(GetParam().refused)));
    EXPECT_THAT(BlockLayout::Decode(layout.Encode()), StatusIs(absl::StatusCode::kDataLoss));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BlockLayoutFieldTest,
    ::testing::Values(
        FieldCase{"valid", [](BlockLayout&) {}, ""},
        FieldCase{"no_layers", [](BlockLayout& l) { l.layers = 0; }, "layers"},
        FieldCase{"one_layer", [](BlockLayout& l) { l.layers = 1; }, ""},
        FieldCase{"no_heads", [](BlockLayout& l) { l.heads = 0; }, "heads"},
        FieldCase{"lanes_at_limit", [](BlockLayout& l) { l.layers = 8192; }, ""},
        FieldCase{"lanes_over_limit", [](BlockLayout& l) { l.layers = 8193; }, "65544"},
        FieldCase{"no_tokens", [](BlockLayout& l) { l.block_tokens = 0; }, "block_tokens is 0"},
        FieldCase{"tokens_not_a_power", [](BlockLayout& l) { l.block_tokens = 48; },
                  "block_tokens is 48"},
        FieldCase{"one_token", [](BlockLayout& l) { l.block_tokens = l.granule_tokens = 1; }, ""},
        FieldCase{"tokens_at_limit",
                  [](BlockLayout& l) {
                    l.block_tokens = 65536;
                    l.granule_tokens = 1024;
                  },
                  ""},
        FieldCase{"tokens_over_limit",
                  [](BlockLayout& l) { l.block_tokens = l.granule_tokens = 131072; },
                  "block_tokens is 131072"},
        FieldCase{"no_row_bytes", [](BlockLayout& l) { l.row_bytes = 0; }, "row_bytes"},
        FieldCase{"one_row_byte", [](BlockLayout& l) { l.row_bytes = 1; }, ""},
        FieldCase{"rows_at_limit", [](BlockLayout& l) { l.row_bytes = 1 << 20; }, ""},
        FieldCase{"rows_over_limit", [](BlockLayout& l) { l.row_bytes = (1 << 20) + 1; }, "64 MiB"},
        FieldCase{"rows_overflowing", [](BlockLayout& l) { l.row_bytes = UINT32_MAX; }, "64 MiB"},
        FieldCase{"no_granule", [](BlockLayout& l) { l.granule_tokens = 0; },
                  "granule_tokens is 0"},
        FieldCase{"granule_not_a_power", [](BlockLayout& l) { l.granule_tokens = 12; },
                  "granule_tokens is 12"},
        FieldCase{"granule_is_block", [](BlockLayout& l) { l.granule_tokens = 64; }, ""},
        FieldCase{"granule_over_block", [](BlockLayout& l) { l.granule_tokens = 128; },
                  "granule_tokens is 128"},
        FieldCase{"granules_at_limit", [](BlockLayout& l) { l.granule_tokens = 1; }, ""},
        FieldCase{"granules_over_limit",
                  [](BlockLayout& l) {
                    l.block_tokens = 128;
                    l.granule_tokens = 1;
                  },
                  "64 granules"},
        FieldCase{"no_stripe", [](BlockLayout& l) { l.stripe_blocks = 0; }, "stripe_blocks is 0"},
        FieldCase{"stripe_of_one", [](BlockLayout& l) { l.stripe_blocks = 1; }, ""},
        FieldCase{"stripe_not_a_power", [](BlockLayout& l) { l.stripe_blocks = 3; },
                  "stripe_blocks is 3"},
        FieldCase{"stripe_at_limit", [](BlockLayout& l) { l.stripe_blocks = 64; }, ""},
        FieldCase{"stripe_over_limit", [](BlockLayout& l) { l.stripe_blocks = 128; },
                  "stripe_blocks is 128"},
        FieldCase{"no_planes", [](BlockLayout& l) { l.planes.clear(); }, ""},
        FieldCase{"planes_at_limit",
                  [](BlockLayout& l) {
                    l.planes.resize(16, {1, 1});
                  },
                  ""},
        FieldCase{"planes_over_limit",
                  [](BlockLayout& l) {
                    l.planes.resize(17, {1, 1});
                  },
                  "planes is 17"},
        FieldCase{"empty_plane", [](BlockLayout& l) { l.planes[1].count = 0; }, "plane count"},
        FieldCase{"empty_cell", [](BlockLayout& l) { l.planes[2].cell_bytes = 0; }, "cell_bytes"},
        FieldCase{"stripe_bytes_at_limit", [](BlockLayout& l) { l.planes = {{1, 4 << 20}}; }, ""},
        FieldCase{"stripe_bytes_over_limit",
                  [](BlockLayout& l) { l.planes = {{1, (4 << 20) + 1}}; }, "stripe bytes"},
        FieldCase{"plane_overflowing",
                  [](BlockLayout& l) { l.planes = {{UINT32_MAX, UINT32_MAX}}; }, "stripe bytes"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(BlockLayout, DecodeRefusesEveryOtherLength) {
  const std::string bytes = Valid().Encode();
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THAT(BlockLayout::Decode(std::string_view(bytes).substr(0, size)),
                StatusIs(absl::StatusCode::kDataLoss));
  }
  EXPECT_THAT(BlockLayout::Decode(bytes + '\0'), StatusIs(absl::StatusCode::kDataLoss));
}

}  // namespace
}  // namespace terrace::kvstore
