#include "services/kv_store/remote_engine.h"

#include <xxhash.h>

#include <algorithm>
#include <map>
#include <random>
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
// Time that a store which has not said who it is gets to do so.
constexpr absl::Duration kIdentifyTimeout = absl::Seconds(2);

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
  std::vector<size_t> items;
  // Rows that this process holds for each of the items; null for none.
  std::vector<std::shared_ptr<const RowSet>> held;
  // Null when nothing was sent: `refused` says why.
  std::shared_ptr<StepChannel::Pending> pending;
  absl::Status refused = absl::UnknownError("not sent");
  absl::Time sent;
};

RemoteEngine::RemoteEngine(const RemoteOptions& options)
    : options_(options), row_cache_(options.row_cache_bytes) {
  for (const std::string& store : options.stores) {
    shards_.push_back(std::make_unique<Shard>(store, options.max_message_bytes));
  }
}

absl::Status RemoteEngine::Duplicates() const {
  std::map<uint16_t, std::string> seen;
  for (const std::unique_ptr<Shard>& shard : shards_) {
    if (!shard->number().has_value()) continue;
    const auto [other, fresh] = seen.emplace(*shard->number(), shard->endpoint());
    if (fresh) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("stores: ", other->second, " and ", shard->endpoint(), " are both shard ",
                     other->first, ", expected a shard number of its own for each"));
  }
  return absl::OkStatus();
}

absl::Status RemoteEngine::Connect(absl::Time deadline) {
  absl::Status last;
  bool any = false;
  for (const std::unique_ptr<Shard>& shard : shards_) {
    const absl::Status status = shard->Identify(deadline);
    any = any || status.ok();
    if (!status.ok()) last = status;
  }
  if (absl::Status status = Duplicates(); !status.ok()) return status;
  return any ? absl::OkStatus() : last;
}

absl::StatusOr<Shard*> RemoteEngine::ShardFor(absl::string_view handle) {
  const std::optional<uint16_t> number = engine::ShardOf(handle);
  if (!number.has_value()) return engine::SequenceNotFound(handle);
  for (const std::unique_ptr<Shard>& shard : shards_) {
    if (shard->number() == number) return shard.get();
  }
  absl::Status unreachable;
  for (const std::unique_ptr<Shard>& shard : shards_) {
    if (shard->number().has_value()) continue;
    const absl::Status status = shard->Identify(absl::Now() + kIdentifyTimeout);
    if (!status.ok()) {
      unreachable = status;
    } else if (shard->number() == number) {
      return shard.get();
    }
  }
  if (!unreachable.ok()) return unreachable;
  return engine::SequenceNotFound(handle);
}

std::vector<Shard*> RemoteEngine::Preferred() {
  std::random_device random;
  const uint64_t token = (uint64_t{random()} << 32) | random();
  std::vector<std::pair<uint64_t, Shard*>> weights;
  for (const std::unique_ptr<Shard>& shard : shards_) {
    const uint64_t weight =
        XXH3_64bits_withSeed(shard->endpoint().data(), shard->endpoint().size(), token);
    weights.emplace_back(weight, shard.get());
  }
  std::sort(weights.rbegin(), weights.rend());
  std::vector<Shard*> preferred;
  for (const auto& [weight, shard] : weights) preferred.push_back(shard);
  return preferred;
}

absl::StatusOr<engine::SequenceInfo> RemoteEngine::Create(const engine::Caller& caller,
                                                          const engine::SequenceSpec& spec) {
  v1::OpenSequenceRequest request;
  runtime::ToProto(spec, request.mutable_new_sequence());
  absl::Status status = absl::UnavailableError("no store");
  for (Shard* shard : Preferred()) {
    v1::OpenSequenceResponse response;
    status = shard->OpenSequence(caller, request, &response);
    if (!absl::IsUnavailable(status)) return InfoOf(status, response);
  }
  return status;
}

absl::StatusOr<engine::SequenceInfo> RemoteEngine::Fork(const engine::Caller& caller,
                                                        absl::string_view handle, int64_t position,
                                                        absl::string_view fingerprint) {
  const absl::StatusOr<Shard*> shard = ShardFor(handle);
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
  const absl::StatusOr<Shard*> shard = ShardFor(handle);
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
  const absl::StatusOr<Shard*> shard = ShardFor(handle);
  if (!shard.ok()) return shard.status();
  v1::GetSequenceRequest request;
  request.set_handle(std::string(handle));
  v1::GetSequenceResponse response;
  const absl::Status status = (*shard)->GetSequence(caller, request, &response);
  return InfoOf(status, response);
}

