#include "kvstore/disk_files.h"

#include <rocksdb/file_system.h>

#include <string>
#include <utility>

#include "absl/strings/match.h"

namespace terrace::kvstore {
namespace {

using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;

thread_local DiskFileKind denied = DiskFileKind::kOther;

DiskFileKind KindOf(const std::string& path) {
  if (absl::EndsWith(path, ".sst")) return DiskFileKind::kTable;
  return absl::EndsWith(path, ".blob") ? DiskFileKind::kBlob : DiskFileKind::kOther;
}

class DeniableFile final : public rocksdb::FSRandomAccessFileWrapper {
 public:
  DeniableFile(DiskFileKind kind, std::unique_ptr<rocksdb::FSRandomAccessFile> file)
      : FSRandomAccessFileWrapper(file.get()), kind_(kind), file_(std::move(file)) {}

  IOStatus Read(uint64_t offset, size_t n, const IOOptions& options, rocksdb::Slice* result,
                char* scratch, IODebugContext* debug) const override {
    if (denied == kind_) return Denied();
    return target()->Read(offset, n, options, result, scratch, debug);
  }
  IOStatus MultiRead(rocksdb::FSReadRequest* requests, size_t count, const IOOptions& options,
                     IODebugContext* debug) override {
    if (denied != kind_) return target()->MultiRead(requests, count, options, debug);
    for (size_t i = 0; i < count; ++i) requests[i].status = Denied();
    return IOStatus::OK();
  }
  IOStatus Prefetch(uint64_t offset, size_t n, const IOOptions& options,
                    IODebugContext* debug) override {
    if (denied == kind_) return Denied();
    return target()->Prefetch(offset, n, options, debug);
  }

 private:
  static IOStatus Denied() { return IOStatus::Aborted(); }

  const DiskFileKind kind_;
  const std::unique_ptr<rocksdb::FSRandomAccessFile> file_;
};

class DiskFiles final : public rocksdb::FileSystemWrapper {
 public:
  using FileSystemWrapper::FileSystemWrapper;

  // RocksDB's name for it.
  static const char* kClassName() { return "DiskFiles"; }  // NOLINT(readability-identifier-naming)
  const char* Name() const override { return kClassName(); }

  IOStatus NewRandomAccessFile(const std::string& path, const rocksdb::FileOptions& options,
                               std::unique_ptr<rocksdb::FSRandomAccessFile>* file,
                               IODebugContext* debug) override {
    IOStatus opened = target()->NewRandomAccessFile(path, options, file, debug);
    const DiskFileKind kind = KindOf(path);
    if (opened.ok() && kind != DiskFileKind::kOther) {
      *file = std::make_unique<DeniableFile>(kind, std::move(*file));
    }
    return opened;
  }
};

}  // namespace

std::unique_ptr<rocksdb::Env> NewDiskEnv(rocksdb::Env* base) {
  if (base == nullptr) base = rocksdb::Env::Default();
  return rocksdb::NewCompositeEnv(std::make_shared<DiskFiles>(base->GetFileSystem()));
}

DeniedReads::DeniedReads(DiskFileKind kind) { denied = kind; }
DeniedReads::~DeniedReads() { denied = DiskFileKind::kOther; }

bool DeniedReads::Caused(const rocksdb::Status& status) { return status.IsAborted(); }

}  // namespace terrace::kvstore
