#include "kvstore/disk_tier.h"

#include <fcntl.h>
#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/options.h>
#include <rocksdb/slice.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kvstore/byte_codec.h"
#include "kvstore/mutex.h"

namespace terrace::kvstore {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
// Part of the budget that only deletions and compaction may use.
constexpr uint64_t kHeadroomDivisor = 16;
// Ids are reserved in runs, so that a new segment rarely waits for the disk.
constexpr uint64_t kSegmentIdRun = 1024;
constexpr int kShardShift = 48;
// Above that many, one range tombstone is cheaper than a tombstone for each record.
constexpr uint64_t kPointDeletesMax = 256;
// Bounds the passes of a reclaim when there is hardly any room to work in.
constexpr double kRewriteShareMin = 1.0 / 32;

rocksdb::Slice ToSlice(std::string_view view) { return {view.data(), view.size()}; }
std::string_view ToView(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

absl::Status FromRocks(absl::string_view what, const rocksdb::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", status.ToString());
  if (status.IsCorruption()) return absl::DataLossError(message);
  if (status.IsNotFound()) return absl::NotFoundError(message);
  return absl::UnavailableError(message);
}

bool SupportsDirectReads(const std::string& folder) {
  const std::string probe = folder + "/direct-read-probe";
  const int fd = open(probe.c_str(), O_CREAT | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
  if (fd >= 0) close(fd);
  unlink(probe.c_str());
  return fd >= 0;
}

int OpenFilesMax() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 256;
  return static_cast<int>(std::clamp<rlim_t>(limit.rlim_cur / 4, 64, 4096));
}

// Sizes follow the budget, so that what is buffered, and what one compaction rewrites, stays a
// small part of it.
rocksdb::Options MakeOptions(const DiskTierOptions& tier, bool direct_reads) {
  rocksdb::Options options;
  options.create_if_missing = true;
  options.write_buffer_size = std::clamp(tier.bytes / 64, kMiB, 16 * kMiB);
  options.max_write_buffer_number = 2;
  options.max_total_wal_size = 2 * options.write_buffer_size;
  options.max_background_jobs = 2;
  options.max_open_files = OpenFilesMax();
  options.compression = rocksdb::kNoCompression;
  options.bottommost_compression = rocksdb::kNoCompression;

  options.enable_blob_files = true;
  options.min_blob_size = 512;
  options.blob_file_size = std::clamp(tier.bytes / 64, kMiB, 256 * kMiB);
  // Only Reclaim collects garbage: it rewrites live blobs, and must know when.
  options.enable_blob_garbage_collection = false;
  // A table entry stands for some 8 KiB of blob: small tables keep a compaction's rewriting small.
  options.target_file_size_base = std::clamp(tier.bytes >> 12, kMiB / 64, kMiB);
  options.max_compaction_bytes = 4 * options.target_file_size_base;

  options.use_direct_reads = direct_reads;
  options.advise_random_on_open = true;
  // Preallocated bytes would count as used.
  options.allow_fallocate = false;
  options.max_manifest_file_size = 4 * kMiB;
  options.keep_log_file_num = 2;
  options.max_log_file_size = kMiB;
  options.info_log_level = rocksdb::WARN_LEVEL;
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;

  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(std::clamp(tier.bytes / 2048, 4 * kMiB, 32 * kMiB));
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

void PutRecord(rocksdb::WriteBatch& batch, std::string_view key, std::string_view payload) {
  const auto checksum = RecordChecksum(key, payload);
  const rocksdb::Slice key_slice = ToSlice(key);
  const std::array<rocksdb::Slice, 2> value = {ToSlice(payload),
                                               rocksdb::Slice(checksum.data(), checksum.size())};
  const rocksdb::Status status = batch.Put(rocksdb::SliceParts(&key_slice, 1),
                                           rocksdb::SliceParts(value.data(), value.size()));
  ABSL_RAW_CHECK(status.ok(), "a batch in memory takes every record");
}

std::string_view ToChars(absl::Span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

SegmentId NextId(SegmentId segment) { return SegmentId{static_cast<uint64_t>(segment) + 1}; }

}  // namespace

struct DiskBatch::Rep {
  rocksdb::WriteBatch batch;
  bool deletes = false;

  void DeleteRange(const RecordKey& begin, const RecordKey& end) {
    const rocksdb::Status status = batch.DeleteRange(ToSlice(begin.view()), ToSlice(end.view()));
    ABSL_RAW_CHECK(status.ok(), "a batch in memory takes every record");
    deletes = true;
  }
  void Delete(std::string_view key) {
    const rocksdb::Status status = batch.Delete(ToSlice(key));
    ABSL_RAW_CHECK(status.ok(), "a batch in memory takes every record");
    deletes = true;
  }
};

DiskBatch::DiskBatch() : rep_(std::make_unique<Rep>()) {}
DiskBatch::DiskBatch(DiskBatch&&) noexcept = default;
DiskBatch& DiskBatch::operator=(DiskBatch&&) noexcept = default;
DiskBatch::~DiskBatch() = default;

void DiskBatch::PutRows(const BlockKey& block, const BlockLayout& layout, const std::byte* rows) {
  for (uint32_t granule = 0; granule < layout.granules(); ++granule) {
    const RecordKey key = RecordKey::Granule(block, static_cast<uint8_t>(granule));
    PutRecord(rep_->batch, key.view(), ToChars({rows, layout.granule_bytes()}));
    rows += layout.granule_bytes();
  }
}

void DiskBatch::PutPiece(const BlockKey& block, absl::Span<const std::byte> piece) {
  PutRecord(rep_->batch, RecordKey(RecordKind::kPiece, block).view(), ToChars(piece));
}

void DiskBatch::PutTail(const BlockKey& block, absl::Span<const std::byte> rows) {
  PutRecord(rep_->batch, RecordKey(RecordKind::kTail, block).view(), ToChars(rows));
}

void DiskBatch::DeleteTail(const BlockKey& block) {
  rep_->Delete(RecordKey(RecordKind::kTail, block).view());
}

void DiskBatch::PutWatermark(SegmentId segment, absl::Span<const DurableExtent> layers) {
  PutRecord(rep_->batch, RecordKey(RecordKind::kWatermark, segment).view(),
            EncodeWatermark(layers));
}

void DiskBatch::DeleteSegment(SegmentId segment) {
  for (const RecordKind kind : {RecordKind::kRows, RecordKind::kPiece, RecordKind::kTail}) {
    rep_->DeleteRange(RecordKey(kind, segment), RecordKey(kind, NextId(segment)));
  }
  rep_->Delete(RecordKey(RecordKind::kWatermark, segment).view());
}

void DiskBatch::DeleteBlocks(const BlockKey& first, uint32_t end_block, uint32_t granules) {
  BlockKey block = first;
  if (uint64_t{end_block - first.block} * granules > kPointDeletesMax) {
    block.block = end_block;
    for (const RecordKind kind : {RecordKind::kRows, RecordKind::kPiece}) {
      rep_->DeleteRange(RecordKey(kind, first), RecordKey(kind, block));
    }
    return;
  }
  for (; block.block < end_block; ++block.block) {
    for (uint32_t granule = 0; granule < granules; ++granule) {
      rep_->Delete(RecordKey::Granule(block, static_cast<uint8_t>(granule)).view());
    }
    rep_->Delete(RecordKey(RecordKind::kPiece, block).view());
  }
}

void DiskBatch::PutManifest(std::string_view name, const ManifestRecord& record) {
  PutRecord(rep_->batch, ManifestKey(name), EncodeManifest(record));
}

void DiskBatch::DeleteManifest(std::string_view name) { rep_->Delete(ManifestKey(name)); }

bool DiskBatch::empty() const { return rep_->batch.Count() == 0; }
size_t DiskBatch::bytes() const { return rep_->batch.GetDataSize(); }

struct DiskTier::Rep {
  DiskTierOptions options;
  bool direct_reads = false;
  std::unique_ptr<rocksdb::DB> db;
  std::atomic<bool> reclaimable = false;

  Mutex mu;
  // Ids in [next_id, reserved_id) are ours to hand out.
  uint64_t next_id ABSL_GUARDED_BY(mu) = 0;
  uint64_t reserved_id ABSL_GUARDED_BY(mu) = 0;
  // Physical bytes when last counted, if so, and bytes written since.
  bool counted ABSL_GUARDED_BY(mu) = false;
  uint64_t counted_bytes ABSL_GUARDED_BY(mu) = 0;
  uint64_t uncounted_bytes ABSL_GUARDED_BY(mu) = 0;

  absl::Status Ask(DiskOperation operation) const {
    return options.fault ? options.fault(operation) : absl::OkStatus();
  }
};

DiskTier::DiskTier(std::unique_ptr<Rep> rep) : rep_(std::move(rep)) {}
DiskTier::~DiskTier() = default;

absl::StatusOr<std::unique_ptr<DiskTier>> DiskTier::Open(const DiskTierOptions& options) {
  std::error_code error;
  std::filesystem::create_directories(options.path, error);
  if (error) {
    return absl::UnavailableError(absl::StrCat(options.path, ": ", error.message()));
  }
  auto rep = std::make_unique<Rep>();
  rep->options = options;
  rep->direct_reads = options.direct_reads && SupportsDirectReads(options.path);
  rocksdb::DB* db = nullptr;
  const rocksdb::Status opened =
      rocksdb::DB::Open(MakeOptions(options, rep->direct_reads), options.path, &db);
  rep->db.reset(db);
  if (!opened.ok()) return FromRocks(absl::StrCat("opening ", options.path), opened);
  std::unique_ptr<DiskTier> tier(new DiskTier(std::move(rep)));
  if (absl::Status format = tier->CheckFormat(); !format.ok()) return format;
  return tier;
}

absl::Status DiskTier::CheckFormat() {
  const DiskTierOptions& options = rep_->options;
  const RecordKey key(RecordKind::kFormat);
  std::string value;
  const rocksdb::Status found = rep_->db->Get({}, ToSlice(key.view()), &value);
  if (found.IsNotFound()) {
    // Empty: just created, perhaps by a process that died before it wrote the record.
    const std::unique_ptr<rocksdb::Iterator> it(rep_->db->NewIterator({}));
    it->SeekToFirst();
    if (it->Valid()) {
      return absl::FailedPreconditionError(
          absl::StrCat(options.path, " is a database, but not of this store"));
    }
    rocksdb::WriteBatch batch;
    PutRecord(batch, key.view(), EncodeFormat({.shard = options.shard}));
    rocksdb::WriteOptions write;
    write.sync = true;
    return FromRocks("writing the format record", rep_->db->Write(write, &batch));
  }
  if (!found.ok()) return FromRocks("reading the format record", found);
  const auto payload = CheckedPayload(key.view(), value);
  if (!payload.ok()) return payload.status();
  const auto format = DecodeFormat(*payload);
  if (!format.ok()) return format.status();
  if (format->version != kDiskFormatVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        options.path, ": format version ", format->version, ", expected ", kDiskFormatVersion));
  }
  if (format->shard != options.shard) {
    return absl::FailedPreconditionError(
        absl::StrCat(options.path, " belongs to shard ", format->shard, ", not ", options.shard));
  }
  return LoadSegmentCounter();
}

absl::Status DiskTier::LoadSegmentCounter() {
  const RecordKey key(RecordKind::kSegmentCounter);
  std::string value;
  const rocksdb::Status found = rep_->db->Get({}, ToSlice(key.view()), &value);
  if (found.IsNotFound()) return absl::OkStatus();
  if (!found.ok()) return FromRocks("reading the segment counter", found);
  const auto payload = CheckedPayload(key.view(), value);
  if (!payload.ok()) return payload.status();
  MutexLock lock(rep_->mu);
  rep_->next_id = rep_->reserved_id = ByteReader(*payload).Get<uint64_t>();
  return absl::OkStatus();
}

absl::StatusOr<DiskIndex> DiskTier::LoadIndex() {
  DiskIndex index;
  const auto scan = [&](RecordKind kind, auto&& decode) {
    const std::string begin(1, static_cast<char>(kind));
    const std::string end(1, static_cast<char>(static_cast<char>(kind) + 1));
    const rocksdb::Slice bound = ToSlice(end);
    rocksdb::ReadOptions read;
    read.iterate_upper_bound = &bound;
    const std::unique_ptr<rocksdb::Iterator> it(rep_->db->NewIterator(read));
    for (it->Seek(ToSlice(begin)); it->Valid(); it->Next()) {
      const std::string_view key = ToView(it->key());
      absl::StatusOr<std::string_view> payload = CheckedPayload(key, ToView(it->value()));
      const absl::Status decoded =
          payload.ok() ? decode(key.substr(1), *payload) : payload.status();
      if (!decoded.ok()) index.damage.push_back(decoded);
    }
    return FromRocks("reading the index", it->status());
  };
  absl::Status status =
      scan(RecordKind::kManifest, [&](std::string_view name, std::string_view payload) {
        absl::StatusOr<ManifestRecord> record = DecodeManifest(payload);
        if (record.ok()) index.manifests.emplace_back(name, *std::move(record));
        return record.status();
      });
  if (!status.ok()) return status;
  status = scan(RecordKind::kWatermark, [&](std::string_view key, std::string_view payload) {
    absl::StatusOr<std::vector<DurableExtent>> layers = DecodeWatermark(payload);
    std::array<char, kEncodedBlockKeyBytes> block_key{};
    if (key.size() != sizeof(SegmentId)) return absl::DataLossError("watermark key");
    std::copy(key.begin(), key.end(), block_key.begin());
    if (layers.ok()) index.watermarks.emplace_back(DecodeBlockKey(block_key).segment, *layers);
    return layers.status();
  });
  if (!status.ok()) return status;
  return index;
}

absl::StatusOr<SegmentId> DiskTier::NextSegmentId() {
  MutexLock lock(rep_->mu);
  if (rep_->next_id == rep_->reserved_id) {
    if (absl::Status status = rep_->Ask(DiskOperation::kWrite); !status.ok()) return status;
    ByteWriter writer;
    writer.Put(rep_->reserved_id + kSegmentIdRun);
    rocksdb::WriteBatch batch;
    PutRecord(batch, RecordKey(RecordKind::kSegmentCounter).view(), std::move(writer).Take());
    rocksdb::WriteOptions write;
    write.sync = true;
    const rocksdb::Status status = rep_->db->Write(write, &batch);
    if (!status.ok()) return FromRocks("reserving segment ids", status);
    rep_->reserved_id += kSegmentIdRun;
  }
  return SegmentId{uint64_t{rep_->options.shard} << kShardShift | ++rep_->next_id};
}

uint64_t DiskTier::budget_for_blocks() const {
  return rep_->options.bytes - rep_->options.bytes / kHeadroomDivisor;
}

absl::Status DiskTier::Fit(size_t batch_bytes) {
  uint64_t buffered = 0;
  rep_->db->GetIntProperty(rocksdb::DB::Properties::kCurSizeAllMemTables, &buffered);
  // The batch goes to the log and to a blob file; so will what is buffered now.
  const uint64_t growth = buffered + 2 * uint64_t{batch_bytes};
  const uint64_t limit = budget_for_blocks();
  MutexLock lock(rep_->mu);
  const bool stale = rep_->uncounted_bytes > std::max(kMiB, rep_->options.bytes / 1024);
  if (!rep_->counted || stale || rep_->counted_bytes + 2 * rep_->uncounted_bytes + growth > limit) {
    rep_->counted = true;
    rep_->counted_bytes = used_bytes();
    rep_->uncounted_bytes = 0;
  }
  if (rep_->counted_bytes + 2 * rep_->uncounted_bytes + growth > limit) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "disk budget: ", rep_->counted_bytes, " bytes used, ", growth, " more needed, but ", limit,
        " of the ", rep_->options.bytes, " are for blocks"));
  }
  rep_->uncounted_bytes += batch_bytes;
  return absl::OkStatus();
}

