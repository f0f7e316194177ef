#include "kvstore/disk_database.h"

#include <fcntl.h>
#include <rocksdb/cache.h>
#include <rocksdb/env.h>
#include <rocksdb/table.h>
#include <rocksdb/wal_filter.h>
#include <rocksdb/write_batch.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "kvstore/byte_codec.h"
#include "kvstore/disk_files.h"
#include "kvstore/record_log.h"

namespace terrace::kvstore {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

bool SupportsDirectReads(const std::string& folder) {
  const std::string probe = folder + "/direct-read-probe";
  const int fd = open(probe.c_str(), O_CREAT | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
  if (fd >= 0) close(fd);
  unlink(probe.c_str());
  return fd >= 0;
}

// FailedPrecondition when there are files of somebody else, and no database. One that was being
// created when the process died has files but no CURRENT.
absl::Status CheckFolder(const std::string& folder) {
  std::error_code error;
  if (std::filesystem::exists(folder + "/CURRENT", error)) return absl::OkStatus();
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename();
    const bool is_ours = name == "LOCK" || name == "IDENTITY" || name.starts_with("LOG") ||
                         name.starts_with("MANIFEST-") || name.starts_with("OPTIONS-") ||
                         name.ends_with(".dbtmp") || name.ends_with("-probe");
    // A volume of its own has that one.
    if (is_ours || name == "lost+found") continue;
    return absl::FailedPreconditionError(
        absl::StrCat(folder, " holds ", name, ", which is not of this store"));
  }
  if (error) return absl::UnavailableError(absl::StrCat(folder, ": ", error.message()));
  return absl::OkStatus();
}

// Corruption when RocksDB would open an older state than the MANIFEST tells, and say nothing.
rocksdb::Status CheckManifest(rocksdb::Env& env, const std::string& folder) {
  std::string current;
  // Without either file there is nothing yet, or RocksDB says what is wrong.
  if (!rocksdb::ReadFileToString(&env, folder + "/CURRENT", &current).ok()) {
    return rocksdb::Status::OK();
  }
  const std::string name(absl::StripTrailingAsciiWhitespace(current));
  std::string log;
  if (!rocksdb::ReadFileToString(&env, absl::StrCat(folder, "/", name), &log).ok()) {
    return rocksdb::Status::OK();
  }
  const absl::Status whole = CheckRecordLog(log);
  return whole.ok() ? rocksdb::Status::OK()
                    : rocksdb::Status::Corruption(name, std::string(whole.message()));
}

// Whether the folder takes a file of the size that opening a database may write.
bool TakesWrites(rocksdb::Env& env, const std::string& folder) {
  const std::string probe = folder + "/write-probe";
  const bool written =
      rocksdb::WriteStringToFile(&env, std::string(kMiB, 0), probe, /*should_sync=*/true).ok();
  env.DeleteFile(probe).PermitUncheckedError();
  return written;
}

int OpenFilesMax() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 256;
  return static_cast<int>(std::clamp<rlim_t>(limit.rlim_cur / 4, 64, 4096));
}

