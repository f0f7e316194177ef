// EmbeddedEngine: the engine whose tiers are in this process.
#ifndef TERRACE_SERVICES_ENGINE_EMBEDDED_ENGINE_H_
#define TERRACE_SERVICES_ENGINE_EMBEDDED_ENGINE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/block_store.h"
#include "kvstore/mutex.h"
#include "services/engine/appender.h"
#include "services/engine/kv_engine.h"
#include "services/engine/live_quota.h"
#include "services/engine/prefetcher.h"
#include "services/engine/prefix_index.h"
#include "services/engine/retained_set.h"
#include "services/engine/sequence.h"
#include "services/engine/step_input.h"
#include "services/engine/step_part.h"
#include "services/engine/step_recorder.h"
#include "services/engine/step_tensors.h"
#include "services/engine/value_cache.h"
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
  // Reads ahead what the next layers will probably select.
  bool prefetch = true;
  // Step trace of the selections of all SparQ steps; none without a path.
  std::string record_steps;
  uint64_t record_bytes = uint64_t{256} << 20;
  Limits limits;
  // Bytes that values of one tenant may take, and rows and index that its closed sequences may keep
  // for prefixes, shared ones counted with each. Leases of prefixes are not counted. Beyond it the
  // least recently used go.
  uint64_t retained_bytes_max = uint64_t{1} << 40;
  // Between two sweeps. Zero: nobody sweeps but who calls Sweep.
  absl::Duration sweep_interval = absl::Seconds(5);
  // What ages are taken from. Tests have their own.
  std::function<absl::Time()> clock = absl::Now;
  // Tests have a weak one.
  PrefixDigest prefix_digest = Sha256;

  absl::Status Validate() const;
  // Whether memory becomes free by itself, as blocks reach the disk. Where it does not, what is
  // retained gives way to whoever finds no room.
  bool writes_behind() const {
    return !store.disk_path.empty() && store.durability != kvstore::Durability::kNone;
  }
};

// Thread-safe.
class EmbeddedEngine final : public KvEngine {
 public:
  // One that is not open yet: until Start has returned OK only it, limits() and shard() may be
  // called. Requires: `options` are valid.
  static std::unique_ptr<EmbeddedEngine> Unopened(const EmbeddedOptions& options);
  // Opens the store and brings back what was durable. Once. The errors of BlockStore::Open.
  absl::Status Start();
  // One that has started. InvalidArgument when the options are not valid.
  static absl::StatusOr<std::unique_ptr<EmbeddedEngine>> Open(const EmbeddedOptions& options);
  // The same over a store that is open, with faults for tests. Requires: `options` are valid, and
  // options.store are those of the store.
  static std::unique_ptr<EmbeddedEngine> OpenOn(const EmbeddedOptions& options,
                                                std::unique_ptr<kvstore::BlockStore> store);
  ~EmbeddedEngine() override;

  absl::StatusOr<SequenceInfo> Create(const Caller& caller, const SequenceSpec& spec) override;
  absl::StatusOr<SequenceInfo> OpenOnPrefix(const Caller& caller, const PrefixQuery& query,
                                            absl::string_view lease) override;
  absl::StatusOr<PrefixFound> LookupPrefix(const Caller& caller, const PrefixQuery& query,
                                           absl::Duration lease) override;
  absl::StatusOr<SequenceInfo> Fork(const Caller& caller, absl::string_view handle,
                                    int64_t position, absl::string_view fingerprint) override;
  absl::StatusOr<SequenceInfo> Resume(const Caller& caller, absl::string_view handle,
                                      absl::string_view fingerprint) override;
  absl::StatusOr<SequenceInfo> Get(const Caller& caller, absl::string_view handle) override;
  absl::StatusOr<int64_t> Append(const Caller& caller, const AppendRequest& request) override;
  absl::StatusOr<SequenceInfo> Truncate(const Caller& caller, absl::string_view handle,
                                        uint64_t writer_epoch, int64_t length) override;
  absl::StatusOr<SequenceInfo> Flush(const Caller& caller, absl::string_view handle) override;
  absl::StatusOr<ParkReport> Park(const Caller& caller, absl::string_view handle) override;
  absl::Status Delete(const Caller& caller, absl::string_view handle) override;
  std::vector<StepResult> Attend(const Caller& caller, int layer,
                                 absl::Span<const StepRequest> requests,
                                 const StepOptions& options) override;
  absl::StatusOr<std::vector<TierReport>> ListTiers(const Listing& listing = {}) override;
  absl::StatusOr<std::vector<SequenceSummary>> ListSequences(absl::string_view tenant,
                                                             absl::string_view after, int limit,
                                                             const Listing& listing = {}) override;
  absl::StatusOr<SequenceDescription> Describe(
      absl::string_view handle, absl::Time deadline = absl::InfiniteFuture()) override;
  Limits limits() const override { return options_.limits; }

