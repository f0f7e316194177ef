#include "kvstore/disk_tier.h"

#include <rocksdb/db.h>
#include <rocksdb/options.h>
#include <rocksdb/slice.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "kvstore/byte_codec.h"
#include "kvstore/disk_batch_rep.h"
#include "kvstore/disk_database.h"
#include "kvstore/mutex.h"

namespace terrace::kvstore {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
// Part of the budget that only deletions and compaction may use.
constexpr uint64_t kHeadroomDivisor = 16;
// Part of that which only Reclaim may use, and deletions.
constexpr uint64_t kReclaimDivisor = 32;
// What is corrupt is written anew in batches of that.
constexpr size_t kRewriteBatchBytes = size_t{4} << 20;
// Ids are reserved in runs, so that a new segment rarely waits for the disk.
constexpr uint64_t kSegmentIdRun = 1024;
constexpr int kShardShift = 48;
// Bounds the passes of a reclaim when there is hardly any room to work in. What it rewrites fits in
// what is kept for it.
constexpr double kRewriteShareMin = 1.0 / kReclaimDivisor;

rocksdb::Slice ToSlice(std::string_view view) { return {view.data(), view.size()}; }
std::string_view ToView(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

// For values in blob files. Of tables, which RocksDB trusts, it must be known that they are whole.
rocksdb::ReadOptions Unverified() {
  rocksdb::ReadOptions options;
  options.verify_checksums = false;
  options.fill_cache = false;
  return options;
}

absl::Status Closed() {
  return absl::UnavailableError("the database is closed since a write failed");
}

}  // namespace

struct DiskTier::Rep {
  DiskTierOptions options;
  std::unique_ptr<DiskDatabase> database;
  std::atomic<uint64_t> write_count = 0;

  Mutex mu;
  // Its own: it is held while the database is waited for, whose users may want `mu`.
  Mutex ids_mu;
  // Ids in [next_id, reserved_id) are ours to hand out.
  uint64_t next_id ABSL_GUARDED_BY(ids_mu) = 0;
  uint64_t reserved_id ABSL_GUARDED_BY(ids_mu) = 0;
  // Physical bytes when last counted, if so, and bytes written since.
  bool counted ABSL_GUARDED_BY(mu) = false;
  uint64_t counted_bytes ABSL_GUARDED_BY(mu) = 0;
  uint64_t uncounted_bytes ABSL_GUARDED_BY(mu) = 0;
  // What a reclaim at work may write beside what is there.
  uint64_t rewriting_bytes ABSL_GUARDED_BY(mu) = 0;

  absl::Status Ask(DiskOperation operation) const {
    return options.fault ? options.fault(operation) : absl::OkStatus();
  }

