// DiskTier: blocks, manifests and watermarks in one RocksDB.
//
// A batch is atomic: blocks and the watermark that says they are there are one batch, so that after
// a crash the watermark is exact (I6). Physical bytes are bounded before each write (I5); deleted
// blocks count until Reclaim has compacted them away.
//
// Thread-safe, but writes must not run concurrently with each other.
#ifndef TERRACE_KVSTORE_DISK_TIER_H_
#define TERRACE_KVSTORE_DISK_TIER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvstore/block_key.h"
#include "kvstore/block_store.h"
#include "kvstore/cell_read.h"
#include "kvstore/disk_batch.h"
#include "kvstore/disk_index.h"

namespace rocksdb {
class Env;
}  // namespace rocksdb

namespace terrace::kvstore {

enum class DiskOperation { kRead, kWrite, kReclaim };
// For tests: asked before each operation; an error takes the operation's place. May block.
using DiskFault = std::function<absl::Status(DiskOperation)>;

struct DiskTierOptions {
  std::string path;
  // Physical bytes. At least 64 MiB.
  uint64_t bytes = 0;
  uint16_t shard = 0;
  bool direct_reads = true;
  DiskFault fault;
  // Whose files; outlives the tier. Null: the system's. Tests have one that fails and forgets.
  rocksdb::Env* env = nullptr;
};

class DiskTier {
 public:
  // FailedPrecondition when the folder is of another format version or shard, or not ours;
  // Unavailable when it is locked or cannot be opened; DataLoss when its index is corrupt.
  static absl::StatusOr<std::unique_ptr<DiskTier>> Open(const DiskTierOptions& options);
  ~DiskTier();

  // What can be read of it. Unavailable when reading fails.
  absl::StatusOr<DiskIndex> LoadIndex();
  // Never returned before, across restarts.
  absl::StatusOr<SegmentId> NextSegmentId();

  enum class Growth {
    // Leaves the headroom alone.
    kBounded,
    // May use the headroom: it gives up as much as it takes, though that room comes back later
    // only.
    // Refused when it might not fit the whole budget, but for what Reclaim needs.
    kReplaces,
    // Never refused: deletions, which are small, and as many as there is to delete.
    kFrees,
  };
  // ResourceExhausted when the batch does not fit; Unavailable when writing fails. Then nothing
  // of it is visible, and the same batch may be written again.
  absl::Status Write(const DiskBatch& batch, bool sync, Growth growth);
  // Makes everything written so far survive the machine.
  absl::Status Sync();

  // Reads in one batch and verifies; each has its outcome, nothing else fails. The bytes of cells
  // that are not kRead are unspecified.
  void Read(absl::Span<CellRead> reads, absl::Time deadline);
  // The first `rows` rows of an open block, or more: from its tail, or where it has none, from what
  // it was when it was sealed. NotFound; DataLoss when corrupt.
  absl::StatusOr<std::string> ReadTail(const BlockKey& block, const BlockLayout& layout,
                                       uint32_t rows);

  // Compacts away what was deleted or written anew, until no more than `goal_bytes` are used, or
  // there is nothing more to gain: then true. Slow: it rewrites what lies in between, and keeps the
  // room for that from writers. Gives up, with an error, when `cancelled` becomes true, as it does
  // when the database has to be opened anew; DataLoss when it met what is corrupt. May run beside
  // everything but itself.
  absl::StatusOr<bool> Reclaim(uint64_t goal_bytes, std::atomic<bool>& cancelled);
  // Keys of all records whose values are corrupt; DataLoss when what leads to them is. Reads the
  // whole disk, unless `cancelled` becomes true as above. May run beside everything.
  absl::StatusOr<std::vector<std::string>> FindCorrupt(std::atomic<bool>& cancelled);
  // Writes those of these records that are still corrupt anew, as corrupt as they are, so that no
  // Reclaim meets them in the files that they are in now: the first of them, some 4 MiB. How many
  // keys it took. A Write that kReplaces.
  absl::StatusOr<size_t> Rewrite(absl::Span<const std::string> keys);

  // Physical bytes: all files of the folder.
  uint64_t used_bytes() const;
  // What Write may fill; the rest is for deletions and for Reclaim.
  uint64_t budget_for_blocks() const;
  // Less garbage is not worth a Reclaim.
  uint64_t garbage_min_bytes() const;
  // The last Write or Sync has failed. What it wrote may be there if the process dies before the
  // next one has succeeded.
  bool in_doubt() const;
  // Batches written so far.
  uint64_t write_count() const;
  // Whether reads bypass the page cache.
  bool direct_reads() const;

 private:
  struct Rep;
  explicit DiskTier(std::unique_ptr<Rep> rep);

  absl::Status CheckFormat();
  absl::Status LoadSegmentCounter();
  absl::Status Fit(size_t batch_bytes, Growth growth);
  absl::Status Compact(uint64_t goal_bytes, std::atomic<bool>& cancelled, bool* is_complete);
  // Which share of the blob files may be rewritten now; keeps the room for that from writers.
  double ReserveRewriting(uint64_t blob_bytes);

  const std::unique_ptr<Rep> rep_;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_DISK_TIER_H_
