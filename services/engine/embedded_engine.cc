#include "services/engine/embedded_engine.h"

#include <algorithm>
#include <bit>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/engine/error.h"
#include "services/engine/handle.h"

namespace terrace::engine {
namespace {

constexpr size_t kNameBytesMax = 256;

absl::Status CheckPowerOfTwo(const char* field, int got, int low, int high) {
  if (got >= low && got <= high && std::has_single_bit(static_cast<unsigned>(got))) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": got ", got, ", expected a power of two from ", low, " to ", high));
}

absl::Status CheckName(const char* field, absl::string_view name) {
  if (name.size() <= kNameBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": got ", name.size(), " bytes, expected at most ", kNameBytesMax));
}

}  // namespace

absl::Status EmbeddedOptions::Validate() const {
  absl::Status status = store.Validate();
  if (status.ok()) status = CheckPowerOfTwo("block-tokens", block_tokens, 16, 1024);
  if (status.ok()) {
    status = CheckPowerOfTwo("index-tokens", index_tokens, block_tokens, 64 * block_tokens);
  }
  if (status.ok() && (compute_threads < 0 || compute_threads > 1024)) {
    status = absl::InvalidArgumentError(
        absl::StrCat("compute-threads: got ", compute_threads, ", expected 0 to 1024"));
  }
  if (status.ok() && limits.max_tenant_sequences < 1) {
    status = absl::InvalidArgumentError(absl::StrCat(
        "tenant-sequences: got ", limits.max_tenant_sequences, ", expected at least 1"));
  }
  if (status.ok() && sweep_interval < absl::ZeroDuration()) {
    status = absl::InvalidArgumentError("sweep-interval: got a negative one, expected 0 or more");
  }
  if (status.ok() && !record_steps.empty() && record_bytes < kMinStepTraceBytes) {
    status = absl::InvalidArgumentError(absl::StrCat("record-bytes: got ", record_bytes,
                                                     ", expected at least ", kMinStepTraceBytes));
  }
  return status;
}

EmbeddedEngine::EmbeddedEngine(const EmbeddedOptions& options)
    : options_(options), live_(options.limits.max_tenant_sequences) {
  const int cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  pool_ = std::make_unique<WorkPool>(options.compute_threads > 0 ? options.compute_threads : cores);
}

std::unique_ptr<EmbeddedEngine> EmbeddedEngine::Unopened(const EmbeddedOptions& options) {
  return std::unique_ptr<EmbeddedEngine>(new EmbeddedEngine(options));
}

absl::Status EmbeddedEngine::Start() {
  absl::StatusOr<std::unique_ptr<kvstore::BlockStore>> store =
      kvstore::BlockStore::Open(options_.store);
  if (!store.ok()) return store.status();
  StartOn(*std::move(store));
  if (options_.record_steps.empty()) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<StepRecorder>> recorder =
      StepRecorder::Create({.path = options_.record_steps,
                            .bytes_max = options_.record_bytes,
                            .block_tokens = static_cast<uint32_t>(options_.block_tokens)});
  if (!recorder.ok()) return recorder.status();
  recorder_ = *std::move(recorder);
  return absl::OkStatus();
}

void EmbeddedEngine::StartOn(std::unique_ptr<kvstore::BlockStore> store) {
  store_ = std::move(store);
  values_ = std::make_unique<ValueCache>(store_, CacheOptions());
  Recover();
  if (options_.prefetch && !options_.store.disk_path.empty()) {
    prefetcher_ = std::make_unique<Prefetcher>(*store_);
  }
  if (options_.sweep_interval > absl::ZeroDuration()) {
    sweeper_ = std::thread([this] { RunSweeps(); });
  }
}

absl::StatusOr<std::unique_ptr<EmbeddedEngine>> EmbeddedEngine::Open(
    const EmbeddedOptions& options) {
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  std::unique_ptr<EmbeddedEngine> engine = Unopened(options);
  if (absl::Status status = engine->Start(); !status.ok()) return status;
  return engine;
}

ValueCacheOptions EmbeddedEngine::CacheOptions() {
  const kvstore::StoreOptions& store = options_.store;
  const uint64_t lowest_bytes = options_.writes_behind() ? store.disk_bytes : store.host_bytes;
  return {.records = options_.writes_behind(),
          .tenant_bytes_max = options_.retained_bytes_max,
          .value_bytes_max = std::min(options_.limits.max_value_bytes, lowest_bytes / 4),
          .values_max = options_.limits.max_values,
          .check_bytes = lowest_bytes / 64,
          .clock = options_.clock,
          .make_room = [this](const RoomWanted& wanted) { return ShrinkRetained(wanted); }};
}

