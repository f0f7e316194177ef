#include "tests/sim/faulty_disk.h"

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace terrace::testing {
namespace {

using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

enum class Change { kGrow, kSync, kOther };

}  // namespace

class FaultyDisk::Rep {
 public:
  explicit Rep(uint64_t seed) : random_(seed) {}

  // Asked before each change. Not OK: it fails, after `kept` bytes of it were made.
  IOStatus Begin(Change change, size_t bytes, size_t* kept) {
    const std::lock_guard lock(mu_);
    *kept = 0;
    if (dead_) return IOStatus::IOError("dead");
    if (changes_left_ && (*changes_left_)-- == 0) {
      dead_ = true;
      *kept = bytes == 0 ? 0 : random_() % bytes;
      return IOStatus::IOError("dies");
    }
    if (writes_fail || (syncs_fail && change == Change::kSync)) {
      sync_has_failed_ = sync_has_failed_ || change == Change::kSync;
      return IOStatus::IOError("injected");
    }
    if (full && change == Change::kGrow) {
      *kept = bytes == 0 ? 0 : random_() % bytes;
      return IOStatus::NoSpace("injected");
    }
    return IOStatus::OK();
  }
  IOStatus Begin(Change change) {
    size_t kept = 0;
    return Begin(change, 0, &kept);
  }

  // Before a read; false: it fails.
  bool BeginRead() {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [this] { return !reads_stall; });
    return !reads_fail;
  }
  // The bit to flip in what was read, of so many.
  std::optional<size_t> Flip(size_t bits) {
    const std::lock_guard lock(mu_);
    if (flips_one_in == 0 || bits == 0 || random_() % flips_one_in != 0) return std::nullopt;
    return random_() % bits;
  }

  void Created(const std::string& path) {
    const std::lock_guard lock(mu_);
    synced_bytes_[path] = 0;
    names_.push_back({.path = path});
  }
  void Synced(const std::string& path, uint64_t size) {
    const std::lock_guard lock(mu_);
    synced_bytes_[path] = size;
  }
  void Deleted(const std::string& path) {
    const std::lock_guard lock(mu_);
    synced_bytes_.erase(path);
    std::erase_if(names_, [&](const NameChange& change) { return change.path == path; });
  }
  void Renamed(const std::string& from, const std::string& to, std::optional<std::string> before) {
    const std::lock_guard lock(mu_);
    synced_bytes_[to] = std::exchange(synced_bytes_[from], 0);
    synced_bytes_.erase(from);
    std::erase_if(names_, [&](const NameChange& change) { return change.path == from; });
    names_.push_back({.path = to, .before = std::move(before)});
  }
  // All names in all folders: there is one.
  void SyncedNames() {
    const std::lock_guard lock(mu_);
    names_.clear();
  }

  void Restart(Loss loss) {
    const std::lock_guard lock(mu_);
    if (loss == Loss::kUnsynced) Lose();
    dead_ = sync_has_failed_ = false;
    changes_left_.reset();
    HealLocked();
  }

  template <typename Body>
  void Set(const Body& body) {
    const std::lock_guard lock(mu_);
    body(*this);
    changed_.notify_all();
  }
  void HealLocked() {
    writes_fail = syncs_fail = full = reads_fail = reads_stall = false;
    flips_one_in = 0;
  }
  bool dead() const {
    const std::lock_guard lock(mu_);
    return dead_;
  }
  bool sync_has_failed() const {
    const std::lock_guard lock(mu_);
    return sync_has_failed_;
  }
  void DieAfter(uint32_t changes) {
    const std::lock_guard lock(mu_);
    changes_left_ = changes;
  }

  // Written by Set only.
  bool writes_fail = false;
  bool syncs_fail = false;
  bool full = false;
  bool reads_fail = false;
  bool reads_stall = false;
  uint32_t flips_one_in = 0;

 private:
  // A file that was created or renamed and whose folder was not synced since.
  struct NameChange {
    std::string path;
    // What the name stood for.
    std::optional<std::string> before = std::nullopt;
  };

  void Lose() {
    for (const auto& [path, synced] : synced_bytes_) {
      std::error_code error;
      const uint64_t size = std::filesystem::file_size(path, error);
      if (error || size <= synced) continue;
      std::filesystem::resize_file(path, synced + random_() % (size - synced + 1), error);
    }
    // Names change in order: a journal is replayed up to some change.
    const size_t kept = names_.empty() ? 0 : random_() % (names_.size() + 1);
    for (; names_.size() > kept; names_.pop_back()) {
      const NameChange& change = names_.back();
      std::error_code error;
      std::filesystem::remove(change.path, error);
      if (change.before) std::ofstream(change.path, std::ios::binary) << *change.before;
    }
    synced_bytes_.clear();
    names_.clear();
  }

  mutable std::mutex mu_;
  std::condition_variable changed_;
  std::mt19937_64 random_;
  bool dead_ = false;
  bool sync_has_failed_ = false;
  std::optional<uint32_t> changes_left_;
  // Of files that were written: others have been there all along.
  std::map<std::string, uint64_t> synced_bytes_;
  std::vector<NameChange> names_;
};

