#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/types/span.h"
#include "attention/row_attention.h"
#include "attention/softmax_state.h"
#include "attention/sparq.h"
#include "services/policy_check/backend.h"

namespace terrace::policy_check {
namespace {

using attention::HeadShape;
using attention::IndexLayout;
using attention::SoftmaxState;

// The stripes of one KV head.
class Stripes {
 public:
  Stripes(const StoredCase& stored, int head) : layout_(stored.layout()) {
    const int blocks = stored.problem.tokens / layout_.block_tokens;
    const size_t params =
        static_cast<size_t>(layout_.head_dim) * layout_.blocks_per_stripe() * layout_.param_bytes();
    for (int block = 0; block < blocks; ++block) {
      if (block % layout_.blocks_per_stripe() == 0) {
        // What no block has filled must not be read: as NaN and absurd codes it shows if it is.
        stripes_.emplace_back(layout_.code_plane_bytes() + params, std::byte{0xff});
        strips_.push_back({.stripe = stripes_.back().data(), .first_block = 0, .block_count = 0});
      }
      Scatter(stored.pieces[head].data() + block * layout_.piece_bytes(), block);
      ++strips_.back().block_count;
    }
  }

  absl::Span<const attention::IndexStrip> strips() const { return strips_; }

 private:
  // Codes, then params, channel by channel into the last stripe.
  void Scatter(const std::byte* piece, int block) {
    std::byte* const stripe = stripes_.back().data();
    const size_t slot = block % layout_.blocks_per_stripe();
    const size_t slots = layout_.blocks_per_stripe();
    const size_t cell = layout_.block_tokens * layout_.code_bytes();
    const size_t param = layout_.param_bytes();
    const size_t channels = layout_.head_dim;
    for (size_t c = 0; c < channels; ++c) {
      std::memcpy(stripe + (c * slots + slot) * cell, piece + c * cell, cell);
      std::memcpy(stripe + layout_.code_plane_bytes() + (c * slots + slot) * param,
                  piece + channels * cell + c * param, param);
    }
  }

  const IndexLayout layout_;
  std::vector<std::vector<std::byte>> stripes_;
  std::vector<attention::IndexStrip> strips_;
};

// The running softmaxes of one query group.
struct GroupStates {
  explicit GroupStates(const HeadShape& shape)
      : dim(static_cast<size_t>(shape.head_dim)), sums(shape.group * dim), states(shape.group) {
    for (size_t h = 0; h < states.size(); ++h) states[h].output = sums.data() + h * dim;
  }

  // The attention output of one head.
  std::vector<float> Output(size_t head) const {
    std::vector<float> output(dim);
    for (size_t c = 0; c < dim; ++c) output[c] = states[head].output[c] / states[head].sum;
    return output;
  }

  size_t dim;
  std::vector<float> sums;  // [group][head_dim]
  std::vector<SoftmaxState> states;
};

class CpuBackend final : public Backend {
 public:
  absl::StatusOr<std::vector<Run>> Answer(const VectorCase& vector,
                                          const StoredCase& stored) override {
    Run run;
    const auto* const sparq = std::get_if<attention::SparqPolicy>(&vector.policy);
    for (int head = 0; head < stored.problem.kv_heads; ++head) {
      if (sparq == nullptr) {
        AttendDense(stored, head, run.answer);
      } else {
        AttendSparq(*sparq, stored, head, run.answer);
      }
    }
    return std::vector<Run>{std::move(run)};
  }

 private:
  static std::vector<float> GroupQueries(const StoredCase& stored, int head) {
    const auto count = static_cast<std::ptrdiff_t>(stored.shape().group) * stored.problem.head_dim;
    const auto first = stored.problem.q.begin() + head * count;
    return {first, first + count};
  }

