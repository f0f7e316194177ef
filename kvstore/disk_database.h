// DiskDatabase: the RocksDB of the disk tier, opened with our options, and opened anew when a
// failure has stopped it for good. Only the disk tier includes this.
//
// Thread-safe.
#ifndef TERRACE_KVSTORE_DISK_DATABASE_H_
#define TERRACE_KVSTORE_DISK_DATABASE_H_

#include <rocksdb/db.h>
#include <rocksdb/options.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvstore/mutex.h"

namespace terrace::kvstore {

// `what` says what was tried. Corruption is DataLoss; what may pass is Unavailable.
absl::Status FromRocks(absl::string_view what, const rocksdb::Status& status);

class DiskDatabase {
 public:
  // `bytes` is the budget: buffers and files follow it.
  static absl::StatusOr<std::unique_ptr<DiskDatabase>> Open(const std::string& path, uint64_t bytes,
                                                            bool direct_reads);
  DiskDatabase(const DiskDatabase&) = delete;
  DiskDatabase& operator=(const DiskDatabase&) = delete;

  // Keeps the database open while it is used. False when it is closed after a failure.
  class Use {
   public:
    explicit Use(DiskDatabase& database);
    ~Use();
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

    explicit operator bool() const { return db_ != nullptr; }
    rocksdb::DB* operator->() const { return db_; }

   private:
    DiskDatabase& database_;
    rocksdb::DB* db_;
  };

  // After a failed write: does what it takes that the next one may succeed, unless the file system
  // still refuses writes. Waits for users.
  void Revive();

  bool direct_reads() const { return options_.use_direct_reads; }

 private:
  DiskDatabase(std::string path, const rocksdb::Options& options);

  rocksdb::Status OpenDatabase() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::string path_;
  const rocksdb::Options options_;

  // Held by whoever revives, before `mu_`.
  Mutex revive_mu_;
  Mutex mu_;
  CondVar changed_;
  std::unique_ptr<rocksdb::DB> db_ ABSL_GUARDED_BY(mu_);
  int users_ ABSL_GUARDED_BY(mu_) = 0;
  bool reopening_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_DISK_DATABASE_H_