class FaultyDisk::GrowingFile final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  GrowingFile(std::shared_ptr<Rep> rep, std::string path,
              std::unique_ptr<rocksdb::FSWritableFile> file)
      : FSWritableFileOwnerWrapper(std::move(file)),
        rep_(std::move(rep)),
        path_(std::move(path)),
        bytes_(target()->GetFileSize(IOOptions(), nullptr)) {}

  IOStatus Append(const Slice& data, const IOOptions& options, IODebugContext* debug) override {
    size_t kept = 0;
    const IOStatus begun = rep_->Begin(Change::kGrow, data.size(), &kept);
    const Slice part(data.data(), begun.ok() ? data.size() : kept);
    const IOStatus done = target()->Append(part, options, debug);
    if (done.ok()) bytes_ += part.size();
    return begun.ok() ? done : begun;
  }
  IOStatus Append(const Slice& data, const IOOptions& options, const rocksdb::DataVerificationInfo&,
                  IODebugContext* debug) override {
    return Append(data, options, debug);
  }
  IOStatus Truncate(uint64_t size, const IOOptions& options, IODebugContext* debug) override {
    if (const IOStatus begun = rep_->Begin(Change::kOther); !begun.ok()) return begun;
    bytes_ = size;
    return target()->Truncate(size, options, debug);
  }
  IOStatus Sync(const IOOptions&, IODebugContext*) override {
    // What another thread appends meanwhile is not promised.
    const uint64_t bytes = bytes_;
    if (const IOStatus begun = rep_->Begin(Change::kSync); !begun.ok()) return begun;
    rep_->Synced(path_, bytes);
    return IOStatus::OK();
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* debug) override {
    return Sync(options, debug);
  }
  IOStatus RangeSync(uint64_t, uint64_t, const IOOptions&, IODebugContext*) override {
    return IOStatus::OK();
  }

 private:
  const std::shared_ptr<Rep> rep_;
  const std::string path_;
  std::atomic<uint64_t> bytes_;
};

class FaultyDisk::RandomFile final : public rocksdb::FSRandomAccessFileWrapper {
 public:
  RandomFile(std::shared_ptr<Rep> rep, std::unique_ptr<rocksdb::FSRandomAccessFile> file)
      : FSRandomAccessFileWrapper(file.get()), rep_(std::move(rep)), file_(std::move(file)) {}

  IOStatus Read(uint64_t offset, size_t n, const IOOptions& options, Slice* result, char* scratch,
                IODebugContext* debug) const override {
    if (!rep_->BeginRead()) return IOStatus::IOError("injected");
    const IOStatus done = target()->Read(offset, n, options, result, scratch, debug);
    if (!done.ok()) return done;
    if (const auto bit = rep_->Flip(8 * result->size()); bit && result->data() == scratch) {
      scratch[*bit / 8] = static_cast<char>(scratch[*bit / 8] ^ 1 << *bit % 8);
    }
    return done;
  }
  IOStatus MultiRead(rocksdb::FSReadRequest* requests, size_t count, const IOOptions& options,
                     IODebugContext* debug) override {
    for (size_t i = 0; i < count; ++i) {
      rocksdb::FSReadRequest& request = requests[i];
      request.status =
          Read(request.offset, request.len, options, &request.result, request.scratch, debug);
    }
    return IOStatus::OK();
  }
  IOStatus Prefetch(uint64_t, size_t, const IOOptions&, IODebugContext*) override {
    return IOStatus::NotSupported("prefetch");
  }

 private:
  const std::shared_ptr<Rep> rep_;
  const std::unique_ptr<rocksdb::FSRandomAccessFile> file_;
};

class FaultyDisk::Folder final : public rocksdb::FSDirectory {
 public:
  explicit Folder(std::shared_ptr<Rep> rep) : rep_(std::move(rep)) {}

  IOStatus Fsync(const IOOptions&, IODebugContext*) override {
    if (const IOStatus begun = rep_->Begin(Change::kSync); !begun.ok()) return begun;
    rep_->SyncedNames();
    return IOStatus::OK();
  }
  IOStatus Close(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }

 private:
  const std::shared_ptr<Rep> rep_;
};

class FaultyDisk::Files final : public rocksdb::FileSystemWrapper {
 public:
  explicit Files(std::shared_ptr<Rep> rep)
      : FileSystemWrapper(rocksdb::FileSystem::Default()), rep_(std::move(rep)) {}

