#include "services/engine/dense_step.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>
#include <vector>

#include "attention/row_attention.h"
#include "attention/softmax_state.h"
#include "services/engine/cell_mask.h"

namespace terrace::engine {
namespace {

// Blocks of one KV head that are pinned at a time.
constexpr uint32_t kPinnedBlocks = 64;

// All queries of one KV head.
class DenseHead {
 public:
  DenseHead(const StepInput& input, int head)
      : input_(input),
        head_(head),
        group_(static_cast<size_t>(input.geometry().group())),
        dim_(static_cast<size_t>(input.geometry().head_dim)),
        q_(input.queries * group_ * dim_),
        sums_(q_.size(), 0.0F),
        states_(input.queries * group_) {
    for (int64_t query = 0; query < input.queries; ++query) {
      std::copy_n(input.GroupQueries(query, head), group_ * dim_,
                  q_.data() + query * group_ * dim_);
    }
    for (size_t s = 0; s < states_.size(); ++s) states_[s].output = sums_.data() + s * dim_;
  }

  absl::Status Run() {
    const int64_t visible = input_.position + input_.queries;
    const uint32_t block_tokens = input_.block().block_tokens;
    const auto end = static_cast<uint32_t>((visible + block_tokens - 1) / block_tokens);
    for (uint32_t first = 0; first < end; first += kPinnedBlocks) {
      if (absl::Now() > input_.options.deadline) {
        return absl::DeadlineExceededError("dense attention: the step's deadline passed");
      }
      absl::Status status = AttendBlocks(first, std::min(end, first + kPinnedBlocks), visible);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // Divides by the softmax sums. A query that has not seen all its rows has no approximate scores
  // to tell their mass by: it vouches for none.
  absl::Status Store(StepPart& part) const {
    for (int64_t query = 0; query < input_.queries; ++query) {
      const size_t first = query * input_.geometry().query_heads + head_ * group_;
      if (const uint64_t missed = MissedRows(query); missed != 0) {
        if (states_[query * group_].empty()) return input_.Unreadable("every row", head_, why_);
        part.account.missed_rows += missed;
        part.account.missed_mass = 1.0F;
        std::fill_n(part.lse_selected.begin() + static_cast<int64_t>(first), group_, -INFINITY);
      }
      for (size_t h = 0; h < group_; ++h) {
        const attention::SoftmaxState& state = states_[query * group_ + h];
        part.lse[first + h] = state.log_sum_exp();
        float* output = part.output.data() + (first + h) * dim_;
        for (size_t c = 0; c < dim_; ++c) output[c] = state.output[c] / state.sum;
      }
    }
    part.account.host += host_;
    part.account.disk += disk_;
    return absl::OkStatus();
  }

  // Positions that a query attended to.
  std::vector<uint32_t> Positions(int64_t query) const {
    std::vector<uint32_t> positions;
    int64_t next = 0;
    const auto add = [&](int64_t end) {
      for (; next < end; ++next) positions.push_back(static_cast<uint32_t>(next));
    };
    for (const auto& [first, end] : missed_) {
      add(std::min(first, Seen(query)));
      next = end;
    }
    add(Seen(query));
    return positions;
  }

 private:
  // Rows that a query sees.
  int64_t Seen(int64_t query) const { return input_.position + query + 1; }
  uint64_t MissedRows(int64_t query) const {
    int64_t count = 0;
    for (const auto& [first, end] : missed_) {
      count += std::max<int64_t>(0, std::min(end, Seen(query)) - first);
    }
    return static_cast<uint64_t>(count);
  }

  absl::Status AttendBlocks(uint32_t first, uint32_t end, int64_t visible) {
    const kvstore::BlockLayout& layout = input_.block();
    const auto rows_of = [&](uint32_t block) {
      return static_cast<uint32_t>(
          std::min<int64_t>(layout.block_tokens, visible - int64_t{block} * layout.block_tokens));
    };
    std::vector<kvstore::ReadRequest> requests;
    for (uint32_t block = first; block < end; ++block) {
      requests.push_back(input_.RowsOf(head_, block, GranulesOf(layout, rows_of(block))));
      // Reads everything, and so prefers nothing: all blocks together get the mass of one query.
      requests.back().mass =
          std::min(1.0F, static_cast<float>(layout.block_tokens) / static_cast<float>(visible));
    }
    const kvstore::Pins pins = input_.store.PinRows(
        requests, std::min(input_.options.deadline, input_.options.row_deadline));
    for (size_t i = 0; i < requests.size(); ++i) {
      const kvstore::PinnedExtent& extent = pins.extents()[i];
      const uint32_t rows = rows_of(requests[i].index);
      if (extent.missing != 0) {
        if (input_.options.strict || absl::Now() > input_.options.deadline) {
          return input_.Unreadable("rows", head_, extent.status);
        }
        why_ = extent.status;
      }
      AttendRuns(extent, requests[i].index, rows);
      const uint64_t disk_rows = RowsIn(layout, extent.from_disk & ~extent.missing, rows);
      const uint64_t host_rows = rows - disk_rows - RowsIn(layout, extent.missing, rows);
      const uint64_t host_bytes = host_rows * layout.row_bytes;
      disk_ += {.rows = disk_rows,
                .row_bytes = disk_rows * layout.row_bytes,
                .physical_bytes = extent.disk_bytes};
      host_ += {.rows = host_rows, .row_bytes = host_bytes, .physical_bytes = host_bytes};
    }
    return absl::OkStatus();
  }

  // Attends to the first `rows` rows of a block, a whole run of granules at a time, and notes those
  // that are missing.
  void AttendRuns(const kvstore::PinnedExtent& extent, uint32_t block, uint32_t rows) {
    thread_local attention::RowScratch scratch;
    const kvstore::BlockLayout& layout = input_.block();
    const int64_t position = int64_t{block} * layout.block_tokens;
    for (uint32_t row = 0; row < rows;) {
      const uint64_t ahead = extent.missing >> row / layout.granule_tokens;
      const bool missing = (ahead & 1) != 0;
      const int run = missing ? std::countr_one(ahead) : std::countr_zero(ahead);
      const uint32_t end = static_cast<uint32_t>(
          std::min<uint64_t>(rows, row + uint64_t{layout.granule_tokens} * run));
      if (missing) {
        missed_.emplace_back(position + row, position + end);
      } else {
        attention::AttendBlock(input_.geometry().head_shape(), q_.data(), input_.queries,
                               input_.position, extent.data + size_t{row} * layout.row_bytes,
                               position + row, end - row, scratch, absl::MakeSpan(states_));
      }
      row = end;
    }
  }

  const StepInput& input_;
  const int head_;
  const size_t group_;
  const size_t dim_;
  std::vector<float> q_;
  std::vector<float> sums_;
  std::vector<attention::SoftmaxState> states_;
  TierRead host_;
  TierRead disk_;
  // Positions [first, end) that could not be read, ascending, and why.
  std::vector<std::pair<int64_t, int64_t>> missed_;
  absl::Status why_;
};

}  // namespace

absl::Status RunDenseStep(const StepInput& input, StepPart& part) {
  const absl::Time start = absl::Now();
  const Geometry& geometry = input.geometry();
  const size_t heads = input.queries * geometry.query_heads;
  part.form = PartForm::kPartial;
  part.output.resize(heads * geometry.head_dim);
  part.lse.resize(heads);
  part.lse_selected.assign(heads, 0.0F);
  part.lse_all.assign(heads, 0.0F);
  std::vector<DenseHead> works;
  for (int head = 0; head < geometry.kv_heads; ++head) works.emplace_back(input, head);
  std::vector<absl::Status> statuses(works.size());
  input.pool.ParallelFor(geometry.kv_heads, [&](int head) { statuses[head] = works[head].Run(); });
  for (int head = 0; head < geometry.kv_heads; ++head) {
    if (!statuses[head].ok()) return statuses[head];
    if (absl::Status status = works[head].Store(part); !status.ok()) return status;
  }
  for (int64_t query = 0; input.options.return_selection && query < input.queries; ++query) {
    for (const DenseHead& work : works) {
      part.selections.push_back({.positions = work.Positions(query), .channels = {}});
    }
  }
  part.account.stages.attend += absl::Now() - start;
  return absl::OkStatus();
}

}  // namespace terrace::engine
