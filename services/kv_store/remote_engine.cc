#include "services/kv_store/remote_engine.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "kvstore/mutex.h"
#include "services/engine/handle.h"
#include "services/runtime/convert.h"

namespace terrace::kv_store {
namespace {

// For lists that people ask for: what one store that hangs may cost them.
constexpr absl::Duration kListTimeout = absl::Seconds(2);

template <typename Response>
absl::StatusOr<engine::SequenceInfo> InfoOf(const absl::Status& status, const Response& response) {
  if (!status.ok()) return status;
  return runtime::FromProto(response.sequence());
}

// Whether a store that was asked may have done it: it did not say that it refused.
bool MayHaveRun(const absl::Status& status) {
  return !absl::IsNotFound(status) && !absl::IsFailedPrecondition(status) &&
         !absl::IsOutOfRange(status) && !absl::IsInvalidArgument(status) &&
         !absl::IsResourceExhausted(status);
}

void Tell(const absl::Status& status, const engine::Listing& listing) {
  if (!status.ok() && listing.unreachable != nullptr) listing.unreachable->push_back(status);
}

}  // namespace

RemoteEngine::RemoteEngine(const RemoteOptions& options)
    : options_(options),
      shards_(options.stores, options.max_message_bytes, options.threads),
      row_cache_(options.row_cache_bytes) {}

absl::Status RemoteEngine::Connect(absl::Time deadline) { return shards_.Connect(deadline); }

void RemoteEngine::Cancel() { shards_.Cancel(); }

absl::StatusOr<engine::SequenceInfo> RemoteEngine::OpenOnFirst(
    const std::vector<Shard*>& stores, const engine::Caller& caller,
    const v1::OpenSequenceRequest& request) {
  absl::Status status = absl::UnavailableError("no store");
  for (Shard* shard : stores) {
    v1::OpenSequenceResponse response;
    status = shard->OpenSequence(caller, request, &response);
    if (absl::IsUnavailable(status) || absl::IsResourceExhausted(status)) continue;
    const absl::StatusOr<uint16_t> known = shard->number();
    if (known.ok() && status.ok() && engine::ShardOf(response.sequence().handle()) != *known) {
      shard->Lose(absl::UnavailableError("it has become another shard"));
    }
    return InfoOf(status, response);
  }
  return status;
}

absl::StatusOr<engine::SequenceInfo> RemoteEngine::Create(const engine::Caller& caller,
                                                          const engine::SequenceSpec& spec) {
  v1::OpenSequenceRequest request;
  runtime::ToProto(spec, request.mutable_new_sequence());
  return OpenOnFirst(shards_.Preferred(), caller, request);
}

std::vector<Shard*> RemoteEngine::ByPrefix(const engine::Caller& caller,
                                           const engine::PrefixQuery& query) {
  std::vector<Shard*> stores = shards_.Preferred();
  if (stores.size() < 2) return stores;
  v1::LookupPrefixRequest request;
  runtime::ToProto(query, request.mutable_prefix());
  kvstore::Mutex mu;
  std::map<Shard*, uint64_t> lengths;
  const absl::Time deadline = std::min(caller.deadline, absl::Now() + kListTimeout);
  // One that did not answer has none; opening says why.
  shards_.AskAll(
      [&](Shard& shard, size_t /*index*/) {
        v1::LookupPrefixResponse response;
        const absl::Status status =
            shard.LookupPrefix({.tenant = caller.tenant, .deadline = deadline}, request, &response);
        const kvstore::MutexLock lock(mu);
        if (status.ok()) lengths[&shard] = response.length();
        return status;
      },
      deadline);
  std::stable_sort(stores.begin(), stores.end(),
                   [&](Shard* a, Shard* b) { return lengths[a] > lengths[b]; });
  return stores;
}

absl::StatusOr<engine::SequenceInfo> RemoteEngine::OpenOnPrefix(const engine::Caller& caller,
                                                                const engine::PrefixQuery& query,
                                                                absl::string_view lease) {
  v1::OpenSequenceRequest request;
  runtime::ToProto(query, request.mutable_prefix());
  request.mutable_prefix()->set_lease(std::string(lease));
  if (!lease.empty()) {
    // What was promised lies where the lease was given.
    const absl::StatusOr<Shard*> shard = shards_.ShardFor(lease, caller.deadline);
    if (shard.ok()) return OpenOnFirst({*shard}, caller, request);
  }
  return OpenOnFirst(ByPrefix(caller, query), caller, request);
}

absl::StatusOr<engine::PrefixFound> RemoteEngine::LookupPrefix(const engine::Caller& caller,
                                                               const engine::PrefixQuery& query,
                                                               absl::Duration lease) {
  v1::LookupPrefixRequest request;
  runtime::ToProto(query, request.mutable_prefix());
  runtime::ToProto(lease, request.mutable_lease());
  absl::Status status = absl::UnavailableError("no store");
  for (Shard* shard : ByPrefix(caller, query)) {
    v1::LookupPrefixResponse response;
    status = shard->LookupPrefix(caller, request, &response);
    if (status.ok()) return runtime::FromProto(response);
    if (!absl::IsUnavailable(status)) break;
  }
  return status;
}

absl::StatusOr<engine::SequenceInfo> RemoteEngine::Fork(const engine::Caller& caller,
                                                        absl::string_view handle, int64_t position,
                                                        absl::string_view fingerprint) {
  const absl::StatusOr<Shard*> shard = shards_.ShardFor(handle, caller.deadline);
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
  const absl::StatusOr<Shard*> shard = shards_.ShardFor(handle, caller.deadline);
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
  const absl::StatusOr<Shard*> shard = shards_.ShardFor(handle, caller.deadline);
  if (!shard.ok()) return shard.status();
  v1::GetSequenceRequest request;
  request.set_handle(std::string(handle));
  v1::GetSequenceResponse response;
  const absl::Status status = (*shard)->GetSequence(caller, request, &response);
  return InfoOf(status, response);
}

absl::StatusOr<int64_t> RemoteEngine::Append(const engine::Caller& caller,
                                             const engine::AppendRequest& request) {
  const absl::StatusOr<Shard*> shard = shards_.ShardFor(request.handle, caller.deadline);
  if (!shard.ok()) return shard.status();
  v1::AppendKvRequest message;
  message.set_handle(std::string(request.handle));
  message.set_writer_epoch(request.writer_epoch);
  v1::LayerChunk* chunk = message.add_chunks();
  chunk->set_layer(static_cast<uint32_t>(request.layer));
  chunk->set_position(static_cast<uint64_t>(request.position));
  runtime::ToProto(request.k, chunk->mutable_k());
  runtime::ToProto(request.v, chunk->mutable_v());
  message.set_token_position(static_cast<uint64_t>(request.token_position));
  message.mutable_token_ids()->Add(request.token_ids.begin(), request.token_ids.end());
  v1::AppendKvResponse response;
  const absl::Status status = (*shard)->Append(caller, message, &response);
  if (!status.ok()) return status;
  return static_cast<int64_t>(response.layer_length());
}

absl::StatusOr<engine::SequenceInfo> RemoteEngine::Truncate(const engine::Caller& caller,
                                                            absl::string_view handle,
                                                            uint64_t writer_epoch, int64_t length) {
  const absl::StatusOr<Shard*> shard = shards_.ShardFor(handle, caller.deadline);
  if (!shard.ok()) return shard.status();
  v1::TruncateRequest request;
  request.set_handle(std::string(handle));
  request.set_writer_epoch(writer_epoch);
  request.set_length(static_cast<uint64_t>(length));
  v1::TruncateResponse response;
  const absl::Status status = (*shard)->Truncate(caller, request, &response);
  if (MayHaveRun(status)) row_cache_.Forget(std::string(handle));
  return InfoOf(status, response);
}

absl::StatusOr<engine::SequenceInfo> RemoteEngine::Flush(const engine::Caller& caller,
                                                         absl::string_view handle) {
  const absl::StatusOr<Shard*> shard = shards_.ShardFor(handle, caller.deadline);
  if (!shard.ok()) return shard.status();
  v1::FlushRequest request;
  request.set_handle(std::string(handle));
  v1::FlushResponse response;
  const absl::Status status = (*shard)->Flush(caller, request, &response);
  return InfoOf(status, response);
}

absl::StatusOr<engine::ParkReport> RemoteEngine::Park(const engine::Caller& caller,
                                                      absl::string_view handle) {
  const absl::StatusOr<Shard*> shard = shards_.ShardFor(handle, caller.deadline);
  if (!shard.ok()) return shard.status();
  v1::ParkRequest request;
  request.set_handle(std::string(handle));
  v1::ParkResponse response;
  if (absl::Status status = (*shard)->Park(caller, request, &response); !status.ok()) return status;
  row_cache_.Forget(std::string(handle));
  return runtime::FromProto(response);
}

absl::Status RemoteEngine::Delete(const engine::Caller& caller, absl::string_view handle) {
  const absl::StatusOr<Shard*> shard = shards_.ShardFor(handle, caller.deadline);
  if (!shard.ok()) return shard.status();
  v1::CloseRequest request;
  request.set_handle(std::string(handle));
  const absl::Status status = (*shard)->Close(caller, request);
  if (MayHaveRun(status)) row_cache_.Forget(std::string(handle));
  return status;
}

absl::StatusOr<std::vector<engine::TierReport>> RemoteEngine::ListTiers(
    const engine::Listing& listing) {
  const absl::Time deadline = std::min(listing.deadline, absl::Now() + kListTimeout);
  std::vector<v1::ListTiersResponse> answers(shards_.size());
  const std::vector<absl::Status> asked = shards_.AskAll(
      [&](Shard& shard, size_t i) { return shard.ListTiers(deadline, &answers[i]); }, deadline);
  if (absl::Status status = AnyOk(asked); !status.ok()) return status;
  std::vector<engine::TierReport> tiers;
  for (size_t i = 0; i < answers.size(); ++i) {
    Tell(asked[i], listing);
    for (const v1::TierInfo& tier : answers[i].tiers()) tiers.push_back(runtime::FromProto(tier));
  }
  std::stable_sort(tiers.begin(), tiers.end(),
                   [](const auto& a, const auto& b) { return a.shard < b.shard; });
  return tiers;
}

// Handles start with their shard, so shards in order give handles in order.
absl::StatusOr<std::vector<engine::SequenceSummary>> RemoteEngine::ListSequences(
    absl::string_view tenant, absl::string_view after, int limit, const engine::Listing& listing) {
  const auto until = [&] { return std::min(listing.deadline, absl::Now() + kListTimeout); };
  const std::vector<absl::Status> asked =
      shards_.AskAll([](Shard&, size_t) { return absl::OkStatus(); }, until());
  if (absl::Status status = AnyOk(asked); !status.ok()) return status;
  for (const absl::Status& status : asked) Tell(status, listing);
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
      const absl::Status status = shard->Named(shard->ListSequences(until(), request, &response));
      Tell(status, listing);
      if (!status.ok()) break;
      for (const v1::SequenceSummary& summary : response.sequences()) {
        summaries.push_back(runtime::FromProto(summary));
      }
      if (response.next_page_token().empty()) break;
      request.set_page_token(response.next_page_token());
    }
  }
  return summaries;
}

absl::StatusOr<engine::SequenceDescription> RemoteEngine::Describe(absl::string_view handle,
                                                                   absl::Time deadline) {
  const absl::StatusOr<Shard*> shard = shards_.ShardFor(handle, deadline);
  if (!shard.ok()) return shard.status();
  v1::DescribeSequenceRequest request;
  request.set_handle(std::string(handle));
  v1::DescribeSequenceResponse response;
  const absl::Status status = (*shard)->Describe(deadline, request, &response);
  if (!status.ok()) return status;
  return runtime::FromProto(response);
}

}  // namespace terrace::kv_store