absl::StatusOr<int64_t> RemoteEngine::Append(const engine::Caller& caller,
                                             const engine::AppendRequest& request) {
  const absl::StatusOr<Shard*> shard = ShardFor(request.handle);
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
  const absl::StatusOr<Shard*> shard = ShardFor(handle);
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
  const absl::StatusOr<Shard*> shard = ShardFor(handle);
  if (!shard.ok()) return shard.status();
  v1::FlushRequest request;
  request.set_handle(std::string(handle));
  v1::FlushResponse response;
  const absl::Status status = (*shard)->Flush(caller, request, &response);
  return InfoOf(status, response);
}

absl::Status RemoteEngine::Delete(const engine::Caller& caller, absl::string_view handle) {
  const absl::StatusOr<Shard*> shard = ShardFor(handle);
  if (!shard.ok()) return shard.status();
  row_cache_.Forget(std::string(handle));
  v1::CloseRequest request;
  request.set_handle(std::string(handle));
  return (*shard)->Close(caller, request);
}

void RemoteEngine::Send(const engine::Caller& caller, int layer,
                        absl::Span<const engine::StepRequest> requests,
                        const engine::StepOptions& options, Batch& batch) {
  bool rows_possible = true;
  double row_bytes = 0;
  for (const size_t item : batch.items) {
    rows_possible = rows_possible && IsSparse(requests[item].policy);
    row_bytes += RowBytesMax(requests[item]);
  }
  const uint64_t bytes_max = batch.shard->max_message_bytes();
  // Positions, sums and accounts take less than a quarter of the rows.
  rows_possible = rows_possible && row_bytes * 1.25 <= static_cast<double>(bytes_max);
  batch.mode = options.mode;
  if (options.mode == engine::RemoteMode::kAuto) batch.mode = batch.shard->modes().Choose();
  if (!rows_possible) batch.mode = engine::RemoteMode::kPartial;

  v1::StoreStepRequest message;
  message.set_layer(static_cast<uint32_t>(layer));
  message.set_strict(options.strict);
  message.set_return_selection(options.return_selection);
  message.set_mode(runtime::ToProto(batch.mode));
  message.set_tenant(caller.tenant);
  batch.sent = absl::Now();
  const absl::Time deadline = std::min(caller.deadline, options.deadline);
  const auto remaining = [&](absl::Time time) {
    return static_cast<uint64_t>(
        std::max<int64_t>(1, absl::ToInt64Microseconds(time - batch.sent)));
  };
  if (deadline != absl::InfiniteFuture()) message.set_step_deadline_us(remaining(deadline));
  if (options.row_deadline != absl::InfiniteFuture()) {
    message.set_row_deadline_us(remaining(options.row_deadline));
  }
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
  const uint64_t bytes = message.ByteSizeLong();
  if (bytes > bytes_max + runtime::kHopBytes) {
    batch.refused = runtime::MessageTooLarge("step", bytes, bytes_max);
    return;
  }
  batch.pending = batch.shard->steps().Start(std::move(message));
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
                           const engine::StepOptions& options, absl::Time deadline, Batch& batch,
                           std::vector<engine::StepResult>& results) {
  absl::StatusOr<v1::StoreStepResponse> response = batch.refused;
  if (batch.pending != nullptr) response = batch.shard->steps().Wait(*batch.pending, deadline);
  absl::Status status = response.status();
  if (status.ok()) status = runtime::FromRpcStatus(response->status());
  if (status.ok() && response->results_size() != static_cast<int>(batch.items.size())) {
    status = absl::InternalError("the store answered another number of items than it was asked");
  }
  for (size_t i = 0; i < batch.items.size(); ++i) {
    engine::StepResult& result = results[batch.items[i]];
    if (!status.ok()) {
      result.status = status;
      continue;
    }
    const v1::StoreStepResult& answer = response->results(static_cast<int>(i));
    result = FinishItem(layer, requests[batch.items[i]], options, batch.held[i], answer);
    result.account.mode =
        answer.has_rows() ? engine::RemoteMode::kRows : engine::RemoteMode::kPartial;
    result.account.wire_bytes = answer.ByteSizeLong();
  }
  const absl::Duration took = absl::Now() - batch.sent;
  for (const size_t item : batch.items) {
    engine::StageTimes& stages = results[item].account.stages;
    stages.network = std::max(absl::ZeroDuration(), took - stages.total);
    stages.total = took;
  }
  if (status.ok() && IsSparse(requests[batch.items[0]].policy)) {
    batch.shard->modes().Observe(batch.mode, took);
  }
}

