#include "services/kv_store/remote_engine.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/engine/error.h"
#include "services/engine/handle.h"
#include "services/kv_store/part_convert.h"
#include "services/runtime/convert.h"
#include "services/runtime/message_limit.h"
#include "services/runtime/status_convert.h"

namespace terrace::kv_store {
namespace {

// For steps without a deadline of their own: a store that hangs must not hang the worker.
constexpr absl::Duration kStepTimeout = absl::Minutes(2);
// For lists that people ask for: what one store that hangs may cost them.
constexpr absl::Duration kListTimeout = absl::Seconds(2);

template <typename Response>
absl::StatusOr<engine::SequenceInfo> InfoOf(const absl::Status& status, const Response& response) {
  if (!status.ok()) return status;
  return runtime::FromProto(response.sequence());
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
  // Null when nothing was sent: `refused` says why.
  std::shared_ptr<PendingStep> pending;
  absl::Status refused = absl::UnknownError("not sent");
  absl::Time sent;
};

RemoteEngine::RemoteEngine(const RemoteOptions& options)
    : options_(options),
      shards_(options.stores, options.max_message_bytes),
      row_cache_(options.row_cache_bytes) {}

absl::Status RemoteEngine::Connect(absl::Time deadline) { return shards_.Connect(deadline); }

void RemoteEngine::Cancel() { shards_.Cancel(); }

absl::StatusOr<engine::SequenceInfo> RemoteEngine::Create(const engine::Caller& caller,
                                                          const engine::SequenceSpec& spec) {
  v1::OpenSequenceRequest request;
  runtime::ToProto(spec, request.mutable_new_sequence());
  absl::Status status = absl::UnavailableError("no store");
  for (Shard* shard : shards_.Preferred()) {
    v1::OpenSequenceResponse response;
    status = shard->OpenSequence(caller, request, &response);
    if (absl::IsUnavailable(status)) continue;
    const absl::StatusOr<uint16_t> known = shard->number();
    if (known.ok() && status.ok() && engine::ShardOf(response.sequence().handle()) != *known) {
      shard->Lose(absl::UnavailableError("it has become another shard"));
    }
    return InfoOf(status, response);
  }
  return status;
}

absl::StatusOr<engine::SequenceInfo> RemoteEngine::Fork(const engine::Caller& caller,
                                                        absl::string_view handle, int64_t position,
                                                        absl::string_view fingerprint) {
  const absl::StatusOr<Shard*> shard = shards_.ShardFor(handle);
  if (!shard.ok()) return shard.status();
  v1::OpenSequenceRequest request;
  request.mutable_fork()->set_handle(std::string(handle));
  request.mutable_fork()->set_position(static_cast<uint64_t>(position));
  request.set_expected_fingerprint(std::string(fingerprint));
  v1::OpenSequenceResponse response;
  const absl::Status status = (*shard)->OpenSequence(caller, request, &response);
  return InfoOf(status, response);
}

absl::StatusOr<engine::SequenceInfo> RemoteEngine::Resume(const engine::Caller& caller,
                                                          absl::string_view handle,
                                                          absl::string_view fingerprint) {
  const absl::StatusOr<Shard*> shard = shards_.ShardFor(handle);
  if (!shard.ok()) return shard.status();
  v1::OpenSequenceRequest request;
  request.set_resume(std::string(handle));
  request.set_expected_fingerprint(std::string(fingerprint));
  v1::OpenSequenceResponse response;
  const absl::Status status = (*shard)->OpenSequence(caller, request, &response);
  return InfoOf(status, response);
}

absl::StatusOr<engine::SequenceInfo> RemoteEngine::Get(const engine::Caller& caller,
                                                       absl::string_view handle) {
  const absl::StatusOr<Shard*> shard = shards_.ShardFor(handle);
  if (!shard.ok()) return shard.status();
  v1::GetSequenceRequest request;
  request.set_handle(std::string(handle));
  v1::GetSequenceResponse response;
  const absl::Status status = (*shard)->GetSequence(caller, request, &response);
  return InfoOf(status, response);
}

absl::StatusOr<int64_t> RemoteEngine::Append(const engine::Caller& caller,
                                             const engine::AppendRequest& request) {
  const absl::StatusOr<Shard*> shard = shards_.ShardFor(request.handle);
  if (!shard.ok()) return shard.status();
  v1::AppendKvRequest message;
  message.set_handle(std::string(request.handle));
  message.set_writer_epoch(request.writer_epoch);
  v1::LayerChunk* chunk = message.add_chunks();
  chunk->set_layer(static_cast<uint32_t>(request.layer));
  chunk->set_position(static_cast<uint64_t>(request.position));
  runtime::ToProto(request.k, chunk->mutable_k());
  runtime::ToProto(request.v, chunk->mutable_v());
  v1::AppendKvResponse response;
  const absl::Status status = (*shard)->Append(caller, message, &response);
  if (!status.ok()) return status;
  return request.position + request.k.shape[0];
}

absl::StatusOr<engine::SequenceInfo> RemoteEngine::Truncate(const engine::Caller& caller,
                                                            absl::string_view handle,
                                                            uint64_t writer_epoch, int64_t length) {
  const absl::StatusOr<Shard*> shard = shards_.ShardFor(handle);
  if (!shard.ok()) return shard.status();
  row_cache_.Forget(std::string(handle));
  v1::TruncateRequest request;
  request.set_handle(std::string(handle));
  request.set_writer_epoch(writer_epoch);
  request.set_length(static_cast<uint64_t>(length));
  v1::TruncateResponse response;
  const absl::Status status = (*shard)->Truncate(caller, request, &response);
  return InfoOf(status, response);
}

absl::StatusOr<engine::SequenceInfo> RemoteEngine::Flush(const engine::Caller& caller,
                                                         absl::string_view handle) {
  const absl::StatusOr<Shard*> shard = shards_.ShardFor(handle);
  if (!shard.ok()) return shard.status();
  v1::FlushRequest request;
  request.set_handle(std::string(handle));
  v1::FlushResponse response;
  const absl::Status status = (*shard)->Flush(caller, request, &response);
  return InfoOf(status, response);
}

absl::Status RemoteEngine::Delete(const engine::Caller& caller, absl::string_view handle) {
  const absl::StatusOr<Shard*> shard = shards_.ShardFor(handle);
  if (!shard.ok()) return shard.status();
  row_cache_.Forget(std::string(handle));
  v1::CloseRequest request;
  request.set_handle(std::string(handle));
  return (*shard)->Close(caller, request);
}

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
  const uint64_t bytes_max = batch.shard->max_message_bytes();
  if (message.ByteSizeLong() > bytes_max + runtime::kHopBytes) {
    // Naming rows only saves bytes on the way back.
    for (v1::StoreStepItem& item : *message.mutable_items()) {
      item.clear_held();
      item.clear_held_generation();
    }
    batch.held.assign(batch.items.size(), nullptr);
  }
  const uint64_t bytes = message.ByteSizeLong();
  if (bytes > bytes_max + runtime::kHopBytes) {
    batch.refused = runtime::MessageTooLarge("step", bytes, bytes_max);
    return;
  }
  batch.sent = absl::Now();
  batch.pending =
      batch.shard->steps().Start(std::move(message), options.deadline, options.row_deadline);
}

engine::StepResult RemoteEngine::FinishItem(int layer, const engine::StepRequest& request,
                                            const engine::StepOptions& options,
                                            std::shared_ptr<const RowSet> held,
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
  bool all_ok = status.ok();
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
    all_ok = all_ok && result.status.ok();
    queries += static_cast<uint64_t>(result.queries);
  }
  const absl::Duration away = answer.arrived - batch.sent;
  const absl::Duration took = away + (absl::Now() - start);
  for (const size_t item : batch.items) {
    engine::StageTimes& stages = results[item].account.stages;
    stages.network = std::max(absl::ZeroDuration(), away - stages.total);
    stages.total = took;
  }
  // A step that failed was quick for another reason.
  if (batch.chosen && all_ok) batch.shard->modes().Observe(batch.mode, took, queries);
}

