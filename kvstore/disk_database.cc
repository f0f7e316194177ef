#include "kvstore/disk_database.h"

#include <fcntl.h>
#include <rocksdb/cache.h>
#include <rocksdb/table.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#if defined(__SANITIZE_THREAD__)
// The distribution's RocksDB is not built for ThreadSanitizer, which sees its copies but not the
// atomics that order them.
extern "C" const char* __tsan_default_suppressions() { return "race:librocksdb.so\n"; }
#endif

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

// Whether the folder takes a file of the size that opening a database may write.
bool TakesWrites(const std::string& folder) {
  const std::string probe = folder + "/write-probe";
  const int fd = open(probe.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
  if (fd < 0) return false;
  const std::vector<char> bytes(kMiB);
  const bool written =
      write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()) && fsync(fd) == 0;
  close(fd);
  unlink(probe.c_str());
  return written;
}

int OpenFilesMax() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 256;
  return static_cast<int>(std::clamp<rlim_t>(limit.rlim_cur / 4, 64, 4096));
}

// Sizes follow the budget, so that what is buffered, and what one compaction rewrites, stays a
// small part of it.
rocksdb::Options MakeOptions(uint64_t bytes, bool direct_reads) {
  rocksdb::Options options;
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

}  // namespace

absl::Status FromRocks(absl::string_view what, const rocksdb::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", status.ToString());
  if (status.IsCorruption()) return absl::DataLossError(message);
  if (status.IsNotFound()) return absl::NotFoundError(message);
  return absl::UnavailableError(message);
}

absl::StatusOr<std::unique_ptr<DiskDatabase>> DiskDatabase::Open(const std::string& path,
                                                                 uint64_t bytes,
                                                                 bool direct_reads) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return absl::UnavailableError(absl::StrCat(path, ": ", error.message()));
  std::unique_ptr<DiskDatabase> database(
      new DiskDatabase(path, MakeOptions(bytes, direct_reads && SupportsDirectReads(path))));
  MutexLock lock(database->mu_);
  const rocksdb::Status opened = database->OpenDatabase();
  if (!opened.ok()) return FromRocks(absl::StrCat("opening ", path), opened);
  return database;
}

DiskDatabase::DiskDatabase(std::string path, const rocksdb::Options& options)
    : path_(std::move(path)), options_(options) {}

rocksdb::Status DiskDatabase::OpenDatabase() {
  rocksdb::DB* db = nullptr;
  rocksdb::Status opened = rocksdb::DB::Open(options_, path_, &db);
  db_.reset(db);
  return opened;
}

DiskDatabase::Use::Use(DiskDatabase& database) : database_(database) {
  MutexLock lock(database.mu_);
  while (database.reopening_) database.changed_.Wait(database.mu_);
  ++database.users_;
  db_ = database.db_.get();
}

DiskDatabase::Use::~Use() {
  MutexLock lock(database_.mu_);
  if (--database_.users_ == 0 && database_.reopening_) database_.changed_.NotifyAll();
}

void DiskDatabase::Revive() {
  const MutexLock alone(revive_mu_);
  {
    const Use db(*this);
    // Enough after a failed flush or compaction, and when somebody else was first; a failed append
    // to the log is for good.
    if (db && db->Resume().ok()) return;
  }
  // Reading still works: do not close what then cannot be opened.
  if (!TakesWrites(path_)) return;
  MutexLock lock(mu_);
  reopening_ = true;
  while (users_ > 0) changed_.Wait(mu_);
  db_.reset();
  OpenDatabase().PermitUncheckedError();
  reopening_ = false;
  changed_.NotifyAll();
}

}  // namespace terrace::kvstore