std::vector<engine::StepResult> RemoteEngine::Attend(const engine::Caller& caller, int layer,
                                                     absl::Span<const engine::StepRequest> requests,
                                                     const engine::StepOptions& options) {
  std::vector<engine::StepResult> results(requests.size());
  const absl::Time deadline =
      std::min({caller.deadline, options.deadline, absl::Now() + kStepTimeout});
  if (absl::Now() >= deadline) {
    // A store that heard of it might still be in time to append.
    for (engine::StepResult& result : results) {
      result.status = absl::DeadlineExceededError("step: its deadline passed before it began");
    }
    return results;
  }
  std::map<Shard*, Batch> batches;
  for (size_t item = 0; item < requests.size(); ++item) {
    const absl::StatusOr<Shard*> shard = ShardFor(requests[item].handle);
    if (!shard.ok()) {
      results[item].status = shard.status();
      continue;
    }
    Batch& batch = batches[*shard];
    batch.shard = *shard;
    batch.items.push_back(item);
  }
  for (auto& [shard, batch] : batches) Send(caller, layer, requests, options, batch);
  for (auto& [shard, batch] : batches) {
    Receive(layer, requests, options, deadline, batch, results);
  }
  return results;
}

absl::StatusOr<std::vector<engine::TierReport>> RemoteEngine::ListTiers() {
  std::vector<engine::TierReport> tiers;
  for (const std::unique_ptr<Shard>& shard : shards_) {
    v1::ListTiersResponse response;
    if (absl::Status status = shard->ListTiers(&response); !status.ok()) return status;
    for (const v1::TierInfo& tier : response.tiers()) tiers.push_back(runtime::FromProto(tier));
  }
  std::stable_sort(tiers.begin(), tiers.end(),
                   [](const auto& a, const auto& b) { return a.shard < b.shard; });
  return tiers;
}

// Handles start with their shard, so shards in order give handles in order.
absl::StatusOr<std::vector<engine::SequenceSummary>> RemoteEngine::ListSequences(
    absl::string_view tenant, absl::string_view after, int limit) {
  std::vector<Shard*> shards;
  for (const std::unique_ptr<Shard>& shard : shards_) {
    absl::Status status = shard->Identify(absl::Now() + kIdentifyTimeout);
    if (!status.ok()) return status;
    shards.push_back(shard.get());
  }
  std::sort(shards.begin(), shards.end(),
            [](const Shard* a, const Shard* b) { return a->number() < b->number(); });
  const std::optional<uint16_t> first = engine::ShardOf(after);
  std::vector<engine::SequenceSummary> summaries;
  for (Shard* shard : shards) {
    if (first.has_value() && *shard->number() < *first) continue;
    v1::ListSequencesRequest request;
    request.set_tenant(std::string(tenant));
    if (first == shard->number()) request.set_page_token(std::string(after));
    while (static_cast<int>(summaries.size()) < limit) {
      constexpr uint32_t kPageSizeMax = 1000;
      const auto wanted = static_cast<uint32_t>(limit - static_cast<int>(summaries.size()));
      request.set_page_size(std::min(kPageSizeMax, wanted));
      v1::ListSequencesResponse response;
      if (absl::Status status = shard->ListSequences(request, &response); !status.ok()) {
        return status;
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
  const absl::StatusOr<Shard*> shard = ShardFor(handle);
  if (!shard.ok()) return shard.status();
  v1::DescribeSequenceRequest request;
  request.set_handle(std::string(handle));
  v1::DescribeSequenceResponse response;
  if (absl::Status status = (*shard)->Describe(request, &response); !status.ok()) return status;
  return runtime::FromProto(response);
}

}  // namespace terrace::kv_store
