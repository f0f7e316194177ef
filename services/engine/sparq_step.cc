#include "services/engine/sparq_step.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "attention/row_attention.h"
#include "attention/sparq.h"
#include "services/engine/cell_mask.h"
#include "services/engine/head_selection.h"
#include "services/engine/prefetcher.h"
#include "services/engine/step_recorder.h"

namespace terrace::engine {
namespace {

// One query, all KV heads.
class QueryStep {
 public:
  QueryStep(const StepInput& input, int64_t query, StepPart& part)
      : input_(input),
        policy_(std::get<attention::SparqPolicy>(input.policy)),
        query_(query),
        part_(part) {}

  absl::Status Run() {
    const absl::Time start = absl::Now();
    if (absl::Status status = Select(); !status.ok()) return status;
    if (input_.recorder != nullptr) Record();
    const absl::Time selected = absl::Now();
    kvstore::Pins pins;
    if (absl::Status status = Gather(pins); !status.ok()) return status;
    const absl::Time gathered = absl::Now();
    for (Head& head : heads_) {
      if (absl::Status status = LeaveOut(head); !status.ok()) return status;
      StoreSums(head);
    }
    part_.form == PartForm::kPartial ? Attend() : Ship();
    for (Head& head : heads_) StoreSelection(head);
    part_.account.stages.select += selected - start;
    part_.account.stages.gather += gathered - selected;
    part_.account.stages.attend += absl::Now() - gathered;
    return absl::OkStatus();
  }

 private:
  static constexpr size_t kHeld = SIZE_MAX;

  struct Head {
    explicit Head(HeadSelection head) : selection(std::move(head)) {}

    HeadSelection selection;
    // Per chosen position: its request, or kHeld.
    std::vector<size_t> request;
    // Per chosen position: where its row is; null when the asker holds it.
    std::vector<const std::byte*> rows;
    std::vector<bool> missing;
    // Why some are missing.
    absl::Status why;

    const std::vector<uint32_t>& positions() { return selection.chosen().positions; }
  };

  size_t Slot(int head) const { return query_ * input_.geometry().kv_heads + head; }
  size_t FirstQueryHead(int head) const {
    return query_ * input_.geometry().query_heads +
           static_cast<size_t>(head) * input_.geometry().group();
  }

