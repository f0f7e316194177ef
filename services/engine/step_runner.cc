#include "services/engine/step_runner.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/row_attention.h"
#include "attention/softmax_state.h"
#include "attention/sparq.h"

namespace terrace::engine {
namespace {

// Blocks that a dense pass holds pinned at a time.
constexpr uint32_t kDenseBlocks = 64;

// Cells [first, end) as a mask.
uint64_t CellMask(uint32_t first, uint32_t end) {
  const uint64_t below_end = end >= 64 ? ~uint64_t{0} : (uint64_t{1} << end) - 1;
  return below_end & ~((uint64_t{1} << first) - 1);
}

// Cells that hold the first `rows` rows of a block.
uint64_t RowCells(const kvstore::BlockLayout& layout, uint32_t rows) {
  return CellMask(0, (rows + layout.granule_tokens - 1) / layout.granule_tokens);
}

// Of the first `rows` rows of a block, those in granules `cells`.
uint64_t RowsIn(const kvstore::BlockLayout& layout, uint64_t cells, uint32_t rows) {
  uint64_t count = 0;
  for (uint32_t granule = 0; granule < layout.granules(); ++granule) {
    if ((cells >> granule & 1) == 0) continue;
    const uint32_t first = granule * layout.granule_tokens;
    if (first < rows) count += std::min(layout.granule_tokens, rows - first);
  }
  return count;
}

absl::Status Unreadable(const absl::Status& why, absl::string_view what, int layer, int head) {
  return {why.code(),
          absl::StrCat(what, " of layer ", layer, ", KV head ", head, ": ", why.message())};
}

}  // namespace

// One query and KV head on its way through select, gather and attend.
struct StepRunner::HeadWork {
  absl::Status status;
  int head = 0;
  attention::SparqSelection selection;
  // Rows after the last full block, pinned.
  kvstore::Pins tail_pins;
  const std::byte* tail = nullptr;
  uint32_t tail_rows = 0;
  bool tail_on_disk = false;
  std::vector<kvstore::ReadRequest> stripe_requests;
  std::vector<attention::IndexStrip> strips;
  std::vector<double> value_sum;