  // NotFound, or DataLoss when the record is corrupt.
  absl::StatusOr<std::string> Get(const RecordKey& key) {
    const DiskDatabase::Use db(*database, DiskDatabase::Purpose::kRead);
    if (!db) return Closed();
    std::string value;
    const rocksdb::Status found = db->Get({}, ToSlice(key.view()), &value);
    if (!found.ok()) return FromRocks("reading a record", found);
    const absl::StatusOr<std::string_view> payload = CheckedPayload(key.view(), value);
    if (!payload.ok()) return payload.status();
    value.resize(payload->size());
    return value;
  }
  absl::Status Put(const DiskBatch& batch, bool sync) {
    rocksdb::WriteOptions write;
    write.sync = sync;
    return FromRocks("writing", database->Write(write, &batch.rep_->batch));
  }
  absl::Status ReserveIds() ABSL_EXCLUSIVE_LOCKS_REQUIRED(ids_mu) {
    if (absl::Status status = Ask(DiskOperation::kWrite); !status.ok()) return status;
    ByteWriter writer;
    writer.Put(reserved_id + kSegmentIdRun);
    DiskBatch batch;
    batch.Put(RecordKey(RecordKind::kSegmentCounter).view(), std::move(writer).Take());
    absl::Status status = Put(batch, /*sync=*/true);
    if (status.ok()) reserved_id += kSegmentIdRun;
    return status;
  }
};

DiskTier::DiskTier(std::unique_ptr<Rep> rep) : rep_(std::move(rep)) {}
DiskTier::~DiskTier() = default;

absl::StatusOr<std::unique_ptr<DiskTier>> DiskTier::Open(const DiskTierOptions& options) {
  auto database =
      DiskDatabase::Open(options.path, options.bytes, options.direct_reads, options.env);
  if (!database.ok()) return database.status();
  auto rep = std::make_unique<Rep>();
  rep->options = options;
  rep->database = *std::move(database);
  std::unique_ptr<DiskTier> tier(new DiskTier(std::move(rep)));
  if (absl::Status format = tier->CheckFormat(); !format.ok()) return format;
  return tier;
}

absl::Status DiskTier::CheckFormat() {
  const DiskTierOptions& options = rep_->options;
  const RecordKey key(RecordKind::kFormat);
  const absl::StatusOr<std::string> record = rep_->Get(key);
  if (absl::IsNotFound(record.status())) {
    // Empty: just created, perhaps by a process that died before it wrote the record.
    const DiskDatabase::Use db(*rep_->database, DiskDatabase::Purpose::kRead);
    if (!db) return Closed();
    const std::unique_ptr<rocksdb::Iterator> it(db->NewIterator({}));
    it->SeekToFirst();
    if (it->Valid()) {
      return absl::FailedPreconditionError(
          absl::StrCat(options.path, " is a database, but not of this store"));
    }
    DiskBatch batch;
    batch.Put(key.view(), EncodeFormat({.shard = options.shard}));
    return rep_->Put(batch, /*sync=*/true);
  }
  if (!record.ok()) return record.status();
  const auto format = DecodeFormat(*record);
  if (!format.ok()) return format.status();
  if (format->version != kDiskFormatVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        options.path, ": format version ", format->version, ", expected ", kDiskFormatVersion));
  }
  if (format->shard != options.shard) {
    return absl::FailedPreconditionError(
        absl::StrCat(options.path, " belongs to shard ", format->shard, ", not ", options.shard));
  }
  const absl::StatusOr<std::string> counter = rep_->Get(RecordKey(RecordKind::kSegmentCounter));
  if (absl::IsNotFound(counter.status())) return absl::OkStatus();
  if (!counter.ok()) return counter.status();
  const MutexLock lock(rep_->ids_mu);
  rep_->next_id = rep_->reserved_id = ByteReader(*counter).Get<uint64_t>();
  return absl::OkStatus();
}

absl::StatusOr<DiskIndex> DiskTier::LoadIndex() { return ReadDiskIndex(*rep_->database); }

absl::StatusOr<SegmentId> DiskTier::NextSegmentId() {
  rep_->database->Revive();
  const MutexLock lock(rep_->ids_mu);
  if (rep_->next_id == rep_->reserved_id) {
    if (absl::Status status = rep_->ReserveIds(); !status.ok()) return status;
  }
  return SegmentId{uint64_t{rep_->options.shard} << kShardShift | ++rep_->next_id};
}

uint64_t DiskTier::budget_for_blocks() const {
  return rep_->options.bytes - rep_->options.bytes / kHeadroomDivisor;
}

absl::Status DiskTier::Fit(size_t batch_bytes, Growth growth_kind) {
  uint64_t buffered = 0;
  {
    const DiskDatabase::Use db(*rep_->database, DiskDatabase::Purpose::kRead);
    if (!db) return Closed();
    db->GetIntProperty(rocksdb::DB::Properties::kCurSizeAllMemTables, &buffered);
  }
  // The batch goes to the log and to a blob file; so will what is buffered now.
  const uint64_t growth = buffered + 2 * uint64_t{batch_bytes};
  MutexLock lock(rep_->mu);
  // Keeps I5: a reclaim at work, or the next one, has room to rewrite what lives.
  const uint64_t headroom =
      rep_->options.bytes / (growth_kind == Growth::kBounded ? kHeadroomDivisor : kReclaimDivisor);
  const uint64_t limit = rep_->options.bytes - std::max(headroom, rep_->rewriting_bytes);
  const bool stale = rep_->uncounted_bytes > std::max(kMiB, rep_->options.bytes / 1024);
  if (!rep_->counted || stale || rep_->counted_bytes + 2 * rep_->uncounted_bytes + growth > limit) {
    rep_->counted = true;
    rep_->counted_bytes = used_bytes();
    rep_->uncounted_bytes = 0;
  }
  if (rep_->counted_bytes + 2 * rep_->uncounted_bytes + growth > limit) {
    return absl::ResourceExhaustedError(
        absl::StrCat("disk budget: ", rep_->counted_bytes, " bytes used, ", growth,
                     " more needed, but ", limit, " of the ", rep_->options.bytes,
                     growth_kind == Growth::kBounded ? " are for blocks" : " are for changes"));
  }
  rep_->uncounted_bytes += batch_bytes;
  return absl::OkStatus();
}