  static const char* kClassName() { return "FaultyDisk"; }
  const char* Name() const override { return kClassName(); }

  IOStatus NewWritableFile(const std::string& path, const rocksdb::FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* file,
                           IODebugContext* debug) override {
    if (const IOStatus begun = rep_->Begin(Change::kGrow); !begun.ok()) return begun;
    const IOStatus opened = target()->NewWritableFile(path, options, file, debug);
    if (!opened.ok()) return opened;
    rep_->Created(path);
    *file = std::make_unique<GrowingFile>(rep_, path, std::move(*file));
    return opened;
  }
  // Its users would not be seen by the others.
  IOStatus ReopenWritableFile(const std::string&, const rocksdb::FileOptions&,
                              std::unique_ptr<rocksdb::FSWritableFile>*, IODebugContext*) override {
    return IOStatus::NotSupported("reopening a file");
  }
  IOStatus ReuseWritableFile(const std::string&, const std::string&, const rocksdb::FileOptions&,
                             std::unique_ptr<rocksdb::FSWritableFile>*, IODebugContext*) override {
    return IOStatus::NotSupported("reusing a file");
  }
  IOStatus LinkFile(const std::string&, const std::string&, const IOOptions&,
                    IODebugContext*) override {
    return IOStatus::NotSupported("linking a file");
  }
  IOStatus NewRandomAccessFile(const std::string& path, const rocksdb::FileOptions& options,
                               std::unique_ptr<rocksdb::FSRandomAccessFile>* file,
                               IODebugContext* debug) override {
    const IOStatus opened = target()->NewRandomAccessFile(path, options, file, debug);
    if (opened.ok()) *file = std::make_unique<RandomFile>(rep_, std::move(*file));
    return opened;
  }
  IOStatus NewDirectory(const std::string&, const IOOptions&,
                        std::unique_ptr<rocksdb::FSDirectory>* folder, IODebugContext*) override {
    *folder = std::make_unique<Folder>(rep_);
    return IOStatus::OK();
  }
  IOStatus DeleteFile(const std::string& path, const IOOptions& options,
                      IODebugContext* debug) override {
    if (const IOStatus begun = rep_->Begin(Change::kOther); !begun.ok()) return begun;
    rep_->Deleted(path);
    return target()->DeleteFile(path, options, debug);
  }
  IOStatus Truncate(const std::string& path, size_t bytes, const IOOptions& options,
                    IODebugContext* debug) override {
    if (const IOStatus begun = rep_->Begin(Change::kOther); !begun.ok()) return begun;
    return target()->Truncate(path, bytes, options, debug);
  }
  IOStatus RenameFile(const std::string& from, const std::string& to, const IOOptions& options,
                      IODebugContext* debug) override {
    if (const IOStatus begun = rep_->Begin(Change::kOther); !begun.ok()) return begun;
    std::optional<std::string> before;
    if (std::ifstream in(to, std::ios::binary); in) {
      before.emplace(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    }
    rep_->Renamed(from, to, std::move(before));
    return target()->RenameFile(from, to, options, debug);
  }

 private:
  const std::shared_ptr<Rep> rep_;
};

FaultyDisk::FaultyDisk(uint64_t seed)
    : rep_(std::make_shared<Rep>(seed)),
      env_(rocksdb::NewCompositeEnv(std::make_shared<Files>(rep_))) {}
FaultyDisk::~FaultyDisk() = default;

rocksdb::Env* FaultyDisk::env() const { return env_.get(); }

void FaultyDisk::SetWritesFail(bool fail) {
  rep_->Set([fail](Rep& rep) { rep.writes_fail = fail; });
}
void FaultyDisk::SetSyncsFail(bool fail) {
  rep_->Set([fail](Rep& rep) { rep.syncs_fail = fail; });
}
void FaultyDisk::SetFull(bool full) {
  rep_->Set([full](Rep& rep) { rep.full = full; });
}
void FaultyDisk::SetReadsFail(bool fail) {
  rep_->Set([fail](Rep& rep) { rep.reads_fail = fail; });
}
void FaultyDisk::SetFlips(uint32_t one_in) {
  rep_->Set([one_in](Rep& rep) { rep.flips_one_in = one_in; });
}
void FaultyDisk::SetReadsStall(bool stall) {
  rep_->Set([stall](Rep& rep) { rep.reads_stall = stall; });
}
void FaultyDisk::Heal() {
  rep_->Set([](Rep& rep) { rep.HealLocked(); });
}
void FaultyDisk::DieAfter(uint32_t changes) { rep_->DieAfter(changes); }
bool FaultyDisk::dead() const { return rep_->dead(); }
bool FaultyDisk::sync_has_failed() const { return rep_->sync_has_failed(); }
void FaultyDisk::Restart(Loss loss) { rep_->Restart(loss); }

}  // namespace terrace::testing