std::unique_ptr<EmbeddedEngine> EmbeddedEngine::OpenOn(const EmbeddedOptions& options,
                                                       std::unique_ptr<kvstore::BlockStore> store) {
  std::unique_ptr<EmbeddedEngine> engine = Unopened(options);
  engine->StartOn(std::move(store));
  return engine;
}

EmbeddedEngine::~EmbeddedEngine() {
  {
    const kvstore::MutexLock lock(sweep_mu_);
    stopping_ = true;
    sweep_changed_.NotifyAll();
  }
  if (sweeper_.joinable()) sweeper_.join();
}

absl::StatusOr<std::shared_ptr<Sequence>> EmbeddedEngine::FindServed(
    const Caller& caller, absl::string_view handle) const {
  const auto found = sequences_.find(handle);
  if (found == sequences_.end() || found->second->tenant != caller.tenant ||
      found->second->retained()) {
    return SequenceNotFound(handle);
  }
  return found->second;
}

absl::StatusOr<std::shared_ptr<Sequence>> EmbeddedEngine::Find(const Caller& caller,
                                                               absl::string_view handle) {
  {
    const kvstore::MutexLock lock(mu_);
    const absl::StatusOr<SetAside> aside = FindAside(caller, handle);
    if (!aside.ok()) return FindServed(caller, handle);
    if (absl::IsDataLoss(aside->why)) return aside->why;
  }
  if (absl::Status status = RecoverLate(std::string(handle), caller.wait_end()); !status.ok()) {
    return status;
  }
  const kvstore::MutexLock lock(mu_);
  return FindServed(caller, handle);
}

std::shared_ptr<Sequence> EmbeddedEngine::NewSequence(const SequenceLayout& layout,
                                                      const SequenceRecord& record) {
  auto sequence = std::make_shared<Sequence>(NewHandle(options_.store.shard), layout, record,
                                             options_.prefix_digest);
  sequence->Touch(record.created);
  return sequence;
}

bool EmbeddedEngine::Insert(const std::shared_ptr<Sequence>& sequence) {
  const kvstore::MutexLock lock(mu_);
  if (static_cast<int64_t>(sequences_.size()) >= options_.limits.max_sequences) return false;
  sequences_.emplace(sequence->handle, sequence);
  return true;
}

absl::Status EmbeddedEngine::AddSequence(const std::shared_ptr<Sequence>& sequence,
                                         absl::Time deadline) {
  if (!sequence->retained()) {
    absl::StatusOr<LiveQuota::Claim> live = live_.Take(sequence->tenant);
    if (!live.ok()) {
      // What is idle may end.
      SweepSoon();
      return live.status();
    }
    sequence->live = *std::move(live);
  }
  if (Insert(sequence)) return absl::OkStatus();
  ShrinkRetained({.tenant = sequence->tenant, .deadline = deadline});
  if (Insert(sequence)) return absl::OkStatus();
  SweepSoon();
  return LimitExceeded(
      absl::StrCat("sequences: got one more than the limit of ", options_.limits.max_sequences));
}

// Long stripes scan faster, but a stripe must fit an extent of the host tier: halves the stripe
// until it does.
absl::StatusOr<kvstore::SegmentRef> EmbeddedEngine::NewSegment(SequenceLayout& layout,
                                                               uint32_t first_block,
                                                               bool may_shrink_stripes) {
  while (true) {
    absl::StatusOr<kvstore::SegmentRef> segment = store_->CreateSegment(layout.block, first_block);
    if (!absl::IsInvalidArgument(segment.status()) || !may_shrink_stripes ||
        layout.block.stripe_blocks == 1) {
      return segment;
    }
    layout.block.stripe_blocks /= 2;
    layout.index.stripe_tokens /= 2;
  }
}

absl::Status EmbeddedEngine::Commit(Sequence& sequence, int64_t tokens_end, absl::Time deadline) {
  const bool has_disk = !options_.store.disk_path.empty();
  const SequenceRecord record =
      sequence.Record(tokens_end, has_disk ? sequence.DurableLength(*store_) : tokens_end);
  absl::Status status = store_->CommitManifest(
      {.name = sequence.handle, .attributes = EncodeRecord(record), .ranges = sequence.ranges},
      deadline);
  if (status.ok()) {
    sequence.recorded_tokens = record.tokens.end();
    sequence.recorded_sparse_from = record.tokens.sparse_from;
  }
  return status;
}