absl::Status DiskTier::Write(const DiskBatch& batch, bool sync, Growth growth) {
  if (absl::Status status = rep_->Ask(DiskOperation::kWrite); !status.ok()) return status;
  rep_->database->Revive();
  if (growth != Growth::kFrees) {
    if (absl::Status status = Fit(batch.bytes(), growth); !status.ok()) return status;
  }
  if (absl::Status status = rep_->Put(batch, sync); !status.ok()) {
    return absl::UnavailableError(status.message());
  }
  ++rep_->write_count;
  return absl::OkStatus();
}

absl::Status DiskTier::Sync() {
  if (absl::Status status = rep_->Ask(DiskOperation::kWrite); !status.ok()) return status;
  rep_->database->Revive();
  // As a batch: a bare sync aborts the process when the log has failed before.
  return rep_->Put(DiskBatch(), /*sync=*/true);
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
  rep_->database->MultiGet(options, slices, absl::MakeSpan(values), absl::MakeSpan(statuses));
  for (size_t i = 0; i < reads.size(); ++i) {
    if (statuses[i].ok()) {
      // Verifies it (I1).
      reads[i].Place(ToView(values[i]));
    } else {
      Fail(reads[i], statuses[i], deadline);
    }
  }
}

absl::StatusOr<std::string> DiskTier::ReadTail(const BlockKey& block, const BlockLayout& layout,
                                               uint32_t rows) {
  if (absl::Status status = rep_->Ask(DiskOperation::kRead); !status.ok()) return status;
  absl::StatusOr<std::string> tail = rep_->Get(RecordKey(RecordKind::kTail, block));
  if (!absl::IsNotFound(tail.status())) return tail;
  std::string whole;
  for (uint8_t granule = 0; granule * layout.granule_tokens < rows; ++granule) {
    const absl::StatusOr<std::string> found = rep_->Get(RecordKey::Granule(block, granule));
    if (!found.ok()) return found.status();
    if (found->size() != layout.granule_bytes()) {
      return absl::DataLossError(absl::StrCat("granule of a tail: ", found->size(),
                                              " bytes stored, ", layout.granule_bytes(),
                                              " expected"));
    }
    whole += *found;
  }
  return whole;
}

absl::Status DiskTier::Compact(uint64_t goal_bytes, std::atomic<bool>& cancelled,
                               bool* is_complete) {
  const DiskDatabase::Use db(*rep_->database, DiskDatabase::Purpose::kChange, &cancelled);
  if (!db) return Closed();
  rocksdb::CompactRangeOptions compact;
  compact.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForceOptimized;
  compact.canceled = &cancelled;
  // First without rewriting any block: files that hold nothing but garbage go.
  compact.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kDisable;
  rocksdb::Status status = db->Flush({});
  if (status.ok()) status = db->CompactRange(compact, nullptr, nullptr);
  // Then from the oldest file on, at a time as much as certainly fits beside what is there (I5).
  compact.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kForce;
  // Known for certain now that the tree is free of it.
  const auto garbage_bytes = [&db] {
    uint64_t bytes = 0;
    db->GetIntProperty(rocksdb::DB::Properties::kLiveBlobFileGarbageSize, &bytes);
    return bytes;
  };
  double rewritten = 0;
  while (status.ok() && used_bytes() > goal_bytes) {
    *is_complete = rewritten >= 1 || garbage_bytes() < garbage_min_bytes();
    if (*is_complete) break;
    uint64_t blob_bytes = 0;
    db->GetIntProperty(rocksdb::DB::Properties::kTotalBlobFileSize, &blob_bytes);
    const double share = ReserveRewriting(blob_bytes);
    compact.blob_garbage_collection_age_cutoff = share;
    status = db->CompactRange(compact, nullptr, nullptr);
    rewritten += share;
  }
  MutexLock lock(rep_->mu);
  rep_->rewriting_bytes = 0;
  return FromRocks("reclaiming", status);
}