  void AttendDense(const StoredCase& stored, int head, attention::reference::Answer& answer) {
    const HeadShape shape = stored.shape();
    const std::vector<float> q = GroupQueries(stored, head);
    const int tokens = stored.problem.tokens;
    GroupStates group(shape);
    std::vector<uint32_t>& selection = answer.selection.emplace_back();
    for (int first = 0; first < tokens; first += stored.format.block_tokens) {
      const int count = std::min(tokens - first, stored.format.block_tokens);
      attention::AttendBlock(shape, q.data(), /*queries=*/1, /*query_position=*/tokens - 1,
                             stored.rows[head].data() + first * shape.row_bytes(), first, count,
                             row_scratch_, absl::MakeSpan(group.states));
      for (int row = first; row < first + count; ++row) selection.push_back(row);
    }
    for (int h = 0; h < shape.group; ++h) {
      const std::vector<float> output = group.Output(h);
      answer.alpha.push_back(1.0);
      answer.output.insert(answer.output.end(), output.begin(), output.end());
    }
  }

  void AttendSparq(const attention::SparqPolicy& policy, const StoredCase& stored, int head,
                   attention::reference::Answer& answer) {
    const HeadShape shape = stored.shape();
    const std::vector<float> q = GroupQueries(stored, head);
    const Stripes stripes(stored, head);
    attention::ScoreView view = {.layout = stored.layout(), .strips = stripes.strips()};
    view.tail = stored.rows[head].data() + view.indexed_tokens() * shape.row_bytes();
    view.tail_rows = static_cast<int>(stored.problem.tokens - view.indexed_tokens());
    attention::SparqSelection selection;
    attention::SelectSparq(shape, policy, q.data(), view, sparq_scratch_, selection);

    std::vector<const std::byte*> rows;
    for (const uint32_t position : selection.positions) {
      rows.push_back(stored.rows[head].data() + position * shape.row_bytes());
    }
    GroupStates group(shape);
    attention::AttendRows(shape, q.data(), rows, row_scratch_, absl::MakeSpan(group.states));
    const Mean mean = MeanOf(policy.value_mean, stored, head, rows);
    const size_t count = selection.positions.size();
    for (int h = 0; h < shape.group; ++h) {
      const auto logits = absl::MakeConstSpan(selection.selected_logits).subspan(h * count, count);
      const float alpha =
          std::min(1.0F, std::exp(attention::LogSumExp(logits) - selection.lse_all[h]));
      std::vector<float> output = group.Output(h);
      attention::MixValueMean(shape.head_dim, alpha, mean.sum.data(), mean.rows, output.data(),
                              output.data());
      answer.alpha.push_back(alpha);
      answer.tau.push_back(selection.tau[h]);
      answer.output.insert(answer.output.end(), output.begin(), output.end());
    }
    answer.channels.push_back(std::move(selection.channels));
    answer.selection.push_back(std::move(selection.positions));
  }

  // Values that stand in for the rows that were not selected.
  struct Mean {
    std::vector<float> sum;
    uint64_t rows = 0;
  };

  static Mean MeanOf(attention::ValueMean mean, const StoredCase& stored, int head,
                     const std::vector<const std::byte*>& selected) {
    const HeadShape shape = stored.shape();
    const auto tokens = static_cast<uint64_t>(stored.problem.tokens);
    if (mean == attention::ValueMean::kOff) return {};
    std::vector<double> all(shape.head_dim);
    attention::AddValues(shape, stored.rows[head].data(), stored.problem.tokens, all.data());
    if (mean == attention::ValueMean::kMean) return {{all.begin(), all.end()}, tokens};
    std::vector<double> left_out(shape.head_dim);
    for (const std::byte* row : selected) attention::AddValues(shape, row, 1, left_out.data());
    for (size_t c = 0; c < all.size(); ++c) all[c] -= left_out[c];
    return {{all.begin(), all.end()}, tokens - selected.size()};
  }

  attention::SparqScratch sparq_scratch_;
  attention::RowScratch row_scratch_;
};

}  // namespace

std::unique_ptr<Backend> MakeCpuBackend() { return std::make_unique<CpuBackend>(); }

}  // namespace terrace::policy_check
