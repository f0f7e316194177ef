// Steps of a RemoteEngine.
#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/engine/error.h"
#include "services/engine/handle.h"
#include "services/kv_store/part_convert.h"
#include "services/kv_store/remote_engine.h"
#include "services/kv_store/shard_search.h"
#include "services/runtime/convert.h"
#include "services/runtime/status_convert.h"

namespace terrace::kv_store {
namespace {

absl::Status NotSent(const absl::Status& why) {
  return absl::DeadlineExceededError(
      absl::StrCat("step: its deadline passed before it was sent: ", why.message()));
}

bool IsSparse(const attention::Policy& policy) {
  return std::holds_alternative<attention::SparqPolicy>(policy);
}

// At most so many bytes of rows does a step select, whatever the storage dtype. Without k its
// number of KV heads is not known here: at most that of query heads. A double, because a bad
// request may say any numbers.
double RowBytesMax(const engine::StepRequest& request) {
  const auto* sparq = std::get_if<attention::SparqPolicy>(&request.policy);
  if (sparq == nullptr || request.q.shape.size() != 3) return 0;
  const double queries = request.q.shape[0];
  const double heads = request.k.shape.size() == 3 ? request.k.shape[1] : request.q.shape[1];
  const double wanted = std::max<double>(sparq->k, double{1} * sparq->window + sparq->sinks);
  const double rows = std::min(wanted, static_cast<double>(request.position) + queries);
  return queries * heads * rows * 2 * request.q.shape[2] * sizeof(float);
}

}  // namespace

// What one shard gets of a call.
struct RemoteEngine::Batch {
  Shard* shard = nullptr;
  engine::RemoteMode mode = engine::RemoteMode::kPartial;
  // The mode was the chooser's, which wants to hear what came of it.
  bool chosen = false;
  std::vector<size_t> items;
  // Rows that this process holds for each of the items; null for none.
  std::vector<std::shared_ptr<const RowSet>> held;
  // It has, or had, its slot.
  bool admitted = false;
  CallSlots::Slot slot;
  // Null when nothing was sent: `refused` says why.
  std::shared_ptr<PendingStep> pending;
  absl::Status refused = absl::UnknownError("not sent");
  absl::Time sent = absl::Now();
};

void RemoteEngine::ChooseMode(absl::Span<const engine::StepRequest> requests,
                              const engine::StepOptions& options, Batch& batch) {
  bool rows_possible = true;
  double row_bytes = 0;
  for (const size_t item : batch.items) {
    rows_possible = rows_possible && IsSparse(requests[item].policy);
    row_bytes += RowBytesMax(requests[item]);
  }
  // Positions, sums and accounts take less than a quarter of the rows.
  const auto bytes_max = static_cast<double>(batch.shard->max_message_bytes());
  if (!rows_possible || row_bytes * 1.25 > bytes_max) return;
  batch.chosen = options.mode == engine::RemoteMode::kAuto;
  batch.mode = batch.chosen ? batch.shard->modes().Choose() : options.mode;
}

bool RemoteEngine::Admit(absl::Time until, absl::Time deadline, Batch& batch) {
  if (batch.admitted) return false;
  absl::StatusOr<CallSlots::Slot> slot = batch.shard->Admit(until);
  batch.admitted = slot.ok();
  if (slot.ok()) {
    batch.slot = *std::move(slot);
  } else {
    batch.refused = absl::Now() < deadline ? slot.status() : NotSent(slot.status());
  }
  return batch.admitted;
}

void RemoteEngine::Send(const engine::Caller& caller, int layer,
                        absl::Span<const engine::StepRequest> requests,
                        const engine::StepOptions& options, Batch& batch) {
  ChooseMode(requests, options, batch);
  v1::StoreStepRequest message;
  message.set_layer(static_cast<uint32_t>(layer));
  message.set_strict(options.strict);
  message.set_return_selection(options.return_selection);
  message.set_mode(runtime::ToProto(batch.mode));
  message.set_tenant(caller.tenant);
  for (const size_t item : batch.items) {
    v1::StoreStepItem* out = message.add_items();
    runtime::ToProto(requests[item], out->mutable_step());
    std::shared_ptr<const RowSet> held;
    const bool single = requests[item].q.shape.size() == 3 && requests[item].q.shape[0] == 1;
    if (batch.mode == engine::RemoteMode::kRows && single) {
      held = row_cache_.Get(std::string(requests[item].handle), layer);
    }
    if (held != nullptr) ToProto(held->held, out);
    batch.held.push_back(std::move(held));
  }
  if (!batch.shard->Fits("step", message.ByteSizeLong()).ok()) {
    // Naming rows only saves bytes on the way back.
    for (v1::StoreStepItem& item : *message.mutable_items()) {
      item.clear_held();
      item.clear_held_generation();
    }
    batch.held.assign(batch.items.size(), nullptr);
  }
  if (absl::Status fits = batch.shard->Fits("step", message.ByteSizeLong()); !fits.ok()) {
    batch.refused = fits;
    return;
  }
  batch.sent = absl::Now();
  batch.pending = batch.shard->steps().Start(std::move(message), options.deadline,
                                             options.row_deadline, std::move(batch.slot));
}

engine::StepResult RemoteEngine::FinishItem(int layer, const engine::StepRequest& request,
                                            const engine::StepOptions& options,
                                            const std::shared_ptr<const RowSet>& held,
                                            const v1::StoreStepResult& answer) {
  engine::StepResult failed;
  failed.appended = answer.appended();
  failed.layer_length = static_cast<int64_t>(answer.layer_length());
  absl::StatusOr<engine::StepPart> part = FromProto(answer);
  if (!part.ok()) {
    failed.status = part.status();
    return failed;
  }
  if (part->status.ok() && part->queries != static_cast<int64_t>(request.q.shape[0])) {
    failed.status = absl::InternalError("the store answered for another number of queries");
    return failed;
  }
  if (part->status.ok() && part->form == engine::PartForm::kRows) {
    const absl::Time start = absl::Now();
    absl::StatusOr<std::shared_ptr<const RowSet>> rows = JoinRows(held.get(), *part);
    std::vector<float> q;
    if (rows.ok()) {
      failed.status = engine::ReadTensor("q", request.q, part->queries, part->geometry.query_heads,
                                         part->geometry.head_dim, &q);
    } else {
      failed.status = rows.status();
    }
    if (!failed.status.ok()) return failed;
    engine::AttendRowsOf(*part, q.data(), (*rows)->pointers);
    if (part->queries == 1) row_cache_.Put(std::string(request.handle), layer, *rows);
    part->account.stages.attend += absl::Now() - start;
  }
  return engine::Finish(*std::move(part), options.return_selection);
}

void RemoteEngine::Receive(int layer, absl::Span<const engine::StepRequest> requests,
                           const engine::StepOptions& options, Batch& batch,
                           std::vector<engine::StepResult>& results) {
  StepAnswer answer = {batch.refused, absl::Now()};
  if (batch.pending != nullptr) answer = batch.shard->steps().Wait(*batch.pending);
  const absl::Time start = absl::Now();
  absl::Status status = answer.response.status();
  if (status.ok()) status = runtime::FromRpcStatus(answer.response->status());
  if (status.ok() && answer.response->results_size() != static_cast<int>(batch.items.size())) {
    status = absl::InternalError("the store answered another number of items than it was asked");
  }
  uint64_t queries = 0;
  for (size_t i = 0; i < batch.items.size(); ++i) {
    engine::StepResult& result = results[batch.items[i]];
    if (!status.ok()) {
      result.status = status;
      continue;
    }
    const v1::StoreStepResult& item = answer.response->results(static_cast<int>(i));
    result = FinishItem(layer, requests[batch.items[i]], options, batch.held[i], item);
    result.account.mode =
        item.has_rows() ? engine::RemoteMode::kRows : engine::RemoteMode::kPartial;
    result.account.wire_bytes = item.ByteSizeLong();
    if (result.status.ok()) queries += static_cast<uint64_t>(result.queries);
  }
  const absl::Duration away = answer.arrived - batch.sent;
  const absl::Duration took = away + (absl::Now() - start);
  for (const size_t item : batch.items) {
    engine::StageTimes& stages = results[item].account.stages;
    stages.network = std::max(absl::ZeroDuration(), away - stages.total);
    stages.total = took;
  }
  if (batch.chosen) batch.shard->modes().Observe(batch.mode, took, queries);
}

std::vector<RemoteEngine::Batch> RemoteEngine::Route(absl::Span<const engine::StepRequest> requests,
                                                     std::vector<size_t>& left,
                                                     std::vector<engine::StepResult>& results) {
  std::map<std::optional<uint16_t>, absl::StatusOr<Shard*>> owners;
  std::map<Shard*, Batch> batches;
  std::vector<size_t> missing;
  for (const size_t item : left) {
    const absl::string_view handle = requests[item].handle;
    const std::optional<uint16_t> number = engine::ShardOf(handle);
    auto owner = owners.find(number);
    if (owner == owners.end()) owner = owners.emplace(number, shards_.Owner(handle)).first;
    if (owner->second.ok()) {
      Batch& batch = batches[*owner->second];
      batch.shard = *owner->second;
      batch.items.push_back(item);
      continue;
    }
    const absl::Status& why = owner->second.status();
    results[item].status = absl::IsNotFound(why) ? engine::SequenceNotFound(handle) : why;
    if (number.has_value()) missing.push_back(item);
  }
  left = std::move(missing);
  std::vector<Batch> list;
  list.reserve(batches.size());
  for (auto& [shard, batch] : batches) list.push_back(std::move(batch));
  return list;
}

std::vector<engine::StepResult> RemoteEngine::Attend(const engine::Caller& caller, int layer,
                                                     absl::Span<const engine::StepRequest> requests,
                                                     const engine::StepOptions& options) {
  std::vector<engine::StepResult> results(requests.size());
  engine::StepOptions bounded = options;
  bounded.deadline =
      engine::WaitEnd(std::min(caller.deadline, options.deadline), engine::kStepPatience);
  if (absl::Now() >= bounded.deadline) {
    // A store that heard of it might still be in time to append.
    for (engine::StepResult& result : results) {
      result.status = absl::DeadlineExceededError("step: its deadline passed before it began");
    }
    return results;
  }
  std::vector<Batch> batches;
  std::vector<size_t> left(requests.size());
  std::iota(left.begin(), left.end(), size_t{0});
  const auto send = [&] {
    const size_t first = batches.size();
    for (Batch& batch : Route(requests, left, results)) batches.push_back(std::move(batch));
    for (const absl::Time until : {absl::InfinitePast(), bounded.deadline}) {
      for (size_t i = first; i < batches.size(); ++i) {
        if (Admit(until, bounded.deadline, batches[i])) {
          Send(caller, layer, requests, bounded, batches[i]);
        }
      }
    }
  };
  // Keeps I9: neither a store that is busy nor one that does not say who it is holds up anybody
  // else's items.
  send();
  if (!left.empty()) {
    ShardSearch search = shards_.Search(bounded.deadline);
    while (!left.empty() && search.AwaitNext()) send();
  }
  const bool late = absl::Now() >= bounded.deadline;
  for (const size_t item : left) {
    if (late) results[item].status = NotSent(results[item].status);
  }
  for (Batch& batch : batches) Receive(layer, requests, bounded, batch, results);
  return results;
}

}  // namespace terrace::kv_store
