#include "services/engine/dense_step.h"

#include <algorithm>
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

  // Divides by the softmax sums.
  void Store(StepPart& part) const {
    for (int64_t query = 0; query < input_.queries; ++query) {
      const size_t first = query * input_.geometry().query_heads + head_ * group_;
      for (size_t h = 0; h < group_; ++h) {
        const attention::SoftmaxState& state = states_[query * group_ + h];
        part.lse[first + h] = state.log_sum_exp();
        float* output = part.output.data() + (first + h) * dim_;
        for (size_t c = 0; c < dim_; ++c) output[c] = state.output[c] / state.sum;
      }
    }
    part.account.host += host_;
    part.account.disk += disk_;
  }

 private:
  absl::Status AttendBlocks(uint32_t first, uint32_t end, int64_t visible) {
    thread_local attention::RowScratch scratch;
    const kvstore::BlockLayout& layout = input_.block();
    const auto rows_of = [&](uint32_t block) {
      return static_cast<uint32_t>(
          std::min<int64_t>(layout.block_tokens, visible - int64_t{block} * layout.block_tokens));
    };
    std::vector<kvstore::ReadRequest> requests;
    for (uint32_t block = first; block < end; ++block) {
      requests.push_back(input_.RowsOf(head_, block, GranulesOf(layout, rows_of(block))));
    }
    const kvstore::Pins pins = input_.store.PinRows(requests, input_.options.deadline);
    for (size_t i = 0; i < requests.size(); ++i) {
      const kvstore::PinnedExtent& extent = pins.extents()[i];
      if (extent.missing != 0) return input_.Unreadable("rows", head_, extent.status);
      const uint32_t rows = rows_of(requests[i].index);
      attention::AttendBlock(
          input_.geometry().head_shape(), q_.data(), input_.queries, input_.position, extent.data,
          int64_t{requests[i].index} * layout.block_tokens, rows, scratch, absl::MakeSpan(states_));
      const uint64_t disk_rows = RowsIn(layout, extent.from_disk, rows);
      const uint64_t host_bytes = (rows - disk_rows) * layout.row_bytes;
      disk_ += {.rows = disk_rows,
                .row_bytes = disk_rows * layout.row_bytes,
                .physical_bytes = extent.disk_bytes};
      host_ += {.rows = rows - disk_rows, .row_bytes = host_bytes, .physical_bytes = host_bytes};
    }
    return absl::OkStatus();
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
};

void SelectAll(const StepInput& input, StepPart& part) {
  for (int64_t query = 0; query < input.queries; ++query) {
    Selection all;
    for (int64_t p = 0; p <= input.position + query; ++p) {
      all.positions.push_back(static_cast<uint32_t>(p));
    }
    part.selections.insert(part.selections.end(), input.geometry().kv_heads, all);
  }
}

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
    works[head].Store(part);
  }
  if (input.options.return_selection) SelectAll(input, part);
  part.account.stages.attend += absl::Now() - start;
  return absl::OkStatus();
}

}  // namespace terrace::engine
