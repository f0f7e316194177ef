#include "tests/attention/kv_head.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "attention/half.h"

namespace terrace::testing {

using attention::Dtype;
using attention::DtypeBytes;
using attention::HeadShape;
using attention::IndexFormat;
using attention::IndexLayout;
using attention::IndexStrip;
using attention::ScoreView;

KvHead RandomKvHead(int head_dim, int group, int tokens, Dtype dtype, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  KvHead head;
  head.shape = {head_dim, group, dtype, 1 / std::sqrt(static_cast<float>(head_dim))};
  head.tokens = tokens;
  head.q = RandomQueries(head.shape, 1, seed ^ 0x9e3779b97f4a7c15U);
  std::vector<float> mean(head_dim);
  for (float& value : mean) value = normal(random);
  const size_t elements = static_cast<size_t>(tokens) * head_dim;
  head.k.resize(elements);
  head.v.resize(elements);
  for (size_t i = 0; i < elements; ++i) head.k[i] = mean[i % head_dim] + normal(random);
  for (float& value : head.v) value = normal(random);
  head.rows.resize(tokens * head.shape.row_bytes());
  const size_t half_row = head.shape.row_bytes() / 2;
  for (int t = 0; t < tokens; ++t) {
    std::byte* const row = head.rows.data() + t * head.shape.row_bytes();
    for (auto [values, out] : {std::pair{&head.k, row}, std::pair{&head.v, row + half_row}}) {
      float* const in = values->data() + static_cast<size_t>(t) * head_dim;
      attention::FromFloat(dtype, in, head_dim, out);
      attention::ToFloat(dtype, out, head_dim, in);
    }
  }
  return head;
}

std::vector<float> RandomQueries(const HeadShape& shape, int queries, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> q(static_cast<size_t>(queries) * shape.group * shape.head_dim);
  for (float& value : q) value = normal(random);
  return q;
}

attention::reference::Problem ToProblem(const KvHead& head) {
  attention::reference::Problem problem;
  problem.query_heads = head.shape.group;
  problem.kv_heads = 1;
  problem.tokens = head.tokens;
  problem.head_dim = head.shape.head_dim;
  problem.scale = head.shape.scale;
  problem.q.assign(head.q.begin(), head.q.end());
  problem.k.assign(head.k.begin(), head.k.end());
  problem.v.assign(head.v.begin(), head.v.end());
  return problem;
}

ScoreIndex::ScoreIndex(const KvHead& head, const IndexLayout& layout)
    : head_(&head), layout_(layout) {
  const size_t params =
      static_cast<size_t>(layout.head_dim) * layout.blocks_per_stripe() * layout.param_bytes();
  const int blocks = head.tokens / layout.block_tokens;
  for (int block = 0; block < blocks; ++block) {
    if (block % layout.blocks_per_stripe() == 0) {
      // What is not filled yet must not be read: NaN and absurd scales show if it is.
      stripes_.emplace_back(layout.code_plane_bytes() + params, std::byte{0xff});
      strips_.push_back({stripes_.back().data(), 0, 0});
    }
    std::vector<std::byte> piece(layout.piece_bytes());
    const std::byte* const rows = head.rows.data() + static_cast<size_t>(block) *
                                                         layout.block_tokens *
                                                         head.shape.row_bytes();
    const absl::Status status = attention::EncodeBlock(layout, rows, piece.data());
    EXPECT_TRUE(status.ok()) << status.ToString();
    Scatter(piece, block);
    ++strips_.back().block_count;
  }
}

void ScoreIndex::Scatter(const std::vector<std::byte>& piece, int block) {
  std::byte* const stripe = stripes_.back().data();
  const size_t slot = block % layout_.blocks_per_stripe();
  const size_t cell = layout_.block_tokens * layout_.code_bytes();
  const size_t param = layout_.param_bytes();
  for (int c = 0; c < layout_.head_dim; ++c) {
    std::memcpy(stripe + c * layout_.stripe_tokens * layout_.code_bytes() + slot * cell,
                piece.data() + c * cell, cell);
    if (param == 0) continue;
    std::memcpy(
        stripe + layout_.code_plane_bytes() + (c * layout_.blocks_per_stripe() + slot) * param,
        piece.data() + layout_.head_dim * cell + c * param, param);
  }
}

int ScoreIndex::indexed_tokens() const {
  return head_->tokens / layout_.block_tokens * layout_.block_tokens;
}

ScoreView ScoreIndex::View() const {
  ScoreView view;
  view.layout = layout_;
  view.strips = strips_;
  view.tail_rows = head_->tokens - indexed_tokens();
  view.tail = head_->rows.data() + indexed_tokens() * head_->shape.row_bytes();
  return view;
}

ScoreView ScoreIndex::SplitView(int blocks) {
  split_stripes_.clear();
  split_strips_.clear();
  for (size_t i = 0; i < strips_.size(); ++i) {
    for (int first = 0; first < strips_[i].block_count; first += blocks) {
      split_stripes_.push_back(stripes_[i]);
      split_strips_.push_back(
          {split_stripes_.back().data(), first, std::min(blocks, strips_[i].block_count - first)});
    }
  }
  ScoreView view = View();
  view.strips = split_strips_;
  return view;
}

double ScoreIndex::Minimum(int token, int channel) const {
  const int block = token / layout_.block_tokens;
  const std::vector<std::byte>& stripe = stripes_[block / layout_.blocks_per_stripe()];
  const size_t cell = static_cast<size_t>(channel) * layout_.blocks_per_stripe() +
                      block % layout_.blocks_per_stripe();
  uint16_t half;
  std::memcpy(&half, stripe.data() + layout_.code_plane_bytes() + cell * 4 + 2, sizeof(half));
  return attention::FloatFromHalf(half);
}

double ScoreIndex::Step(int token, int channel) const {
  const int block = token / layout_.block_tokens;
  const std::vector<std::byte>& stripe = stripes_[block / layout_.blocks_per_stripe()];
  const size_t cell = static_cast<size_t>(channel) * layout_.blocks_per_stripe() +
                      block % layout_.blocks_per_stripe();
  uint16_t half;
  std::memcpy(&half, stripe.data() + layout_.code_plane_bytes() + cell * 4, sizeof(half));
  return attention::FloatFromHalf(half);
}

double ScoreIndex::Decode(int token, int channel) const {
  const std::vector<std::byte>& stripe = stripes_[token / layout_.stripe_tokens];
  const size_t element =
      static_cast<size_t>(channel) * layout_.stripe_tokens + token % layout_.stripe_tokens;
  const std::byte* const code = stripe.data() + element * layout_.code_bytes();
  if (layout_.format == IndexFormat::kExact) {
    float value = 0;
    attention::ToFloat(layout_.dtype, code, 1, &value);
    return value;
  }
  return Minimum(token, channel) + Step(token, channel) * static_cast<int>(*code);
}

std::vector<double> ScoreIndex::DecodedKeys() const {
  std::vector<double> keys(head_->k.begin(), head_->k.end());
  for (int t = 0; t < indexed_tokens(); ++t) {
    for (int c = 0; c < layout_.head_dim; ++c) {
      keys[static_cast<size_t>(t) * layout_.head_dim + c] = Decode(t, c);
    }
  }
  return keys;
}

}  // namespace terrace::testing