absl::Status DiskTier::Write(const DiskBatch& batch, bool sync, Growth growth) {
  if (absl::Status status = rep_->Ask(DiskOperation::kWrite); !status.ok()) return status;
  if (growth == Growth::kBounded) {
    if (absl::Status status = Fit(batch.bytes()); !status.ok()) return status;
  }
  rocksdb::WriteOptions write;
  write.sync = sync;
  const rocksdb::Status status = rep_->db->Write(write, &batch.rep_->batch);
  if (!status.ok()) {
    // A failed write stops the database until it is told to go on. If that fails, the next
    // write does too, and tries again.
    rep_->db->Resume().PermitUncheckedError();
    return absl::UnavailableError(absl::StrCat("writing: ", status.ToString()));
  }
  if (batch.rep_->deletes) rep_->reclaimable = true;
  return absl::OkStatus();
}

absl::Status DiskTier::Sync() {
  if (absl::Status status = rep_->Ask(DiskOperation::kWrite); !status.ok()) return status;
  return FromRocks("syncing", rep_->db->FlushWAL(/*sync=*/true));
}

namespace {

void Fail(CellRead& read, const rocksdb::Status& status, absl::Time deadline) {
  read.error = status.ToString();
  if (status.IsNotFound() || status.IsCorruption()) {
    // A block that the watermark promises and that is not there is as lost as a corrupt one.
    read.outcome = CellRead::Outcome::kCorrupt;
  } else if (status.IsTimedOut() || absl::Now() >= deadline) {
    read.outcome = CellRead::Outcome::kLate;
  } else {
    read.outcome = CellRead::Outcome::kFailed;
  }
}

}  // namespace