// Sizes follow the budget, so that what is buffered, and what one compaction rewrites, stays a
// small part of it.
rocksdb::Options MakeOptions(uint64_t bytes, bool direct_reads, rocksdb::Env* env) {
  rocksdb::Options options;
  options.env = env;
  options.create_if_missing = true;
  options.write_buffer_size = std::clamp(bytes / 64, kMiB, 16 * kMiB);
  options.max_write_buffer_number = 2;
  options.max_total_wal_size = 2 * options.write_buffer_size;
  options.max_background_jobs = 2;
  options.max_open_files = OpenFilesMax();
  options.compression = rocksdb::kNoCompression;
  options.bottommost_compression = rocksdb::kNoCompression;

  options.enable_blob_files = true;
  options.min_blob_size = 512;
  options.blob_file_size = std::clamp(bytes / 64, kMiB, 256 * kMiB);
  // Only DiskTier::Reclaim collects garbage: it rewrites live blobs, and must know when.
  options.enable_blob_garbage_collection = false;
  // A table entry stands for some 8 KiB of blob: small tables keep a compaction's rewriting small.
  options.target_file_size_base = std::clamp(bytes >> 12, kMiB / 64, kMiB);
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
  table.block_cache = rocksdb::NewLRUCache(std::clamp(bytes / 2048, 4 * kMiB, 32 * kMiB));
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

// Replays the log up to a change, and nothing of those that failed after it: their records may be
// whole all the same.
class LogPrefix final : public rocksdb::WalFilter {
 public:
  explicit LogPrefix(rocksdb::SequenceNumber last) : last_(last) {}

  const char* Name() const override { return "LogPrefix"; }
  WalProcessingOption LogRecord(const rocksdb::WriteBatch& batch, rocksdb::WriteBatch*,
                                bool*) const override {
    // A batch begins with the number of its first change.
    return ByteReader(batch.Data()).Get<uint64_t>() > last_
               ? WalProcessingOption::kStopReplay
               : WalProcessingOption::kContinueProcessing;
  }

 private:
  const rocksdb::SequenceNumber last_;
};

}  // namespace

absl::Status FromRocks(absl::string_view what, const rocksdb::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", status.ToString());
  if (status.IsCorruption()) return absl::DataLossError(message);
  if (status.IsNotFound()) return absl::NotFoundError(message);
  return absl::UnavailableError(message);
}

absl::StatusOr<std::unique_ptr<DiskDatabase>> DiskDatabase::Open(const std::string& path,
                                                                 uint64_t bytes, bool direct_reads,
                                                                 rocksdb::Env* env) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return absl::UnavailableError(absl::StrCat(path, ": ", error.message()));
  if (absl::Status status = CheckFolder(path); !status.ok()) return status;
  std::unique_ptr<rocksdb::Env> files = NewDiskEnv(env);
  const rocksdb::Options options =
      MakeOptions(bytes, direct_reads && SupportsDirectReads(path), files.get());
  std::unique_ptr<DiskDatabase> database(new DiskDatabase(path, std::move(files), options));
  MutexLock lock(database->mu_);
  const rocksdb::Status opened = database->OpenDatabase(database->options_);
  if (!opened.ok()) return FromRocks(absl::StrCat("opening ", path), opened);
  return database;
}

DiskDatabase::DiskDatabase(std::string path, std::unique_ptr<rocksdb::Env> env,
                           const rocksdb::Options& options)
    : path_(std::move(path)), env_(std::move(env)), options_(options) {}

rocksdb::Status DiskDatabase::OpenDatabase(const rocksdb::Options& options) {
  if (rocksdb::Status whole = CheckManifest(*env_, path_); !whole.ok()) return whole;
  rocksdb::DB* db = nullptr;
  rocksdb::Status opened = rocksdb::DB::Open(options, path_, &db);
  db_.reset(db);
  return opened;
}

DiskDatabase::Use::Use(DiskDatabase& database, Purpose purpose, std::atomic<bool>* must_leave)
    : database_(database), must_leave_(must_leave) {
  MutexLock lock(database.mu_);
  while (database.reopening_) database.changed_.Wait(database.mu_);
  ++database.users_;
  if (must_leave_ != nullptr) database.must_leave_.push_back(must_leave_);
  db_ = purpose == Purpose::kChange && database.failed_ ? nullptr : database.db_.get();
}

DiskDatabase::Use::~Use() {
  MutexLock lock(database_.mu_);
  if (must_leave_ != nullptr) std::erase(database_.must_leave_, must_leave_);
  if (--database_.users_ == 0 && database_.reopening_) database_.changed_.NotifyAll();
}