absl::StatusOr<SequenceInfo> EmbeddedEngine::Publish(const std::shared_ptr<Sequence>& sequence,
                                                     absl::Time deadline) {
  if (absl::Status status = AddSequence(sequence, deadline); !status.ok()) return status;
  if (absl::Status status = Commit(*sequence, sequence->length(), deadline); !status.ok()) {
    const kvstore::MutexLock lock(mu_);
    sequences_.erase(sequence->handle);
    return status;
  }
  std::vector<BlockHash> hashes;
  {
    const kvstore::MutexLock lock(sequence->tokens_mu);
    hashes = sequence->tokens.blocks().Copy(0, sequence->tokens.blocks().size());
  }
  prefixes_.Add(*sequence, hashes);
  return sequence->Info(*store_);
}

absl::StatusOr<SequenceRecord> EmbeddedEngine::NewRecord(const Caller& caller,
                                                         const SequenceSpec& spec) const {
  absl::Status status = spec.geometry.Validate();
  if (status.ok()) status = CheckName("model_fingerprint", spec.model_fingerprint);
  if (status.ok()) status = CheckName("adapter_id", spec.adapter_id);
  if (status.ok()) status = CheckName("sharing_salt", spec.sharing_salt);
  if (status.ok() && std::min(spec.idle_ttl, spec.retention) < absl::ZeroDuration()) {
    status = absl::InvalidArgumentError("idle_ttl, retention: got a negative one");
  }
  if (!status.ok()) return status;
  SequenceRecord record = {
      .tenant = caller.tenant, .spec = spec, .writer_epoch = 1, .created = options_.clock()};
  record.spec.geometry.Normalize();
  return record;
}

absl::StatusOr<SequenceInfo> EmbeddedEngine::Create(const Caller& caller,
                                                    const SequenceSpec& spec) {
  const absl::StatusOr<SequenceRecord> record = NewRecord(caller, spec);
  if (!record.ok()) return record.status();
  SequenceLayout layout =
      SequenceLayout::Make(record->spec, options_.block_tokens, options_.index_tokens);
  absl::StatusOr<kvstore::SegmentRef> segment = NewSegment(layout, 0, true);
  if (!segment.ok()) return segment.status();
  const std::shared_ptr<Sequence> sequence = NewSequence(layout, *record);
  const SharedHold gate(sequence->gate, absl::InfiniteFuture());
  sequence->ranges.push_back({*segment, 0, kvstore::kOpenEnd});
  return Publish(sequence, caller.wait_end());
}

absl::StatusOr<SequenceInfo> EmbeddedEngine::Resume(const Caller& caller, absl::string_view handle,
                                                    absl::string_view fingerprint) {
  absl::StatusOr<std::shared_ptr<Sequence>> found = Find(caller, handle);
  if (!found.ok()) return found.status();
  Sequence& sequence = **found;
  const SoleHold gate(sequence.gate, caller.wait_end());
  if (!gate.held()) return NotBegun("resume");
  if (sequence.closed) return SequenceNotFound(handle);
  if (absl::Status status = sequence.CheckFingerprint(fingerprint); !status.ok()) {
    return status;
  }
  ++sequence.epoch;
  if (absl::Status status = Commit(sequence, sequence.length(), caller.wait_end()); !status.ok()) {
    --sequence.epoch;
    return status;
  }
  sequence.Touch(options_.clock());
  return sequence.Info(*store_);
}

absl::StatusOr<SequenceInfo> EmbeddedEngine::Get(const Caller& caller, absl::string_view handle) {
  absl::StatusOr<std::shared_ptr<Sequence>> found = Find(caller, handle);
  if (!found.ok()) return found.status();
  const SharedHold gate((*found)->gate, caller.wait_end());
  if (!gate.held()) return NotBegun("get");
  if ((*found)->closed) return SequenceNotFound(handle);
  return (*found)->Info(*store_);
}

absl::Status EmbeddedEngine::Delete(const Caller& caller, absl::string_view handle) {
  bool aside = false;
  {
    const kvstore::MutexLock lock(mu_);
    aside = FindAside(caller, handle).ok();
  }
  if (aside) {
    const absl::StatusOr<bool> deleted = DeleteAside(std::string(handle), caller.wait_end());
    if (!deleted.ok() || *deleted) return deleted.status();
  }
  absl::StatusOr<std::shared_ptr<Sequence>> found = Find(caller, handle);
  if (!found.ok()) return found.status();
  Sequence& sequence = **found;
  const SoleHold gate(sequence.gate, caller.wait_end());
  if (!gate.held()) return NotBegun("delete");
  if (sequence.closed) return SequenceNotFound(handle);
  return CloseLocked(sequence, caller.wait_end());
}

}  // namespace terrace::engine
