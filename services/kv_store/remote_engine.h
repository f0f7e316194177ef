// RemoteEngine: the engine whose tiers are in kv-store shards. One sequence lives on one shard, and
// its handle says which; new ones go to a shard by rendezvous hashing.
#ifndef TERRACE_SERVICES_KV_STORE_REMOTE_ENGINE_H_
#define TERRACE_SERVICES_KV_STORE_REMOTE_ENGINE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/engine/kv_engine.h"
#include "services/kv_store/row_cache.h"
#include "services/kv_store/shard_set.h"

namespace terrace::kv_store {

struct RemoteOptions {
  // host:port or unix:path, at least one.
  std::vector<std::string> stores;
  uint64_t max_message_bytes = uint64_t{64} << 20;
  // Threads that call the engine. With several stores each may keep an equal share of them waiting,
  // at least one; what comes beyond it waits for that, and is refused with ResourceExhausted when
  // the store hangs.
  int threads = 64;
  // Rows of last steps that this process keeps.
  uint64_t row_cache_bytes = uint64_t{256} << 20;
  engine::Limits limits;
};

// Thread-safe.
class RemoteEngine final : public engine::KvEngine {
 public:
  explicit RemoteEngine(const RemoteOptions& options);

  // As ShardSet::Connect.
  absl::Status Connect(absl::Time deadline);
  // Ends calls and steps in flight with Unavailable and refuses new ones, so that a worker can stop
  // although a store hangs.
  void Cancel();

  absl::StatusOr<engine::SequenceInfo> Create(const engine::Caller& caller,
                                              const engine::SequenceSpec& spec) override;
  absl::StatusOr<engine::SequenceInfo> OpenOnPrefix(const engine::Caller& caller,
                                                    const engine::PrefixQuery& query,
                                                    absl::string_view lease) override;
  absl::StatusOr<engine::PrefixFound> LookupPrefix(const engine::Caller& caller,
                                                   const engine::PrefixQuery& query,
                                                   absl::Duration lease) override;
  absl::StatusOr<engine::SequenceInfo> Fork(const engine::Caller& caller, absl::string_view handle,
                                            int64_t position,
                                            absl::string_view fingerprint) override;
  absl::StatusOr<engine::SequenceInfo> Resume(const engine::Caller& caller,
                                              absl::string_view handle,
                                              absl::string_view fingerprint) override;
  absl::StatusOr<engine::SequenceInfo> Get(const engine::Caller& caller,
                                           absl::string_view handle) override;
  absl::StatusOr<int64_t> Append(const engine::Caller& caller,
                                 const engine::AppendRequest& request) override;
  absl::StatusOr<engine::SequenceInfo> Truncate(const engine::Caller& caller,
                                                absl::string_view handle, uint64_t writer_epoch,
                                                int64_t length) override;
  absl::StatusOr<engine::SequenceInfo> Flush(const engine::Caller& caller,
                                             absl::string_view handle) override;
  absl::StatusOr<engine::ParkReport> Park(const engine::Caller& caller,
                                          absl::string_view handle) override;
  absl::Status Delete(const engine::Caller& caller, absl::string_view handle) override;
  std::vector<engine::StepResult> Attend(const engine::Caller& caller, int layer,
                                         absl::Span<const engine::StepRequest> requests,
                                         const engine::StepOptions& options) override;
  absl::StatusOr<std::vector<engine::TierReport>> ListTiers(
      const engine::Listing& listing = {}) override;
  absl::StatusOr<std::vector<engine::SequenceSummary>> ListSequences(
      absl::string_view tenant, absl::string_view after, int limit,
      const engine::Listing& listing = {}) override;
  absl::StatusOr<engine::SequenceDescription> Describe(
      absl::string_view handle, absl::Time deadline = absl::InfiniteFuture()) override;
  // An error for each store that has not said who it is.
  std::vector<absl::Status> Unreachable() { return shards_.Unreachable(); }
  engine::Limits limits() const override { return options_.limits; }

 private:
  struct Batch;

  // Opens on the first of the stores that can be reached and has room.
  absl::StatusOr<engine::SequenceInfo> OpenOnFirst(const std::vector<Shard*>& stores,
                                                   const engine::Caller& caller,
                                                   const v1::OpenSequenceRequest& request);
  // All stores, those with the longest prefix first; among equals as for a new sequence. A store
  // that cannot say has none.
  std::vector<Shard*> ByPrefix(const engine::Caller& caller, const engine::PrefixQuery& query);

  // The items of `left` by shard. Those whose shard is not known get why as their result, and stay
  // in `left` if their handles name one.
  std::vector<Batch> Route(absl::Span<const engine::StepRequest> requests,
                           std::vector<size_t>& left, std::vector<engine::StepResult>& results);
  // What the step at the store may take: its mode, and whether that was this process's choice.
  static void ChooseMode(absl::Span<const engine::StepRequest> requests,
                         const engine::StepOptions& options, Batch& batch);
  // Whether it has got its slot now, having waited for it until then.
  static bool Admit(absl::Time until, absl::Time deadline, Batch& batch);
  void Send(const engine::Caller& caller, int layer, absl::Span<const engine::StepRequest> requests,
            const engine::StepOptions& options, Batch& batch);
  void Receive(int layer, absl::Span<const engine::StepRequest> requests,
               const engine::StepOptions& options, Batch& batch,
               std::vector<engine::StepResult>& results);
  engine::StepResult FinishItem(int layer, const engine::StepRequest& request,
                                const engine::StepOptions& options,
                                const std::shared_ptr<const RowSet>& held,
                                const v1::StoreStepResult& answer);

  const RemoteOptions options_;
  ShardSet shards_;
  RowCache row_cache_;
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_REMOTE_ENGINE_H_