  absl::Status Select() {
    const int count = input_.geometry().kv_heads;
    heads_.reserve(count);
    for (int head = 0; head < count; ++head) {
      heads_.emplace_back(HeadSelection(input_, query_, head));
    }
    std::vector<absl::Status> statuses(count);
    input_.pool.ParallelFor(count,
                            [&](int head) { statuses[head] = heads_[head].selection.Run(); });
    for (const absl::Status& status : statuses) {
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  void Record() {
    TracedStep step = {.sequence = StepRecorder::Name(input_.sequence.handle),
                       .position = static_cast<uint64_t>(input_.position + query_),
                       .layer = static_cast<uint16_t>(input_.layer),
                       .heads = {}};
    for (Head& head : heads_) {
      step.heads.push_back({.rows = head.positions(), .masses = head.selection.masses()});
    }
    input_.recorder->Record(step);
  }

  // Fetches the chosen rows of all heads in one batch.
  absl::Status Gather(kvstore::Pins& pins) {
    std::vector<kvstore::ReadRequest> requests;
    for (Head& head : heads_) PlanRows(head, requests);
    if (input_.prefetcher != nullptr) {
      input_.prefetcher->NoteStep(input_.sequence, input_.layer, requests);
    }
    pins = input_.store.PinRows(requests,
                                std::min(input_.options.deadline, input_.options.row_deadline));
    for (size_t i = 0; i < requests.size(); ++i) {
      const kvstore::PinnedExtent& extent = pins.extents()[i];
      part_.account.disk.physical_bytes += extent.disk_bytes;
      // Past the step's own deadline nothing is left out: the step is late.
      if (extent.missing != 0 && (input_.options.strict || absl::Now() > input_.options.deadline)) {
        return input_.Unreadable("rows", requests[i].head, extent.status);
      }
    }
    for (Head& head : heads_) LocateRows(head, pins);
    return absl::OkStatus();
  }

  void PlanRows(Head& head, std::vector<kvstore::ReadRequest>& requests) {
    const kvstore::BlockLayout& layout = input_.block();
    const int number = head.selection.head();
    // The residual mean subtracts every chosen row, held or not.
    const bool read_held = policy_.value_mean == attention::ValueMean::kResidual;
    for (size_t i = 0; i < head.positions().size(); ++i) {
      const uint32_t position = head.positions()[i];
      if (!read_held && input_.held.Holds(Slot(number), position)) {
        head.request.push_back(kHeld);
        continue;
      }
      const uint32_t block = position / layout.block_tokens;
      if (requests.empty() || requests.back().index != block || requests.back().head != number) {
        requests.push_back(input_.RowsOf(number, block, 0));
        requests.back().mass = 0.0F;
      }
      requests.back().mass = std::min(1.0F, requests.back().mass + head.selection.PlacementMass(i));
      requests.back().cells |= GranuleOf(layout, position % layout.block_tokens);
      head.request.push_back(requests.size() - 1);
    }
  }

  void LocateRows(Head& head, const kvstore::Pins& pins) {
    const kvstore::BlockLayout& layout = input_.block();
    head.rows.assign(head.positions().size(), nullptr);
    head.missing.assign(head.positions().size(), false);
    for (size_t i = 0; i < head.positions().size(); ++i) {
      if (head.request[i] == kHeld) continue;
      const kvstore::PinnedExtent& extent = pins.extents()[head.request[i]];
      const uint32_t row = head.positions()[i] % layout.block_tokens;
      const uint64_t granule = GranuleOf(layout, row);
      head.missing[i] = (extent.missing & granule) != 0;
      if (head.missing[i]) {
        head.why = extent.status;
        continue;
      }
      head.rows[i] = extent.data + size_t{row} * layout.row_bytes;
      const bool from_disk = (extent.from_disk & granule) != 0;
      TierRead& tier = from_disk ? part_.account.disk : part_.account.host;
      tier += {.rows = 1,
               .row_bytes = layout.row_bytes,
               .physical_bytes = from_disk ? 0 : layout.row_bytes};
    }
  }

  // Drops rows that could not be read, says how much mass that costs, and stores the mass of the
  // others.
  absl::Status LeaveOut(Head& head) {
    attention::SparqSelection& chosen = head.selection.chosen();
    const size_t count = chosen.positions.size();
    const int number = head.selection.head();
    const auto missing =
        static_cast<size_t>(std::count(head.missing.begin(), head.missing.end(), true));
    if (missing == count) {
      return input_.Unreadable("every selected row", number, head.why);
    }
    std::vector<float> kept;
    std::vector<float> missed;
    for (int h = 0; h < input_.geometry().group(); ++h) {
      kept.clear();
      missed.clear();
      for (size_t i = 0; i < count; ++i) {
        (head.missing[i] ? missed : kept).push_back(chosen.selected_logits[h * count + i]);
      }
      part_.lse_selected[FirstQueryHead(number) + h] = attention::LogSumExp(kept);
      part_.lse_all[FirstQueryHead(number) + h] = chosen.lse_all[h];
      if (missed.empty()) continue;
      const float mass = std::exp(attention::LogSumExp(missed) - chosen.lse_all[h]);
      part_.account.missed_mass = std::max(part_.account.missed_mass, mass);
    }
    part_.account.missed_rows += missing;
    size_t next = 0;
    for (size_t i = 0; i < count; ++i) {
      if (head.missing[i]) continue;
      chosen.positions[next] = chosen.positions[i];
      head.rows[next++] = head.rows[i];
    }
    chosen.positions.resize(next);
    head.rows.resize(next);
    return absl::OkStatus();
  }

  // Stores what the value mean is taken from, and the account of the selection.
  void StoreSums(Head& head) {
    part_.account.host += head.selection.host();
    part_.account.disk += head.selection.disk();
    if (policy_.value_mean == attention::ValueMean::kOff) return;
    const auto dim = static_cast<size_t>(input_.geometry().head_dim);
    std::vector<double>& sum = head.selection.value_sum();
    auto rows = static_cast<uint64_t>(head.selection.visible());
    if (policy_.value_mean == attention::ValueMean::kResidual) {
      std::vector<double> chosen(dim, 0.0);
      for (const std::byte* row : head.rows) {
        attention::AddValues(input_.geometry().head_shape(), row, 1, chosen.data());
      }
      for (size_t c = 0; c < dim; ++c) sum[c] -= chosen[c];
      rows -= head.rows.size();
    }
    const size_t slot = Slot(head.selection.head());
    std::copy(sum.begin(), sum.end(), part_.mean_sum.begin() + static_cast<int64_t>(slot * dim));
    part_.mean_rows[slot] = rows;
  }

  void Attend() {
    const auto dim = static_cast<size_t>(input_.geometry().head_dim);
    for (Head& head : heads_) {
      const int number = head.selection.head();
      const size_t first = FirstQueryHead(number);
      AttendGroup(input_.geometry(), input_.GroupQueries(query_, number), head.rows,
                  part_.output.data() + first * dim, part_.lse.data() + first);
    }
  }

  void Ship() {
    for (Head& head : heads_) {
      const size_t slot = Slot(head.selection.head());
      for (size_t i = 0; i < head.rows.size(); ++i) {
        if (input_.held.Holds(slot, head.positions()[i])) continue;
        part_.rows.insert(part_.rows.end(), head.rows[i], head.rows[i] + input_.block().row_bytes);
      }
    }
  }

  void StoreSelection(Head& head) {
    attention::SparqSelection& chosen = head.selection.chosen();
    Selection& selection = part_.selections[Slot(head.selection.head())];
    selection.positions = std::move(chosen.positions);
    selection.channels.assign(chosen.channels.begin(), chosen.channels.end());
  }

  const StepInput& input_;
  const attention::SparqPolicy& policy_;
  const int64_t query_;
  StepPart& part_;
  std::vector<Head> heads_;
};

}  // namespace

absl::Status RunSparqStep(const StepInput& input, PartForm form, StepPart& part) {
  const Geometry& geometry = input.geometry();
  const size_t heads = input.queries * geometry.query_heads;
  const size_t slots = input.queries * geometry.kv_heads;
  part.form = form;
  part.lse_selected.resize(heads);
  part.lse_all.resize(heads);
  part.selections.resize(slots);
  if (form == PartForm::kPartial) {
    part.output.resize(heads * geometry.head_dim);
    part.lse.resize(heads);
  }
  const auto& policy = std::get<attention::SparqPolicy>(input.policy);
  if (policy.value_mean != attention::ValueMean::kOff) {
    part.mean_sum.resize(slots * geometry.head_dim);
    part.mean_rows.resize(slots);
  }
  for (int64_t query = 0; query < input.queries; ++query) {
    if (absl::Now() > input.options.deadline) {
      return absl::DeadlineExceededError("selection: the step's deadline passed");
    }
    if (absl::Status status = QueryStep(input, query, part).Run(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace terrace::engine
