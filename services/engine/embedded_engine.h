// EmbeddedEngine: the engine whose tiers are in this process.
#ifndef TERRACE_SERVICES_ENGINE_EMBEDDED_ENGINE_H_
#define TERRACE_SERVICES_ENGINE_EMBEDDED_ENGINE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/block_store.h"
#include "kvstore/mutex.h"
#include "services/engine/appender.h"
#include "services/engine/kv_engine.h"
#include "services/engine/sequence.h"
#include "services/engine/step_input.h"
#include "services/engine/step_part.h"
#include "services/engine/step_tensors.h"
#include "services/engine/work_pool.h"

namespace terrace::engine {

struct EmbeddedOptions {
  kvstore::StoreOptions store;
  // Rows that seal together: a power of two, [16, 1024].
  int block_tokens = 64;
  // Tokens of one score index stripe: a power of two, [block_tokens, 64 * block_tokens].
  int index_tokens = 1024;
  // Threads of one step, the calling one included. 0 means one per core.
  int compute_threads = 0;
  Limits limits;

  absl::Status Validate() const;
};

// Thread-safe.
class EmbeddedEngine final : public KvEngine {
 public:
  // Opens the store and brings back what was durable. The errors of BlockStore::Open.
  static absl::StatusOr<std::unique_ptr<EmbeddedEngine>> Open(const EmbeddedOptions& options);
  // The same over a store that is open, with faults for tests. Requires: `options` are valid, and
  // options.store are those of the store.
  static std::unique_ptr<EmbeddedEngine> OpenOn(const EmbeddedOptions& options,
                                                std::unique_ptr<kvstore::BlockStore> store);

  absl::StatusOr<SequenceInfo> Create(const Caller& caller, const SequenceSpec& spec) override;
  absl::StatusOr<SequenceInfo> Fork(const Caller& caller, absl::string_view handle,
                                    int64_t position, absl::string_view fingerprint) override;
  absl::StatusOr<SequenceInfo> Resume(const Caller& caller, absl::string_view handle,
                                      absl::string_view fingerprint) override;
  absl::StatusOr<SequenceInfo> Get(const Caller& caller, absl::string_view handle) override;
  absl::StatusOr<int64_t> Append(const Caller& caller, const AppendRequest& request) override;
  absl::StatusOr<SequenceInfo> Truncate(const Caller& caller, absl::string_view handle,
                                        uint64_t writer_epoch, int64_t length) override;
  absl::StatusOr<SequenceInfo> Flush(const Caller& caller, absl::string_view handle) override;
  absl::Status Delete(const Caller& caller, absl::string_view handle) override;
  std::vector<StepResult> Attend(const Caller& caller, int layer,
                                 absl::Span<const StepRequest> requests,
                                 const StepOptions& options) override;
  absl::StatusOr<std::vector<TierReport>> ListTiers() override;
  absl::StatusOr<std::vector<SequenceSummary>> ListSequences(absl::string_view tenant,
                                                             absl::string_view after,
                                                             int limit) override;
  absl::StatusOr<SequenceDescription> Describe(absl::string_view handle) override;
  Limits limits() const override { return options_.limits; }

  // One step up to `form`, for a worker elsewhere that finishes it. part.status says how it went.
  StepPart RunStep(const Caller& caller, int layer, const StepRequest& request,
                   const StepOptions& options, PartForm form, const HeldRows& held);

  // Rows of one layer and KV head, [positions, row_bytes]. Positions ascending.
  // OutOfRange beyond the layer's length; DataLoss; DeadlineExceeded.
  absl::StatusOr<std::vector<std::byte>> ReadRows(const Caller& caller, absl::string_view handle,
                                                  int layer, int head,
                                                  absl::Span<const uint32_t> positions);

  // Calls body(0) … body(count - 1) on the threads of this engine.
  void ForEach(int count, const std::function<void(int)>& body) { pool_->ParallelFor(count, body); }

  // What the start could not bring back, a message each.
  std::vector<std::string> damaged() const {
    const kvstore::MutexLock lock(mu_);
    std::vector<std::string> messages;
    for (const auto& [handle, why] : damaged_) messages.emplace_back(why.message());
    return messages;
  }
  size_t sequence_count() const {
    const kvstore::MutexLock lock(mu_);
    return sequences_.size();
  }
  uint16_t shard() const { return options_.store.shard; }

 private:
  explicit EmbeddedEngine(const EmbeddedOptions& options);

  // Sequences that cannot be brought back are set aside; the others are served.
  void Recover();
  absl::Status RecoverOne(const kvstore::Manifest& manifest);
  // The caller's sequence. NotFound for unknown and for another tenant's alike (I11).
  absl::StatusOr<std::shared_ptr<Sequence>> Find(const Caller& caller,
                                                 absl::string_view handle) const;
  // The first after a handle, of one tenant or of all; null at the end.
  std::shared_ptr<Sequence> NextSequence(absl::string_view tenant, absl::string_view after) const;
  absl::Status AddSequence(std::shared_ptr<Sequence> sequence);
  absl::StatusOr<kvstore::SegmentRef> NewSegment(SequenceLayout& layout, uint32_t first_block,
                                                 bool may_shrink_stripes);
  // Ranges of `sequence` up to `length`, ending in a new segment that holds the rows of the cut
  // block. The caller holds the gate.
  absl::StatusOr<std::vector<kvstore::SegmentRange>> Branch(Sequence& sequence, int64_t length,
                                                            absl::Time deadline);
  absl::Status CopyTail(Sequence& sequence, kvstore::Segment& to, int64_t length,
                        absl::Time deadline);
  // Writes the rows in `to` that were copied from durable ones, so that the truncate to `length`
  // leaves them durable. The caller holds the gate.
  absl::Status KeepDurable(Sequence& sequence, kvstore::Segment& to, int64_t length,
                           absl::Time deadline);
  absl::Status TruncateLocked(Sequence& sequence, int64_t length, absl::Time deadline);
  absl::Status FlushLocked(Sequence& sequence, absl::Time deadline);
  absl::Status AppendLocked(Sequence& sequence, uint64_t writer_epoch, const AppendRows& rows,
                            absl::Time deadline);
  absl::Status CheckAnswer(const Sequence& sequence, const StepRequest& request, int64_t queries,
                           const StepOptions& options, PartForm form) const;
  // The step behind its checks: appends, then reads. The caller holds the gate.
  absl::Status RunLocked(Sequence& sequence, int layer, const StepRequest& request,
                         const StepTensors& tensors, const StepOptions& options, PartForm form,
                         const HeldRows& held, StepPart& part);
  // Brings flushed rows of a layer back after a restart if some below `end` are needed. The caller
  // holds the gate, and not the writer. DataLoss when they are corrupt, naming their positions.
  absl::Status RestoreTail(Sequence& sequence, int layer, int64_t end, absl::Time deadline);
  // The same when the caller holds the writer too.
  absl::Status RestoreTailLocked(Sequence& sequence, int layer, int64_t end, absl::Time deadline);
  SequenceSummary Summarize(Sequence& sequence, std::vector<LayerResidency>* layers);

  const EmbeddedOptions options_;
  std::unique_ptr<kvstore::BlockStore> store_;
  std::unique_ptr<WorkPool> pool_;

  mutable kvstore::Mutex mu_;
  std::map<std::string, std::shared_ptr<Sequence>, std::less<>> sequences_ ABSL_GUARDED_BY(mu_);
  // Sequences that a start could not bring back, and why: DataLoss until they are deleted.
  std::map<std::string, absl::Status, std::less<>> damaged_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_EMBEDDED_ENGINE_H_