  // One step up to `form`, for a worker elsewhere that finishes it. part.status says how it went.
  StepPart RunStep(const Caller& caller, int layer, const StepRequest& request,
                   const StepOptions& options, PartForm form, const HeldRows& held);

  // Rows of one layer and KV head, [positions, row_bytes]. Positions ascending.
  // OutOfRange beyond the layer's length; DataLoss; DeadlineExceeded.
  absl::StatusOr<std::vector<std::byte>> ReadRows(const Caller& caller, absl::string_view handle,
                                                  int layer, int head,
                                                  absl::Span<const uint32_t> positions);

  // Deletes what has expired, then retained sequences for quotas and for room, and records tokens
  // of sequences that rest.
  void Sweep();
  // Records tokens of all sequences that their manifests do not know yet, until `deadline`, so that
  // they share blocks after a restart too. Not needed for correctness.
  void RecordTokens(absl::Time deadline);

  // Opaque values of connectors, beside the sequences.
  ValueCache& values() { return *values_; }

  // Null when no steps are recorded.
  StepRecorder* recorder() { return recorder_.get(); }

  // Calls body(0) … body(count - 1) on the threads of this engine.
  void ForEach(int count, const std::function<void(int)>& body) { pool_->ParallelFor(count, body); }

  // What the start could not bring back, a message each.
  std::vector<std::string> damaged() const {
    const kvstore::MutexLock lock(mu_);
    std::vector<std::string> messages = lost_values_;
    for (const auto& [handle, aside] : set_aside_) messages.emplace_back(aside.why.message());
    return messages;
  }
  size_t sequence_count() const {
    const kvstore::MutexLock lock(mu_);
    return sequences_.size();
  }
  uint16_t shard() const { return options_.store.shard; }

 private:
  // What one append brings besides its rows.
  struct Writing {
    uint64_t writer_epoch = 0;
    int64_t token_position = 0;
    absl::Span<const uint32_t> token_ids;
    // The step attends sparsely.
    bool sparse = false;
  };

  explicit EmbeddedEngine(const EmbeddedOptions& options);

  // A sequence that is not served since a start.
  struct SetAside {
    kvstore::Manifest manifest;
    // Empty when its record does not tell.
    std::string tenant;
    // Nobody can name it, and nothing but work is lost with it: the next sweep deletes it.
    bool retained = false;
    // [layers]. What the start found on disk; others may have gone on in segments it shares since.
    std::vector<int64_t> durable;
    // DataLoss for good; anything else may go away.
    absl::Status why;
  };

