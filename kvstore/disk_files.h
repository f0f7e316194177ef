// DiskFiles: the files of a database, of which a thread may read some kinds only, for a while.
//
// RocksDB has one switch for the checksums of tables and blobs. Blobs are values that carry a
// checksum of ours, and RocksDB's is slow; but it parses the blocks of tables as they come, and a
// flipped bit in one that was not verified may abort the process. So a thread that reads without
// verifying is denied the tables' files: it finds what is in memory, where only verified blocks
// are.
#ifndef TERRACE_KVSTORE_DISK_FILES_H_
#define TERRACE_KVSTORE_DISK_FILES_H_

#include <rocksdb/env.h>
#include <rocksdb/status.h>

#include <memory>

namespace terrace::kvstore {

enum class DiskFileKind { kOther, kTable, kBlob };

// `base` outlives it; null is the system's.
std::unique_ptr<rocksdb::Env> NewDiskEnv(rocksdb::Env* base);

// While it lives, reads by this thread of files of that kind fail.
class DeniedReads {
 public:
  explicit DeniedReads(DiskFileKind kind);
  ~DeniedReads();
  DeniedReads(const DeniedReads&) = delete;
  DeniedReads& operator=(const DeniedReads&) = delete;

  // Whether a read has failed for that reason.
  static bool Caused(const rocksdb::Status& status);
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_DISK_FILES_H_