void DiskTier::Read(absl::Span<CellRead> reads, absl::Time deadline) {
  if (const absl::Status status = rep_->Ask(DiskOperation::kRead); !status.ok()) {
    for (CellRead& read : reads) Fail(read, rocksdb::Status::IOError(status.ToString()), deadline);
    return;
  }
  std::vector<RecordKey> keys;
  std::vector<rocksdb::Slice> slices;
  keys.reserve(reads.size());
  for (const CellRead& read : reads) {
    keys.push_back(read.key());
    slices.push_back(ToSlice(keys.back().view()));
  }
  std::vector<rocksdb::PinnableSlice> values(reads.size());
  std::vector<rocksdb::Status> statuses(reads.size());
  rocksdb::ReadOptions options;
  if (deadline != absl::InfiniteFuture()) {
    options.deadline =
        std::chrono::microseconds(std::max<int64_t>(1, absl::ToUnixMicros(deadline)));
  }
  rep_->db->MultiGet(options, rep_->db->DefaultColumnFamily(), slices.size(), slices.data(),
                     values.data(), statuses.data());
  for (size_t i = 0; i < reads.size(); ++i) {
    if (statuses[i].ok()) {
      reads[i].Place(ToView(values[i]));
    } else {
      Fail(reads[i], statuses[i], deadline);
    }
  }
}