  void StartOn(std::unique_ptr<kvstore::BlockStore> store);
  ValueCacheOptions CacheOptions();
  // Sequences that cannot be brought back are set aside, values deleted; the others are served.
  void Recover();
  void RecoverValue(const kvstore::Manifest& manifest);
  // `durable` as in SetAside: filled in at a start, when it is empty.
  absl::Status RecoverOne(const kvstore::Manifest& manifest, std::vector<int64_t>& durable,
                          absl::Time deadline);
  // Makes a sequence, and its manifest, what a start finds of it: its first `length` tokens, or of
  // a retained one the hashed blocks among them.
  absl::Status CutToDurable(Sequence& sequence, int64_t length, absl::Time deadline);
  // Tries again, for somebody who asks for it.
  absl::Status RecoverLate(const std::string& handle, absl::Time deadline);
  // False when it is not aside any more.
  absl::StatusOr<bool> DeleteAside(const std::string& handle, absl::Time deadline);
  void DeleteRetainedAside();
  // The caller's sequence. NotFound for unknown and for another tenant's alike (I11).
  // One that a start had no room or no disk for is brought back now.
  absl::StatusOr<std::shared_ptr<Sequence>> Find(const Caller& caller, absl::string_view handle);
  absl::StatusOr<std::shared_ptr<Sequence>> FindServed(const Caller& caller,
                                                       absl::string_view handle) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // What keeps the caller's sequence aside; NotFound when it is not aside.
  absl::StatusOr<SetAside> FindAside(const Caller& caller, absl::string_view handle) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The first after a handle, of one tenant or of all; null at the end.
  std::shared_ptr<Sequence> NextSequence(absl::string_view tenant, absl::string_view after) const;
  // The same of those that are set aside.
  std::optional<SequenceSummary> NextAside(absl::string_view tenant, absl::string_view after) const;
  std::shared_ptr<Sequence> NewSequence(const SequenceLayout& layout, const SequenceRecord& record);
  // Makes a sequence that is complete known, on disk too. The caller holds its gate.
  absl::StatusOr<SequenceInfo> Publish(const std::shared_ptr<Sequence>& sequence,
                                       absl::Time deadline);
  // Makes it known, if need be in the place of retained ones. ResourceExhausted when there are too
  // many, or of its tenant; it is not known then.
  absl::Status AddSequence(const std::shared_ptr<Sequence>& sequence, absl::Time deadline);
  bool Insert(const std::shared_ptr<Sequence>& sequence);
  // Commits the sequence's manifest with its first `tokens_end` tokens. The caller holds the gate,
  // and the writer or the gate alone.
  absl::Status Commit(Sequence& sequence, int64_t tokens_end, absl::Time deadline);
  absl::StatusOr<kvstore::SegmentRef> NewSegment(SequenceLayout& layout, uint32_t first_block,
                                                 bool may_shrink_stripes);
  // Ranges of `sequence` up to `length`, ending in a new segment that holds the rows of the cut
  // block. The caller holds the gate.
  absl::StatusOr<std::vector<kvstore::SegmentRange>> Branch(Sequence& sequence, int64_t length,
                                                            absl::Time deadline);
  // A sequence of `record` that shares `parent` up to `position`. The caller holds the parent's
  // gate.
  absl::StatusOr<SequenceInfo> ForkLocked(Sequence& parent, int64_t position,
                                          const SequenceRecord& record, absl::Time deadline);
  absl::Status CopyTail(Sequence& sequence, kvstore::Segment& to, int64_t length,
                        absl::Time deadline);
  // Writes the rows in `to` that were copied from durable ones, so that the truncate to `length`
  // leaves them durable. The caller holds the gate.
  absl::Status KeepDurable(Sequence& sequence, kvstore::Segment& to, int64_t length,
                           absl::Time deadline);
  // Cuts within the open segment. FailedPrecondition, and the rows stand, when others may read what
  // is sealed of it.
  absl::Status CutInPlace(Sequence& sequence, int64_t length, absl::Time deadline);
  // Cuts by going on in a new segment.
  absl::Status CutAway(Sequence& sequence, int64_t length, absl::Time deadline);
  absl::Status TruncateLocked(Sequence& sequence, int64_t length, absl::Time deadline);
  absl::Status FlushLocked(Sequence& sequence, absl::Time deadline);
  // Whether all of it is on disk. The caller holds the gate, and the writer or the gate alone.
  bool IsWritten(const Sequence& sequence) const;
  absl::Status AppendLocked(Sequence& sequence, const Writing& writing, const AppendRows& rows,
                            absl::Time deadline);
  // After an append that found layer `layer` at `length_before`: takes the ids of rows that stand,
  // and makes blocks known that are complete now. The caller holds the writer.
  void TakeTokens(Sequence& sequence, int layer, int64_t length_before, const Writing& writing);
  // Rows at [position, position + rows) that are not complete in all layers come about under sparse
  // attention.
  static void MarkSparse(Sequence& sequence, int64_t position, int64_t rows);
  // The record of a new sequence. InvalidArgument when the spec is out of range.
  absl::StatusOr<SequenceRecord> NewRecord(const Caller& caller, const SequenceSpec& spec) const;
  absl::Status CheckQuery(const PrefixQuery& query) const;
  // The longest prefix at the moment.
  PrefixMatch FindPrefix(const SequenceRecord& record, const PrefixQuery& query) const;
  // Keeps the matching blocks for a time, under a name of its own. The caller holds the gate.
  absl::StatusOr<std::string> Lease(const PrefixMatch& match, const SequenceRecord& record,
                                    absl::Time until, absl::Time deadline);
  void EndLease(const Caller& caller, absl::string_view lease);