rocksdb::Status DiskDatabase::Write(const rocksdb::WriteOptions& options,
                                    rocksdb::WriteBatch* batch) {
  const Use db(*this, Purpose::kChange);
  if (!db) return rocksdb::Status::IOError("closed since a write failed");
  rocksdb::Status written = db->Write(options, batch);
  if (!written.ok()) failed_ = true;
  return written;
}

namespace {

// Some keys of many.
struct LookUp {
  absl::Span<const rocksdb::Slice> keys;
  absl::Span<rocksdb::PinnableSlice> values;
  absl::Span<rocksdb::Status> statuses;

  // Reads those at `which`; returns those of them that were denied.
  std::vector<size_t> Run(rocksdb::DB& db, const rocksdb::ReadOptions& options,
                          const std::vector<size_t>& which) const {
    std::vector<rocksdb::Slice> some;
    some.reserve(which.size());
    for (const size_t i : which) some.push_back(keys[i]);
    std::vector<rocksdb::PinnableSlice> found(which.size());
    std::vector<rocksdb::Status> outcomes(which.size());
    db.MultiGet(options, db.DefaultColumnFamily(), some.size(), some.data(), found.data(),
                outcomes.data());
    std::vector<size_t> denied;
    for (size_t i = 0; i < which.size(); ++i) {
      values[which[i]] = std::move(found[i]);
      statuses[which[i]] = outcomes[i];
      if (DeniedReads::Caused(outcomes[i])) denied.push_back(which[i]);
    }
    return denied;
  }
};

}  // namespace

void DiskDatabase::MultiGet(const rocksdb::ReadOptions& options,
                            absl::Span<const rocksdb::Slice> keys,
                            absl::Span<rocksdb::PinnableSlice> values,
                            absl::Span<rocksdb::Status> statuses) {
  // Blocks may leave the cache between one round and the next.
  constexpr int kRounds = 3;
  // Whoever only reads must not wait for somebody who writes.
  if (!Use(*this, Purpose::kRead)) Revive();
  const Use db(*this, Purpose::kRead);
  if (!db) {
    std::fill(statuses.begin(), statuses.end(), rocksdb::Status::IOError("closed"));
    return;
  }
  const LookUp look_up{keys, values, statuses};
  rocksdb::ReadOptions verified = options;
  verified.verify_checksums = true;
  rocksdb::ReadOptions unverified = options;
  unverified.verify_checksums = false;
  std::vector<size_t> rest(keys.size());
  std::iota(rest.begin(), rest.end(), 0);
  for (int round = 0; round < kRounds && !rest.empty(); ++round) {
    {
      // Blobs of keys whose blocks are in memory.
      const DeniedReads no_tables(DiskFileKind::kTable);
      rest = look_up.Run(*db, unverified, rest);
    }
    if (rest.empty()) return;
    // The blocks of the others.
    const DeniedReads no_blobs(DiskFileKind::kBlob);
    rest = look_up.Run(*db, verified, rest);
  }
  if (!rest.empty()) look_up.Run(*db, verified, rest);
}

// Not by DB::Resume: it may leave the log in use whose end could not be written, and the next
// record that is added to that aborts the process.
void DiskDatabase::Revive() {
  if (!failed_) return;
  const MutexLock alone(revive_mu_);
  // Somebody else was first.
  if (!failed_) return;
  // Reading still works: do not close what then cannot be opened.
  if (!TakesWrites(*env_, path_)) return;
  MutexLock lock(mu_);
  reopening_ = true;
  for (std::atomic<bool>* const must_leave : must_leave_) *must_leave = true;
  while (users_ > 0) changed_.Wait(mu_);
  if (db_ != nullptr) last_sequence_ = db_->GetLatestSequenceNumber();
  db_.reset();
  LogPrefix succeeded(last_sequence_);
  rocksdb::Options options = options_;
  options.wal_filter = &succeeded;
  failed_ = !OpenDatabase(options).ok();
  reopening_ = false;
  changed_.NotifyAll();
}

}  // namespace terrace::kvstore
