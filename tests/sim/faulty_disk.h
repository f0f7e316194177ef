// FaultyDisk: the system's files as a database sees them that lives on a bad disk, in a process
// that is killed, on a machine that loses power. A RocksDB file system over the default one.
//
// Faults: writes and syncs that fail, a full disk, reads that fail, that come back with a flipped
// bit, or that do not come back until they are let go; death in the middle of any write; and
// the loss of everything that was not synced. Syncs do not reach the device: what counts as synced
// is what this has seen.
//
// Thread-safe. Outlives all databases that are opened on it.
#ifndef TERRACE_TESTS_SIM_FAULTY_DISK_H_
#define TERRACE_TESTS_SIM_FAULTY_DISK_H_

#include <cstdint>
#include <memory>

namespace rocksdb {
class Env;
}  // namespace rocksdb

namespace terrace::testing {

class FaultyDisk {
 public:
  // The seed decides which bits flip, and how much of what is torn or not synced is left.
  explicit FaultyDisk(uint64_t seed);
  ~FaultyDisk();
  FaultyDisk(const FaultyDisk&) = delete;
  FaultyDisk& operator=(const FaultyDisk&) = delete;

  rocksdb::Env* env() const;

  void SetWritesFail(bool fail);
  void SetSyncsFail(bool fail);
  // Writes that grow a file fail, for want of room.
  void SetFull(bool full);
  void SetReadsFail(bool fail);
  // One read in `one_in` has a flipped bit; 0 for none.
  void SetFlips(uint32_t one_in);
  // Reads wait until they are told not to.
  void SetReadsStall(bool stall);
  // No fault is left but a death.
  void Heal();

  // The process dies at the end of so many more writes, syncs, renames and deletions, or within the
  // last one: from there on nothing changes on disk.
  void DieAfter(uint32_t changes);
  bool dead() const;
  // Whether a sync has failed since the last restart: what it should have kept may be there or not.
  bool sync_has_failed() const;

  enum class Loss {
    // The process is gone, the machine stands: what was written is there.
    kNothing,
    // Of each file what was synced and any part of what was appended then; of new names any part,
    // in
    // order. So a journaling file system writes: no length without its bytes.
    kUnsynced,
  };
  // Requires: no database is open on it.
  void Restart(Loss loss);

 private:
  class Rep;
  class GrowingFile;
  class RandomFile;
  class Folder;
  class Files;
  const std::shared_ptr<Rep> rep_;
  const std::unique_ptr<rocksdb::Env> env_;
};

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_SIM_FAULTY_DISK_H_