  // One per selected position: where its row is, null when held by the asker or missing.
  std::vector<const std::byte*> rows;
  std::vector<bool> missing;
  // Kept positions, and the rows to attend to or ship.
  std::vector<float> lse_selected;
  TierRead host;
  TierRead disk;
};

StepRunner::StepRunner(kvstore::BlockStore& store, WorkPool& pool, Sequence& sequence,
                       const StepInput& input, const StepOptions& options)
    : store_(store), pool_(pool), sequence_(sequence), input_(input), options_(options) {}

const float* StepRunner::GroupQueries(int64_t query, int head) const {
  const int64_t first_head = query * geometry().query_heads + head * geometry().group();
  return input_.q + first_head * geometry().head_dim;
}

absl::Status StepRunner::Run(PartForm form, StepPart& part) {
  part.queries = input_.queries;
  part.geometry = geometry();
  if (const auto* sparq = std::get_if<attention::SparqPolicy>(input_.policy)) {
    return RunSparq(*sparq, form, part);
  }
  return RunDense(part);
}

absl::Status StepRunner::RunDense(StepPart& part) {
  const Geometry& g = geometry();
  const size_t heads = input_.queries * g.query_heads;
  part.form = PartForm::kPartial;
  part.output.assign(heads * g.head_dim, 0.0F);
  part.lse.assign(heads, 0.0F);
  part.lse_selected.assign(heads, 0.0F);
  part.lse_all.assign(heads, 0.0F);
  const absl::Time start = absl::Now();
  std::vector<absl::Status> statuses(g.kv_heads);
  std::vector<TierRead> host(g.kv_heads);
  std::vector<TierRead> disk(g.kv_heads);
  pool_.ParallelFor(g.kv_heads, [&](int head) {
    statuses[head] = DenseHead(head, part, host[head], disk[head]);
  });
  for (int head = 0; head < g.kv_heads; ++head) {
    if (!statuses[head].ok()) return statuses[head];
    part.account.host += host[head];
    part.account.disk += disk[head];
  }
  if (options_.return_selection) {
    for (int64_t query = 0; query < input_.queries; ++query) {
      Selection all;
      all.positions.resize(input_.position + query + 1);
      for (size_t p = 0; p < all.positions.size(); ++p) all.positions[p] = static_cast<uint32_t>(p);
      part.selections.insert(part.selections.end(), g.kv_heads, all);
    }
  }
  part.account.stages.attend += absl::Now() - start;
  return absl::OkStatus();
}

absl::Status StepRunner::DenseHead(int head, StepPart& part, TierRead& host, TierRead& disk) {
  const Geometry& g = geometry();
  const kvstore::BlockLayout& layout = sequence_.layout.block;
  const auto group = static_cast<size_t>(g.group());
  const auto dim = static_cast<size_t>(g.head_dim);
  const size_t group_floats = group * dim;
  std::vector<float> q(input_.queries * group_floats);
  std::vector<float> sums(q.size(), 0.0F);
  std::vector<attention::SoftmaxState> states(input_.queries * group);
  for (int64_t query = 0; query < input_.queries; ++query) {
    std::copy_n(GroupQueries(query, head), group_floats, q.data() + query * group_floats);
  }
  for (size_t s = 0; s < states.size(); ++s) states[s].output = sums.data() + s * dim;

  thread_local attention::RowScratch scratch;
  const int64_t visible = input_.position + input_.queries;
  const auto end_block =
      static_cast<uint32_t>((visible + layout.block_tokens - 1) / layout.block_tokens);
  std::vector<kvstore::ReadRequest> requests;
  for (uint32_t first = 0; first < end_block; first += kDenseBlocks) {
    if (absl::Now() > options_.deadline) {
      return absl::DeadlineExceededError("dense attention: the step's deadline passed");
    }
    requests.clear();
    const auto rows_of = [&](uint32_t block) {
      return static_cast<uint32_t>(
          std::min<int64_t>(layout.block_tokens, visible - int64_t{block} * layout.block_tokens));
    };
    for (uint32_t block = first; block < std::min(end_block, first + kDenseBlocks); ++block) {
      requests.push_back({.segment = sequence_.RangeOf(block).segment.get(),
                          .layer = static_cast<uint16_t>(input_.layer),
                          .head = static_cast<uint16_t>(head),
                          .index = block,
                          .cells = RowCells(layout, rows_of(block))});
    }
    const kvstore::Pins pins = store_.PinRows(requests, options_.deadline);
    for (size_t i = 0; i < requests.size(); ++i) {
      const kvstore::PinnedExtent& extent = pins.extents()[i];
      if (extent.missing != 0) return Unreadable(extent.status, "rows", input_.layer, head);
      const uint32_t rows = rows_of(requests[i].index);
      attention::AttendBlock(g.head_shape(), q.data(), input_.queries, input_.position, extent.data,
                             int64_t{requests[i].index} * layout.block_tokens, rows, scratch,
                             absl::MakeSpan(states));
      const uint64_t disk_rows = RowsIn(layout, extent.from_disk, rows);
      disk.rows += disk_rows;
      disk.row_bytes += disk_rows * layout.row_bytes;
      disk.physical_bytes += extent.disk_bytes;
      host.rows += rows - disk_rows;
      host.row_bytes += (rows - disk_rows) * layout.row_bytes;
      host.physical_bytes += (rows - disk_rows) * layout.row_bytes;
    }
  }
  for (int64_t query = 0; query < input_.queries; ++query) {
    const size_t first_head = query * g.query_heads + head * group;
    for (size_t h = 0; h < group; ++h) {
      const attention::SoftmaxState& state = states[query * group + h];
      part.lse[first_head + h] = state.log_sum_exp();
      for (size_t c = 0; c < dim; ++c) {
        part.output[(first_head + h) * dim + c] = state.output[c] / state.sum;
      }
    }
  }
  return absl::OkStatus();
}

absl::Status StepRunner::RunSparq(const attention::SparqPolicy& policy, PartForm form,
                                  StepPart& part) {
  const Geometry& g = geometry();
  const size_t heads = input_.queries * g.query_heads;
  part.form = form;
  part.lse_selected.resize(heads);
  part.lse_all.resize(heads);
  if (form == PartForm::kPartial) {
    part.output.resize(heads * g.head_dim);
    part.lse.resize(heads);
  }
  if (policy.value_mean != attention::ValueMean::kOff) {
    part.mean_sum.resize(input_.queries * g.kv_heads * g.head_dim);
    part.mean_rows.resize(input_.queries * g.kv_heads);
  }
  part.selections.resize(input_.queries * g.kv_heads);
  for (int64_t query = 0; query < input_.queries; ++query) {
    const absl::Time start = absl::Now();
    if (start > options_.deadline) {
      return absl::DeadlineExceededError("selection: the step's deadline passed");
    }
    std::vector<HeadWork> works(g.kv_heads);
    pool_.ParallelFor(g.kv_heads, [&](int head) {
      works[head].head = head;
      works[head].status = SelectHead(policy, query, head, works[head]);
    });
    for (const HeadWork& work : works) {
      if (!work.status.ok()) return work.status;
    }
    part.account.stages.select += absl::Now() - start;
    if (absl::Status status = GatherRows(query, works, part); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status StepRunner::SelectHead(const attention::SparqPolicy& policy, int64_t query, int head,
                                    HeadWork& work) {
  const kvstore::BlockLayout& layout = sequence_.layout.block;
  const int64_t visible = input_.position + query + 1;
  const auto blocks = static_cast<uint32_t>(visible / layout.block_tokens);
  for (const kvstore::SegmentRange& range : sequence_.ranges) {
    const uint32_t end = std::min(range.end_block, blocks);
    for (uint32_t block = range.first_block; block < end;) {
      const uint32_t stripe = block / layout.stripe_blocks;
      const uint32_t stripe_end = std::min(end, (stripe + 1) * layout.stripe_blocks);
      const uint32_t cell = block % layout.stripe_blocks;
      work.stripe_requests.push_back({.segment = range.segment.get(),
                                      .layer = static_cast<uint16_t>(input_.layer),
                                      .head = static_cast<uint16_t>(head),
                                      .index = stripe,
                                      .cells = CellMask(cell, cell + stripe_end - block)});
      work.strips.push_back({.stripe = nullptr,
                             .first_block = static_cast<int>(cell),
                             .block_count = static_cast<int>(stripe_end - block)});
      block = stripe_end;
    }
  }
  const kvstore::Pins pins = store_.PinStripes(work.stripe_requests, options_.deadline);
  for (size_t i = 0; i < work.strips.size(); ++i) {
    const kvstore::PinnedExtent& extent = pins.extents()[i];
    if (extent.missing != 0) return Unreadable(extent.status, "score index", input_.layer, head);
    work.strips[i].stripe = extent.data;
    const int disk_blocks = std::popcount(extent.from_disk);
    const int host_blocks = work.strips[i].block_count - disk_blocks;
    work.disk.index_bytes += sequence_.layout.index.scan_bytes(policy.r, disk_blocks);
    work.disk.physical_bytes += extent.disk_bytes;
    work.host.index_bytes += sequence_.layout.index.scan_bytes(policy.r, host_blocks);
  }
  if (absl::Status status = PinTail(head, visible, work); !status.ok()) return status;
  TierRead& tail_tier = work.tail_on_disk ? work.disk : work.host;
  tail_tier.index_bytes +=
      uint64_t{work.tail_rows} * policy.r * attention::DtypeBytes(geometry().storage);

  thread_local attention::SparqScratch scratch;
  const attention::ScoreView view = {.layout = sequence_.layout.index,
                                     .strips = work.strips,
                                     .tail = work.tail,
                                     .tail_rows = static_cast<int>(work.tail_rows)};
  attention::SelectSparq(geometry().head_shape(), policy, GroupQueries(query, head), view, scratch,
                         work.selection);
  if (policy.value_mean != attention::ValueMean::kOff) SumValues(head, visible, work);
  return absl::OkStatus();
}

absl::Status StepRunner::PinTail(int head, int64_t visible, HeadWork& work) {
  const kvstore::BlockLayout& layout = sequence_.layout.block;
  work.tail_rows = static_cast<uint32_t>(visible % layout.block_tokens);
  if (work.tail_rows == 0) return absl::OkStatus();
  const auto block = static_cast<uint32_t>(visible / layout.block_tokens);
  const kvstore::ReadRequest request = {.segment = sequence_.RangeOf(block).segment.get(),
                                        .layer = static_cast<uint16_t>(input_.layer),
                                        .head = static_cast<uint16_t>(head),
                                        .index = block,
                                        .cells = RowCells(layout, work.tail_rows)};
  work.tail_pins = store_.PinRows(absl::MakeConstSpan(&request, 1), options_.deadline);
  const kvstore::PinnedExtent& extent = work.tail_pins.extents()[0];
  if (extent.missing != 0) return Unreadable(extent.status, "tail rows", input_.layer, head);
  work.tail = extent.data;
  work.tail_on_disk = extent.from_disk != 0;
  work.disk.physical_bytes += extent.disk_bytes;
  return absl::OkStatus();
}

void StepRunner::SumValues(int head, int64_t visible, HeadWork& work) {
  const auto dim = static_cast<size_t>(geometry().head_dim);
  const auto blocks = static_cast<uint32_t>(visible / sequence_.block_tokens());
  {
    const absl::MutexLock lock(&sequence_.sums_mu);
    PrefixSum& cached = sequence_.prefix_sums[input_.layer * geometry().kv_heads + head];
    PrefixSum fresh;
    PrefixSum& prefix = cached.blocks <= blocks ? cached : fresh;
    prefix.sum.resize(dim, 0.0);
    uint32_t block = 0;
    for (const attention::IndexStrip& strip : work.strips) {
      for (int i = 0; i < strip.block_count; ++i, ++block) {
        if (block < prefix.blocks) continue;
        const float* sum = sequence_.layout.ValueSum(strip.stripe, strip.first_block + i);
        for (size_t c = 0; c < dim; ++c) prefix.sum[c] += sum[c];
      }
    }
    prefix.blocks = blocks;
    work.value_sum = prefix.sum;
  }
  attention::AddValues(geometry().head_shape(), work.tail, work.tail_rows, work.value_sum.data());
  const uint64_t tail_bytes =
      uint64_t{work.tail_rows} * dim * attention::DtypeBytes(geometry().storage);
  work.host.sum_bytes += dim * sizeof(float) + (work.tail_on_disk ? 0 : tail_bytes);
  work.disk.sum_bytes += work.tail_on_disk ? tail_bytes : 0;
}

absl::Status StepRunner::GatherRows(int64_t query, std::vector<HeadWork>& works, StepPart& part) {
  const absl::Time start = absl::Now();
  const kvstore::BlockLayout& layout = sequence_.layout.block;
  // The residual mean subtracts every selected row, held or not.
  const auto& policy = std::get<attention::SparqPolicy>(*input_.policy);
  const bool read_held = policy.value_mean == attention::ValueMean::kResidual;
  std::vector<kvstore::ReadRequest> requests;
  std::vector<std::vector<size_t>> request_of(works.size());
  for (HeadWork& work : works) {
    const size_t slot = query * works.size() + work.head;
    for (const uint32_t position : work.selection.positions) {
      const bool skip = !read_held && input_.held->Holds(slot, position);
      const uint32_t block = position / layout.block_tokens;
      const uint64_t cell = uint64_t{1} << position % layout.block_tokens / layout.granule_tokens;
      if (skip) {
        request_of[work.head].push_back(SIZE_MAX);
        continue;
      }
      if (requests.empty() || requests.back().index != block || requests.back().head != work.head) {
        requests.push_back({.segment = sequence_.RangeOf(block).segment.get(),
                            .layer = static_cast<uint16_t>(input_.layer),
                            .head = static_cast<uint16_t>(work.head),
                            .index = block,
                            .cells = 0});
      }
      requests.back().cells |= cell;
      request_of[work.head].push_back(requests.size() - 1);
    }
  }
  const kvstore::Pins pins =
      store_.PinRows(requests, std::min(options_.deadline, options_.row_deadline));
  for (size_t i = 0; i < requests.size(); ++i) {
    works[requests[i].head].disk.physical_bytes += pins.extents()[i].disk_bytes;
    if (pins.extents()[i].missing != 0 && options_.strict) {
      return Unreadable(pins.extents()[i].status, "rows", input_.layer, requests[i].head);
    }
  }
  for (HeadWork& work : works) {
    const std::vector<uint32_t>& positions = work.selection.positions;
    work.rows.assign(positions.size(), nullptr);
    work.missing.assign(positions.size(), false);
    for (size_t i = 0; i < positions.size(); ++i) {
      const size_t request = request_of[work.head][i];
      if (request == SIZE_MAX) continue;
      const kvstore::PinnedExtent& extent = pins.extents()[request];
      const uint32_t row = positions[i] % layout.block_tokens;
      const uint64_t cell = uint64_t{1} << row / layout.granule_tokens;
      work.missing[i] = (extent.missing & cell) != 0;
      if (work.missing[i]) continue;
      work.rows[i] = extent.data + size_t{row} * layout.row_bytes;
      TierRead& tier = (extent.from_disk & cell) != 0 ? work.disk : work.host;
      ++tier.rows;
      tier.row_bytes += layout.row_bytes;
    }
  }
  if (absl::Status status = LeaveOut(works, part); !status.ok()) return status;
  part.account.stages.gather += absl::Now() - start;
  AttendHeads(query, part.form, works, part);
  Account(works, part);
  return absl::OkStatus();
}

absl::Status StepRunner::LeaveOut(std::vector<HeadWork>& works, StepPart& part) {
  for (HeadWork& work : works) {
    const size_t count = work.selection.positions.size();
    const auto group = static_cast<size_t>(geometry().group());
    work.lse_selected.resize(group);
    std::vector<float> kept;
    std::vector<float> missed;
    for (size_t h = 0; h < group; ++h) {
      kept.clear();
      missed.clear();
      for (size_t i = 0; i < count; ++i) {
        (work.missing[i] ? missed : kept).push_back(work.selection.selected_logits[h * count + i]);
      }
      work.lse_selected[h] = attention::LogSumExp(kept);
      if (missed.empty()) continue;
      const float mass = std::exp(attention::LogSumExp(missed) - work.selection.lse_all[h]);
      part.account.missed_mass = std::max(part.account.missed_mass, mass);
    }
    const auto missing =
        static_cast<size_t>(std::count(work.missing.begin(), work.missing.end(), true));
    part.account.missed_rows += missing;
    if (missing == count) {
      return absl::DeadlineExceededError(absl::StrCat("no selected row of layer ", input_.layer,
                                                      ", KV head ", work.head,
                                                      " could be read in time"));
    }
    if (missing == 0) continue;
    size_t next = 0;
    for (size_t i = 0; i < count; ++i) {
      if (work.missing[i]) continue;
      work.selection.positions[next] = work.selection.positions[i];
      work.rows[next++] = work.rows[i];
    }
    work.selection.positions.resize(next);
    work.rows.resize(next);
  }
  return absl::OkStatus();
}

void StepRunner::AttendHeads(int64_t query, PartForm form, std::vector<HeadWork>& works,
                             StepPart& part) {
  const absl::Time start = absl::Now();
  const Geometry& g = geometry();
  const auto dim = static_cast<size_t>(g.head_dim);
  const auto& policy = std::get<attention::SparqPolicy>(*input_.policy);
  for (HeadWork& work : works) {
    const size_t slot = query * g.kv_heads + work.head;
    const size_t first_head = query * g.query_heads + static_cast<size_t>(work.head) * g.group();
    std::copy(work.lse_selected.begin(), work.lse_selected.end(),
              part.lse_selected.begin() + first_head);
    std::copy(work.selection.lse_all.begin(), work.selection.lse_all.end(),
              part.lse_all.begin() + first_head);
    if (policy.value_mean != attention::ValueMean::kOff) {
      uint64_t mean_rows = input_.position + query + 1;
      if (policy.value_mean == attention::ValueMean::kResidual) {
        std::vector<double> selected(dim, 0.0);
        for (const std::byte* row : work.rows) {
          attention::AddValues(g.head_shape(), row, 1, selected.data());
        }
        for (size_t c = 0; c < dim; ++c) work.value_sum[c] -= selected[c];
        mean_rows -= work.rows.size();
      }
      std::copy(work.value_sum.begin(), work.value_sum.end(), part.mean_sum.begin() + slot * dim);
      part.mean_rows[slot] = mean_rows;
    }
    if (form == PartForm::kPartial) {
      AttendGroup(g, GroupQueries(query, work.head), work.rows,
                  part.output.data() + first_head * dim, part.lse.data() + first_head);
    } else {
      for (size_t i = 0; i < work.rows.size(); ++i) {
        if (input_.held->Holds(slot, work.selection.positions[i])) continue;
        part.rows.insert(part.rows.end(), work.rows[i],
                         work.rows[i] + sequence_.layout.block.row_bytes);
      }
    }
    Selection& selection = part.selections[slot];
    selection.positions = std::move(work.selection.positions);
    selection.channels.assign(work.selection.channels.begin(), work.selection.channels.end());
  }
  part.account.stages.attend += absl::Now() - start;
}

void StepRunner::Account(const std::vector<HeadWork>& works, StepPart& part) {
  for (const HeadWork& work : works) {
    TierRead host = work.host;
    host.physical_bytes = host.row_bytes + host.index_bytes + host.sum_bytes;
    part.account.host += host;
    part.account.disk += work.disk;
  }
}

}  // namespace terrace::engine