  // Rows of a sequence are about to be read or written. The caller holds the gate.
  void Unpark(Sequence& sequence);
  // They end what a handle names. The caller holds the gate alone.
  absl::Status DropLocked(Sequence& sequence, absl::Time deadline);
  absl::Status RetainLocked(Sequence& sequence, absl::Time deadline);
  // Retains one whose spec says so, if there is room on disk for that; drops all others.
  absl::Status CloseLocked(Sequence& sequence, absl::Time deadline);
  // Gives up all of a retained one but its hashed blocks. The caller holds the gate alone.
  absl::Status KeepHashed(Sequence& sequence, absl::Time deadline);
  // Drops a retained one, or closes one that has not been used for its time.
  void Expire(Sequence& sequence, absl::Time now);
  // Drops retained sequences and values, those used longest ago first, of the tenant that has most:
  // while that one is over its quota, the lowest tier is full, or sequences or values are too many,
  // and for whoever found no room. Those in use are passed over. Whether any was dropped.
  bool ShrinkRetained(const RoomWanted& wanted);
  // Calls `attempt`, and again for as long as it finds no room and something retained gives way.
  absl::Status WithRoom(const RoomWanted& wanted, const std::function<absl::Status()>& attempt);
  // Adds retained sequences.
  void AddRetained(RetainedSet& set) const;
  // Whether the lowest tier is too full for what is retained, and by how much.
  uint64_t ExcessBytes() const;
  // Takes from the set until `needed` says no; false when it took nothing.
  bool DropFrom(RetainedSet& set, const std::function<bool(uint64_t taken_bytes)>& needed);
  std::vector<std::shared_ptr<Sequence>> AllSequences() const;
  void RunSweeps();
  void SweepSoon();
  // Of queries of which the last sees `visible` rows.
  absl::Status CheckAnswer(const Sequence& sequence, const StepRequest& request, int64_t visible,
                           int64_t queries, const StepOptions& options, PartForm form) const;
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
  // What is known without its gate.
  static SequenceSummary SummarizeBusy(const Sequence& sequence);

  const EmbeddedOptions options_;
  LiveQuota live_;
  // Shared with parts of values that are being sent.
  std::shared_ptr<kvstore::BlockStore> store_;
  std::unique_ptr<WorkPool> pool_;
  // Null for none.
  std::unique_ptr<Prefetcher> prefetcher_;
  std::unique_ptr<StepRecorder> recorder_;
  PrefixIndex prefixes_;
  std::unique_ptr<ValueCache> values_;

  mutable kvstore::Mutex mu_;
  std::map<std::string, std::shared_ptr<Sequence>, std::less<>> sequences_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, SetAside, std::less<>> set_aside_ ABSL_GUARDED_BY(mu_);
  // What the start said of values that it could not bring back.
  std::vector<std::string> lost_values_ ABSL_GUARDED_BY(mu_);
  // Held by whoever gives up what is retained.
  SequenceGate shrinking_;
  // Held by whoever brings one of them back.
  SequenceGate recovery_;

  kvstore::Mutex sweep_mu_;
  kvstore::CondVar sweep_changed_;
  bool stopping_ ABSL_GUARDED_BY(sweep_mu_) = false;
  bool sweep_now_ ABSL_GUARDED_BY(sweep_mu_) = false;
  std::thread sweeper_;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_EMBEDDED_ENGINE_H_