std::vector<RemoteEngine::Batch> RemoteEngine::Route(absl::Span<const engine::StepRequest> requests,
                                                     std::vector<engine::StepResult>& results) {
  // Looked up once for all items of a shard: a store that does not answer costs its timeout.
  std::map<std::optional<uint16_t>, absl::StatusOr<Shard*>> routes;
  std::map<Shard*, Batch> batches;
  for (size_t item = 0; item < requests.size(); ++item) {
    const absl::string_view handle = requests[item].handle;
    const std::optional<uint16_t> number = engine::ShardOf(handle);
    auto route = routes.find(number);
    if (route == routes.end()) route = routes.emplace(number, shards_.ShardFor(handle)).first;
    if (!route->second.ok()) {
      results[item].status = absl::IsNotFound(route->second.status())
                                 ? engine::SequenceNotFound(handle)
                                 : route->second.status();
      continue;
    }
    Batch& batch = batches[*route->second];
    batch.shard = *route->second;
    batch.items.push_back(item);
  }
  std::vector<Batch> list;
  for (auto& [shard, batch] : batches) list.push_back(std::move(batch));
  return list;
}

std::vector<engine::StepResult> RemoteEngine::Attend(const engine::Caller& caller, int layer,
                                                     absl::Span<const engine::StepRequest> requests,
                                                     const engine::StepOptions& options) {
  std::vector<engine::StepResult> results(requests.size());
  engine::StepOptions bounded = options;
  bounded.deadline = std::min({caller.deadline, options.deadline, absl::Now() + kStepTimeout});
  if (absl::Now() >= bounded.deadline) {
    // A store that heard of it might still be in time to append.
    for (engine::StepResult& result : results) {
      result.status = absl::DeadlineExceededError("step: its deadline passed before it began");
    }
    return results;
  }
  std::vector<Batch> batches = Route(requests, results);
  for (Batch& batch : batches) Send(caller, layer, requests, bounded, batch);
  for (Batch& batch : batches) Receive(layer, requests, bounded, batch, results);
  return results;
}