double DiskTier::ReserveRewriting(uint64_t blob_bytes) {
  const uint64_t budget = rep_->options.bytes;
  MutexLock lock(rep_->mu);
  rep_->rewriting_bytes = 0;
  const uint64_t used = used_bytes() + 2 * rep_->uncounted_bytes;
  // Half of the room: the rest is for who writes meanwhile.
  const auto room = static_cast<double>(budget - std::min(budget, used)) / 2;
  const double share =
      std::clamp(room / static_cast<double>(blob_bytes + 1), kRewriteShareMin, 1.0);
  rep_->rewriting_bytes =
      std::min(budget, static_cast<uint64_t>(share * static_cast<double>(blob_bytes)));
  return share;
}

absl::StatusOr<bool> DiskTier::Reclaim(uint64_t goal_bytes, std::atomic<bool>& cancelled) {
  if (absl::Status status = rep_->Ask(DiskOperation::kReclaim); !status.ok()) return status;
  bool is_complete = false;
  const absl::Status status = Compact(goal_bytes, cancelled, &is_complete);
  {
    MutexLock lock(rep_->mu);
    rep_->counted = false;
  }
  if (status.ok()) return is_complete;
  if (absl::IsDataLoss(status)) {
    // RocksDB writes no more after what it could not read.
    rep_->database->StopsWriting();
    rep_->database->Revive();
  }
  return status;
}

absl::StatusOr<std::vector<std::string>> DiskTier::FindCorrupt(std::atomic<bool>& cancelled) {
  std::vector<std::string> keys;
  const DiskDatabase::Use db(*rep_->database, DiskDatabase::Purpose::kRead, &cancelled);
  if (!db) return Closed();
  const rocksdb::Status tables = db->VerifyChecksum();
  if (!tables.ok()) return FromRocks("verifying the tables", tables);
  const std::unique_ptr<rocksdb::Iterator> it(db->NewIterator(Unverified()));
  for (it->SeekToFirst(); it->Valid() && !cancelled; it->Next()) {
    const std::string_view key = ToView(it->key());
    if (!CheckedPayload(key, ToView(it->value())).ok()) keys.emplace_back(key);
  }
  if (!it->status().ok()) return FromRocks("looking for corrupt records", it->status());
  return keys;
}

absl::StatusOr<size_t> DiskTier::Rewrite(absl::Span<const std::string> keys) {
  DiskBatch batch;
  size_t count = 0;
  {
    const DiskDatabase::Use db(*rep_->database, DiskDatabase::Purpose::kRead);
    if (!db) return Closed();
    for (; count < keys.size() && batch.bytes() < kRewriteBatchBytes; ++count) {
      const std::string& key = keys[count];
      std::string value;
      const rocksdb::Status found = db->Get(Unverified(), key, &value);
      // Deleted meanwhile, or written anew.
      if (found.IsNotFound() || (found.ok() && CheckedPayload(key, value).ok())) continue;
      if (!found.ok()) return FromRocks("reading a corrupt record", found);
      batch.PutAsIs(key, value);
    }
  }
  if (batch.empty()) return count;
  absl::Status status = Write(batch, /*sync=*/false, Growth::kReplaces);
  if (!status.ok()) return status;
  return count;
}

uint64_t DiskTier::garbage_min_bytes() const { return std::max(kMiB, rep_->options.bytes / 256); }

bool DiskTier::in_doubt() const { return rep_->database->failed(); }

uint64_t DiskTier::write_count() const { return rep_->write_count; }

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

bool DiskTier::direct_reads() const { return rep_->database->direct_reads(); }

}  // namespace terrace::kvstore
