#include "services/engine/head_selection.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "attention/row_attention.h"
#include "services/engine/cell_mask.h"

namespace terrace::engine {

HeadSelection::HeadSelection(const StepInput& input, int64_t query, int head)
    : input_(input),
      policy_(std::get<attention::SparqPolicy>(input.policy)),
      query_(query),
      head_(head),
      visible_(input.position + query + 1) {}

absl::Status HeadSelection::Run() {
  PlanStripes(static_cast<uint32_t>(visible_ / input_.block().block_tokens));
  const kvstore::Pins pins = input_.store.PinStripes(requests_, input_.options.deadline);
  if (absl::Status status = ReadStripes(pins); !status.ok()) return status;
  if (absl::Status status = PinTail(); !status.ok()) return status;

  thread_local attention::SparqScratch scratch;
  const attention::ScoreView view = {.layout = input_.sequence.layout.index,
                                     .strips = strips_,
                                     .tail = tail_,
                                     .tail_rows = static_cast<int>(tail_rows_)};
  attention::SelectSparq(input_.geometry().head_shape(), policy_,
                         input_.GroupQueries(query_, head_), view, scratch, chosen_);
  WeighRows();
  if (policy_.value_mean != attention::ValueMean::kOff) SumValues();
  host_.physical_bytes = host_.index_bytes + host_.sum_bytes;
  return absl::OkStatus();
}

void HeadSelection::PlanStripes(uint32_t full_blocks) {
  const uint32_t stripe_blocks = input_.block().stripe_blocks;
  for (const kvstore::SegmentRange& range : input_.sequence.ranges) {
    const uint32_t end = std::min(range.end_block, full_blocks);
    for (uint32_t block = range.first_block; block < end;) {
      const uint32_t stripe = block / stripe_blocks;
      const uint32_t stripe_end = std::min(end, (stripe + 1) * stripe_blocks);
      const uint32_t cell = block % stripe_blocks;
      const uint32_t count = stripe_end - block;
      requests_.push_back({.segment = range.segment.get(),
                           .layer = static_cast<uint16_t>(input_.layer),
                           .head = static_cast<uint16_t>(head_),
                           .index = stripe,
                           .cells = CellMask(cell, cell + count)});
      strips_.push_back({.stripe = nullptr,
                         .first_block = static_cast<int>(cell),
                         .block_count = static_cast<int>(count)});
      block = stripe_end;
    }
  }
}

absl::Status HeadSelection::ReadStripes(const kvstore::Pins& pins) {
  const attention::IndexLayout& index = input_.sequence.layout.index;
  for (size_t i = 0; i < strips_.size(); ++i) {
    const kvstore::PinnedExtent& extent = pins.extents()[i];
    if (extent.missing != 0) return input_.Unreadable("score index", head_, extent.status);
    strips_[i].stripe = extent.data;
    const int disk_blocks = std::popcount(extent.from_disk);
    disk_.index_bytes += index.scan_bytes(policy_.r, disk_blocks);
    disk_.physical_bytes += extent.disk_bytes;
    host_.index_bytes += index.scan_bytes(policy_.r, strips_[i].block_count - disk_blocks);
  }
  return absl::OkStatus();
}

absl::Status HeadSelection::PinTail() {
  const kvstore::BlockLayout& layout = input_.block();
  tail_rows_ = static_cast<uint32_t>(visible_ % layout.block_tokens);
  if (tail_rows_ == 0) return absl::OkStatus();
  const auto block = static_cast<uint32_t>(visible_ / layout.block_tokens);
  const kvstore::ReadRequest request = input_.RowsOf(head_, block, GranulesOf(layout, tail_rows_));
  tail_pins_ = input_.store.PinRows(absl::MakeConstSpan(&request, 1), input_.options.deadline);
  const kvstore::PinnedExtent& extent = tail_pins_.extents()[0];
  if (extent.missing != 0) return input_.Unreadable("tail rows", head_, extent.status);
  tail_ = extent.data;
  tail_from_disk_ = extent.from_disk != 0;
  disk_.physical_bytes += extent.disk_bytes;
  TierRead& tier = tail_from_disk_ ? disk_ : host_;
  tier.index_bytes +=
      uint64_t{tail_rows_} * policy_.r * attention::DtypeBytes(input_.geometry().storage);
  return absl::OkStatus();
}

void HeadSelection::WeighRows() {
  const size_t count = chosen_.positions.size();
  const size_t group = chosen_.lse_all.size();
  masses_.assign(count, 0.0F);
  for (size_t h = 0; h < group; ++h) {
    const float* logits = chosen_.selected_logits.data() + h * count;
    for (size_t i = 0; i < count; ++i) masses_[i] += std::exp(logits[i] - chosen_.lse_all[h]);
  }
  // Logits that overflow give no number; such a step fails when it is finished.
  for (float& mass : masses_) {
    mass = std::isfinite(mass) ? std::min(1.0F, mass / static_cast<float>(group)) : 0.0F;
  }
}

float HeadSelection::PlacementMass(size_t chosen) const {
  const uint32_t position = chosen_.positions[chosen];
  const bool is_kept =
      position < input_.block().block_tokens || position + policy_.window >= visible_;
  return is_kept ? 1.0F : masses_[chosen];
}

void HeadSelection::SumValues() {
  const Geometry& geometry = input_.geometry();
  const auto dim = static_cast<size_t>(geometry.head_dim);
  const auto blocks = static_cast<uint32_t>(visible_ / input_.block().block_tokens);
  {
    Sequence& sequence = input_.sequence;
    const kvstore::MutexLock lock(sequence.sums_mu);
    PrefixSum& cached = sequence.prefix_sums[input_.layer * geometry.kv_heads + head_];
    PrefixSum fresh;
    PrefixSum& prefix = cached.blocks <= blocks ? cached : fresh;
    prefix.sum.resize(dim, 0.0);
    uint32_t block = 0;
    for (const attention::IndexStrip& strip : strips_) {
      for (int i = 0; i < strip.block_count; ++i, ++block) {
        if (block < prefix.blocks) continue;
        const float* sum = sequence.layout.ValueSum(strip.stripe, strip.first_block + i);
        for (size_t c = 0; c < dim; ++c) prefix.sum[c] += sum[c];
      }
    }
    prefix.blocks = blocks;
    value_sum_ = prefix.sum;
  }
  attention::AddValues(geometry.head_shape(), tail_, tail_rows_, value_sum_.data());
  const uint64_t tail_bytes = uint64_t{tail_rows_} * dim * attention::DtypeBytes(geometry.storage);
  host_.sum_bytes += dim * sizeof(float) + (tail_from_disk_ ? 0 : tail_bytes);
  disk_.sum_bytes += tail_from_disk_ ? tail_bytes : 0;
}

}  // namespace terrace::engine
