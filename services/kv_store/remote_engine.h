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
#include "services/kv_store/shard.h"

namespace terrace::kv_store {

struct RemoteOptions {
  // host:port or unix:path, at least one.
  std::vector<std::string> stores;
  uint64_t max_message_bytes = uint64_t{64} << 20;
  // Rows of last steps that this process keeps.
  uint64_t row_cache_bytes = uint64_t{256} << 20;
  engine::Limits limits;
};

// Thread-safe.
class RemoteEngine final : public engine::KvEngine {
 public:
  explicit RemoteEngine(const RemoteOptions& options);

  // Asks every store who it is. FailedPrecondition when two are the same shard; a store that does
  // not answer is asked again when it is needed.
  absl::Status Connect(absl::Time deadline);

  absl::StatusOr<engine::SequenceInfo> Create(const engine::Caller& caller,
                                              const engine::SequenceSpec& spec) override;
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
  absl::Status Delete(const engine::Caller& caller, absl::string_view handle) override;
  std::vector<engine::StepResult> Attend(const engine::Caller& caller, int layer,
                                         absl::Span<const engine::StepRequest> requests,
                                         const engine::StepOptions& options) override;
  absl::StatusOr<std::vector<engine::TierReport>> ListTiers() override;
  absl::StatusOr<std::vector<engine::SequenceSummary>> ListSequences(absl::string_view tenant,
                                                                     absl::string_view after,
                                                                     int limit) override;
  absl::StatusOr<engine::SequenceDescription> Describe(absl::string_view handle) override;
  engine::Limits limits() const override { return options_.limits; }

 private:
  struct Batch;

  // The shard that a handle names. NotFound when the text is no handle or no store is that shard;
  // Unavailable while a store that may be it does not answer.
  absl::StatusOr<Shard*> ShardFor(absl::string_view handle);
  // Live shards, the best first for a new sequence.
  std::vector<Shard*> Preferred();
  absl::Status Duplicates() const;
  void Send(const engine::Caller& caller, int layer, absl::Span<const engine::StepRequest> requests,
            const engine::StepOptions& options, Batch& batch);
  void Receive(int layer, absl::Span<const engine::StepRequest> requests,
               const engine::StepOptions& options, absl::Time deadline, Batch& batch,
               std::vector<engine::StepResult>& results);
  engine::StepResult FinishItem(int layer, const engine::StepRequest& request,
                                const engine::StepOptions& options,
                                std::shared_ptr<const RowSet> held,
                                const v1::StoreStepResult& answer);

  const RemoteOptions options_;
  std::vector<std::unique_ptr<Shard>> shards_;
  RowCache row_cache_;
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_REMOTE_ENGINE_H_
