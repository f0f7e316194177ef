#include "services/engine/embedded_engine.h"

#include <algorithm>
#include <bit>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/engine/cell_mask.h"
#include "services/engine/error.h"
#include "services/engine/handle.h"

namespace terrace::engine {
namespace {

constexpr size_t kNameBytesMax = 256;
// Rows that a branch pins at a time: less than the store grants to reads that find no room.
constexpr size_t kTailPinBytes = size_t{16} << 20;

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
  const absl::Status status = store_->CommitManifest(
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

absl::Status EmbeddedEngine::CopyTail(Sequence& sequence, kvstore::Segment& to, int64_t length,
                                      absl::Time deadline) {
  const kvstore::BlockLayout& layout = sequence.layout.block;
  const auto block = static_cast<uint32_t>(length / layout.block_tokens);
  const auto rows = static_cast<uint32_t>(length % layout.block_tokens);
  if (rows == 0) return absl::OkStatus();
  // As many layers together as bounds what is pinned: lane by lane, a disk would be waited for as
  // often as there are lanes.
  const size_t layer_bytes = layout.heads * layout.rows_bytes();
  const auto step =
      static_cast<uint16_t>(std::clamp<size_t>(kTailPinBytes / layer_bytes, 1, layout.layers));
  for (uint16_t first = 0; first < layout.layers; first += step) {
    const auto end = static_cast<uint16_t>(std::min(first + step, int{layout.layers}));
    std::vector<kvstore::ReadRequest> requests;
    for (uint16_t layer = first; layer < end; ++layer) {
      absl::Status status =
          WithRoom({.tenant = sequence.tenant, .memory_bytes = layer_bytes, .deadline = deadline},
                   [&] { return store_->ReserveRows(to, layer, block, block + 1, deadline); });
      if (absl::IsResourceExhausted(status)) return NoRoom(status.message());
      if (!status.ok()) return status;
      for (uint16_t head = 0; head < layout.heads; ++head) {
        requests.push_back({.segment = sequence.RangeOf(block).segment.get(),
                            .layer = layer,
                            .head = head,
                            .index = block,
                            .cells = GranulesOf(layout, rows)});
      }
    }
    const kvstore::Pins pins = store_->PinRows(requests, deadline);
    for (size_t i = 0; i < requests.size(); ++i) {
      const kvstore::PinnedExtent& extent = pins.extents()[i];
      if (extent.missing != 0) return extent.status;
      std::copy_n(extent.data, size_t{rows} * layout.row_bytes,
                  store_->OpenRows(to, requests[i].layer, requests[i].head, block));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<kvstore::SegmentRange>> EmbeddedEngine::Branch(Sequence& sequence,
                                                                          int64_t length,
                                                                          absl::Time deadline) {
  const auto block = static_cast<uint32_t>(length / sequence.block_tokens());
  for (int layer = 0; layer < sequence.spec.geometry.layers; ++layer) {
    absl::Status status = RestoreTail(sequence, layer, length, deadline);
    if (!status.ok()) return status;
  }
  absl::StatusOr<kvstore::SegmentRef> segment = NewSegment(sequence.layout, block, false);
  if (!segment.ok()) return segment.status();
  if (absl::Status status = CopyTail(sequence, **segment, length, deadline); !status.ok()) {
    return status;
  }
  std::vector<kvstore::SegmentRange> ranges = sequence.CutRanges(block);
  ranges.push_back({*segment, block, kvstore::kOpenEnd});
  return ranges;
}

absl::StatusOr<SequenceInfo> EmbeddedEngine::Fork(const Caller& caller, absl::string_view handle,
                                                  int64_t position, absl::string_view fingerprint) {
  absl::StatusOr<std::shared_ptr<Sequence>> found = Find(caller, handle);
  if (!found.ok()) return found.status();
  Sequence& parent = **found;
  const SharedHold gate(parent.gate, caller.wait_end());
  if (!gate.held()) return NotBegun("fork");
  if (parent.closed) return SequenceNotFound(handle);
  if (absl::Status status = parent.CheckFingerprint(fingerprint); !status.ok()) {
    return status;
  }
  if (position < 0 || position > parent.length()) {
    return absl::OutOfRangeError(absl::StrCat("fork position: got ", position,
                                              ", expected at most the length ", parent.length()));
  }
  const SequenceRecord record = {
      .tenant = parent.tenant, .spec = parent.spec, .writer_epoch = 1, .created = options_.clock()};
  return ForkLocked(parent, position, record, caller.wait_end());
}

absl::StatusOr<SequenceInfo> EmbeddedEngine::ForkLocked(Sequence& parent, int64_t position,
                                                        const SequenceRecord& record,
                                                        absl::Time deadline) {
  absl::StatusOr<std::vector<kvstore::SegmentRange>> ranges = Branch(parent, position, deadline);
  if (!ranges.ok()) return ranges.status();
  const std::shared_ptr<Sequence> child = NewSequence(parent.layout, record);
  const SharedHold gate(child->gate, absl::InfiniteFuture());
  child->ranges = *std::move(ranges);
  for (std::atomic<int64_t>& length : child->layer_length) length = position;
  child->InheritTokens(parent, position);
  return Publish(child, deadline);
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

absl::StatusOr<SequenceInfo> EmbeddedEngine::Truncate(const Caller& caller,
                                                      absl::string_view handle,
                                                      uint64_t writer_epoch, int64_t length) {
  absl::StatusOr<std::shared_ptr<Sequence>> found = Find(caller, handle);
  if (!found.ok()) return found.status();
  Sequence& sequence = **found;
  const SoleHold gate(sequence.gate, caller.wait_end());
  if (!gate.held()) return NotBegun("truncate");
  if (sequence.closed) return SequenceNotFound(handle);
  if (writer_epoch != sequence.epoch) return EpochStale(writer_epoch, sequence.epoch);
  if (length < 0 || length > sequence.length()) {
    return absl::OutOfRangeError(absl::StrCat("truncate length: got ", length,
                                              ", expected at most the length ", sequence.length()));
  }
  if (absl::Status status = TruncateLocked(sequence, length, caller.wait_end()); !status.ok()) {
    return status;
  }
  sequence.Touch(options_.clock());
  return sequence.Info(*store_);
}

absl::Status EmbeddedEngine::KeepDurable(Sequence& sequence, kvstore::Segment& to, int64_t length,
                                         absl::Time deadline) {
  const int64_t copied = length / sequence.block_tokens() * sequence.block_tokens();
  std::vector<uint32_t> tail_rows;
  bool any = false;
  for (int layer = 0; layer < sequence.spec.geometry.layers; ++layer) {
    const int64_t durable = std::min(length, sequence.DurableLayerLength(*store_, layer));
    tail_rows.push_back(static_cast<uint32_t>(std::max<int64_t>(0, durable - copied)));
    any = any || tail_rows.back() != 0;
  }
  return any ? store_->WriteTail(to, tail_rows, deadline) : absl::OkStatus();
}

absl::Status EmbeddedEngine::CutInPlace(Sequence& sequence, int64_t length, absl::Time deadline) {
  const auto block = static_cast<uint32_t>(length / sequence.block_tokens());
  const auto rows = static_cast<uint32_t>(length % sequence.block_tokens());
  const auto is_cut = [&](const std::atomic<int64_t>& held) {
    return held / sequence.block_tokens() > block;
  };
  // Other tokens may follow, and a crash must not take these for theirs.
  if (length < sequence.recorded_tokens) {
    if (absl::Status status = Commit(sequence, length, deadline); !status.ok()) return status;
  }
  kvstore::Segment& segment = sequence.open_segment();
  if (std::none_of(sequence.layer_length.begin(), sequence.layer_length.end(), is_cut)) {
    return store_->CutTail(segment, block, rows, deadline);
  }
  const absl::StatusOr<std::vector<bool>> on_disk = store_->Unseal(segment, block, rows, deadline);
  if (!on_disk.ok()) return on_disk.status();
  for (size_t layer = 0; layer < on_disk->size(); ++layer) {
    if (is_cut(sequence.layer_length[layer])) sequence.tail_on_disk[layer] = (*on_disk)[layer];
  }
  return absl::OkStatus();
}

absl::Status EmbeddedEngine::CutAway(Sequence& sequence, int64_t length, absl::Time deadline) {
  absl::StatusOr<std::vector<kvstore::SegmentRange>> ranges = Branch(sequence, length, deadline);
  if (!ranges.ok()) return ranges.status();
  absl::Status status = KeepDurable(sequence, *ranges->back().segment, length, deadline);
  if (!status.ok()) return status;
  std::swap(sequence.ranges, *ranges);
  status = Commit(sequence, length, deadline);
  if (!status.ok()) {
    std::swap(sequence.ranges, *ranges);
    return status;
  }
  for (std::atomic<bool>& on_disk : sequence.tail_on_disk) on_disk = false;
  return absl::OkStatus();
}

absl::Status EmbeddedEngine::TruncateLocked(Sequence& sequence, int64_t length,
                                            absl::Time deadline) {
  const auto end_block = static_cast<uint32_t>(length / sequence.block_tokens());
  int64_t longest = 0;
  for (const std::atomic<int64_t>& held : sequence.layer_length) {
    longest = std::max(longest, held.load());
  }
  // After a restart the open segment may begin beyond what was found of an earlier one.
  const bool is_before = sequence.ranges.back().first_block > end_block;
  if (longest == length && !is_before && length >= sequence.recorded_tokens) {
    return absl::OkStatus();
  }
  Unpark(sequence);
  absl::Status status = is_before ? absl::FailedPreconditionError("sealed in another segment")
                                  : CutInPlace(sequence, length, deadline);
  // Sealed blocks that others may read are immutable (I2): writing goes on in a new segment, which
  // is this sequence's alone.
  if (absl::IsFailedPrecondition(status)) status = CutAway(sequence, length, deadline);
  if (!status.ok()) return status;
  prefixes_.Remove(sequence, sequence.CutTokens(length));
  for (std::atomic<int64_t>& held : sequence.layer_length) held = length;
  ++sequence.generation;
  const kvstore::MutexLock sums(sequence.sums_mu);
  for (PrefixSum& prefix : sequence.prefix_sums) {
    if (prefix.blocks > end_block) prefix = PrefixSum();
  }
  return absl::OkStatus();
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
  return sequence.spec.retention > absl::ZeroDuration() ? RetainLocked(sequence, caller.wait_end())
                                                        : DropLocked(sequence, caller.wait_end());
}

}  // namespace terrace::engine