absl::StatusOr<std::string> DiskTier::ReadTail(const BlockKey& block) {
  if (absl::Status status = rep_->Ask(DiskOperation::kRead); !status.ok()) return status;
  const RecordKey key(RecordKind::kTail, block);
  std::string value;
  const rocksdb::Status status = rep_->db->Get({}, ToSlice(key.view()), &value);
  if (!status.ok()) return FromRocks("reading a tail", status);
  const absl::StatusOr<std::string_view> payload = CheckedPayload(key.view(), value);
  if (!payload.ok()) return payload.status();
  value.resize(payload->size());
  return value;
}

bool DiskTier::reclaimable() const { return rep_->reclaimable; }

absl::Status DiskTier::Reclaim() {
  rep_->reclaimable = false;
  const uint64_t budget = rep_->options.bytes;
  const uint64_t goal = budget_for_blocks() - budget / 8;
  rocksdb::CompactRangeOptions compact;
  compact.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForceOptimized;
  // First without rewriting any block: files that hold nothing but garbage go.
  compact.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kDisable;
  rocksdb::Status status = rep_->db->Flush({});
  if (status.ok()) status = rep_->db->CompactRange(compact, nullptr, nullptr);
  // Then from the oldest file on, at a time as much as certainly fits beside what is there (I5).
  compact.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kForce;
  double rewritten = 0;
  while (status.ok() && rewritten < 1 && used_bytes() > goal) {
    uint64_t blob_bytes = 0;
    rep_->db->GetIntProperty(rocksdb::DB::Properties::kTotalBlobFileSize, &blob_bytes);
    const uint64_t room = budget - std::min(budget, used_bytes());
    const double share = std::clamp(static_cast<double>(room) / static_cast<double>(blob_bytes + 1),
                                    kRewriteShareMin, 1.0);
    compact.blob_garbage_collection_age_cutoff = share;
    status = rep_->db->CompactRange(compact, nullptr, nullptr);
    rewritten += share;
  }
  // What is left of the garbage waits for the next shortage.
  if (!status.ok() || rewritten < 1) rep_->reclaimable = true;
  MutexLock lock(rep_->mu);
  rep_->counted = false;
  return FromRocks("reclaiming", status);
}

uint64_t DiskTier::used_bytes() const {
  uint64_t sum = 0;
  std::error_code error;
  for (std::filesystem::directory_iterator it(rep_->options.path, error), end; !error && it != end;
       it.increment(error)) {
    // A file may vanish in between.
    std::error_code ignored;
    const uint64_t size = it->file_size(ignored);
    if (!ignored) sum += (size + 4095) / 4096 * 4096;
  }
  return sum;
}

bool DiskTier::direct_reads() const { return rep_->direct_reads; }

}  // namespace terrace::kvstore