absl::StatusOr<std::vector<engine::TierReport>> RemoteEngine::ListTiers() {
  const absl::Time deadline = absl::Now() + kListTimeout;
  std::vector<v1::ListTiersResponse> answers(shards_.size());
  const absl::Status status = shards_.AskAll(
      [&](Shard& shard, size_t i) { return shard.ListTiers(deadline, &answers[i]); }, deadline);
  if (!status.ok()) return status;
  std::vector<engine::TierReport> tiers;
  for (const v1::ListTiersResponse& answer : answers) {
    for (const v1::TierInfo& tier : answer.tiers()) tiers.push_back(runtime::FromProto(tier));
  }
  std::stable_sort(tiers.begin(), tiers.end(),
                   [](const auto& a, const auto& b) { return a.shard < b.shard; });
  return tiers;
}

// Handles start with their shard, so shards in order give handles in order.
absl::StatusOr<std::vector<engine::SequenceSummary>> RemoteEngine::ListSequences(
    absl::string_view tenant, absl::string_view after, int limit) {
  const absl::Status asked =
      shards_.AskAll([](Shard&, size_t) { return absl::OkStatus(); }, absl::Now() + kListTimeout);
  if (!asked.ok()) return asked;
  const std::optional<uint16_t> first = engine::ShardOf(after);
  std::vector<engine::SequenceSummary> summaries;
  for (const auto& [number, shard] : shards_.Known()) {
    if (first.has_value() && number < *first) continue;
    v1::ListSequencesRequest request;
    request.set_tenant(std::string(tenant));
    if (first == number) request.set_page_token(std::string(after));
    while (static_cast<int>(summaries.size()) < limit) {
      constexpr uint32_t kPageSizeMax = 1000;
      const auto wanted = static_cast<uint32_t>(limit - static_cast<int>(summaries.size()));
      request.set_page_size(std::min(kPageSizeMax, wanted));
      v1::ListSequencesResponse response;
      const absl::Status status =
          shard->ListSequences(absl::Now() + kListTimeout, request, &response);
      if (!status.ok()) {
        shard->Lose(status);
        break;
      }
      for (const v1::SequenceSummary& summary : response.sequences()) {
        summaries.push_back(runtime::FromProto(summary));
      }
      if (response.next_page_token().empty()) break;
      request.set_page_token(response.next_page_token());
    }
  }
  return summaries;
}

absl::StatusOr<engine::SequenceDescription> RemoteEngine::Describe(absl::string_view handle) {
  const absl::StatusOr<Shard*> shard = shards_.ShardFor(handle);
  if (!shard.ok()) return shard.status();
  v1::DescribeSequenceRequest request;
  request.set_handle(std::string(handle));
  v1::DescribeSequenceResponse response;
  if (absl::Status status = (*shard)->Describe(request, &response); !status.ok()) return status;
  return runtime::FromProto(response);
}

}  // namespace terrace::kv_store
