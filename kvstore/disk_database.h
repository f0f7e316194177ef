// DiskDatabase: the RocksDB of the disk tier, opened with our options, and opened anew when a
// failure has stopped it for good. Only the disk tier includes this.
//
// Thread-safe.
#ifndef TERRACE_KVSTORE_DISK_DATABASE_H_
#define TERRACE_KVSTORE_DISK_DATABASE_H_

#include <rocksdb/db.h>
#include <rocksdb/options.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kvstore/mutex.h"

namespace terrace::kvstore {

// `what` says what was tried. Corruption is DataLoss; what may pass is Unavailable.
absl::Status FromRocks(absl::string_view what, const rocksdb::Status& status);

class DiskDatabase {
 public:
  // `bytes` is the budget: buffers and files follow it. `env` outlives the database; null is the
  // system's.
  static absl::StatusOr<std::unique_ptr<DiskDatabase>> Open(const std::string& path, uint64_t bytes,
                                                            bool direct_reads, rocksdb::Env* env);
  DiskDatabase(const DiskDatabase&) = delete;
  DiskDatabase& operator=(const DiskDatabase&) = delete;

  enum class Purpose { kRead, kChange };
  // Keeps the database open while it is used. False when a failure has closed it, and for changes
  // from a failed Write on until Revive has opened it anew. Whoever uses it for long gives a flag,
  // which becomes true when he must leave soon: readers wait until Revive has had its turn.
  class Use {
   public:
    Use(DiskDatabase& database, Purpose purpose, std::atomic<bool>* must_leave = nullptr);
    ~Use();
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

    explicit operator bool() const { return db_ != nullptr; }
    rocksdb::DB* operator->() const { return db_; }
    rocksdb::DB& operator*() const { return *db_; }

   private:
    DiskDatabase& database_;
    std::atomic<bool>* const must_leave_;
    rocksdb::DB* db_;
  };

  // All of the batch or, when it fails, nothing: it is not there after Revive either. Only when the
  // process dies between the two nobody knows.
  rocksdb::Status Write(const rocksdb::WriteOptions& options, rocksdb::WriteBatch* batch);
  // The values of these keys, each with its status. Tables are verified, and values are not: they
  // carry checksums of their own.
  void MultiGet(const rocksdb::ReadOptions& options, absl::Span<const rocksdb::Slice> keys,
                absl::Span<rocksdb::PinnableSlice> values, absl::Span<rocksdb::Status> statuses);
  // RocksDB has stopped writing for another reason than a Write that failed.
  void StopsWriting() { failed_ = true; }
  // After a failed Write, or that: opens the database anew, unless the file system still refuses
  // writes. Waits for users, and tells those that stay long to leave. Costs nothing when none has
  // failed.
  void Revive();

  // A Write has failed, and Revive has not undone it yet: it may be there if the process dies now.
  bool failed() const { return failed_; }
  bool direct_reads() const { return options_.use_direct_reads; }

 private:
  DiskDatabase(std::string path, std::unique_ptr<rocksdb::Env> env,
               const rocksdb::Options& options);

  rocksdb::Status OpenDatabase(const rocksdb::Options& options) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::string path_;
  const std::unique_ptr<rocksdb::Env> env_;
  const rocksdb::Options options_;

  // Held by whoever revives, before `mu_`.
  Mutex revive_mu_;
  Mutex mu_;
  CondVar changed_;
  std::unique_ptr<rocksdb::DB> db_ ABSL_GUARDED_BY(mu_);
  int users_ ABSL_GUARDED_BY(mu_) = 0;
  // Of users that stay long.
  std::vector<std::atomic<bool>*> must_leave_ ABSL_GUARDED_BY(mu_);
  bool reopening_ ABSL_GUARDED_BY(mu_) = false;
  // A Write has failed since it was opened.
  std::atomic<bool> failed_ = false;
  // Of the last change that did not, when the database was closed for one that did.
  rocksdb::SequenceNumber last_sequence_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_DISK_DATABASE_H_
