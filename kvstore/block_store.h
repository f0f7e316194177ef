// BlockStore: immutable blocks in host memory and on disk. What the engine builds sequences from.
//
// A segment is written by one owner, block after block: Reserve makes room, the owner fills the
// open rows, Seal publishes rows and piece together (I4) and queues them for the disk. Blocks
// are read through pins (I3). Which segments live, and up to which block, is what manifests say:
// committing or deleting one moves the reference counts and frees what nobody refers to.
//
// Bytes of a block are verified when they come from disk (CRC32C per granule and piece, I1).
//
// Thread-safe, but a segment has one writer at a time: Reserve, OpenRows, Seal, RestoreTail,
// CutTail, Unseal, WriteTail, and Flush with tail rows, of one segment must not run concurrently
// with each other, but OpenRows with OpenRows, and Seal with Seal of another head. Pins must not
// outlive the store.
#ifndef TERRACE_KVSTORE_BLOCK_STORE_H_
#define TERRACE_KVSTORE_BLOCK_STORE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvstore/block_key.h"
#include "kvstore/block_layout.h"
#include "kvstore/extent_ranking.h"
#include "kvstore/placement_policy.h"
#include "kvstore/tier_stats.h"

namespace terrace::kvstore {

enum class Durability {
  // Blocks are written only when Flush asks for it. Manifests are written all the same.
  kNone,
  // Sealed blocks are written behind; they survive the process, not the machine.
  kAsync,
  // As kAsync, and each batch is synced.
  kSync,
};

struct StoreOptions {
  // Host memory for rows, stripes and open blocks. Bytes, at least 1 MiB.
  uint64_t host_bytes = uint64_t{4} << 30;
  // Folder of the disk tier; empty for a store without disk.
  std::string disk_path;
  // Physical bytes on disk. At least 64 MiB.
  uint64_t disk_bytes = uint64_t{64} << 30;
  Durability durability = Durability::kAsync;
  // Names this shard in segment ids.
  uint16_t shard = 0;
  // Threads that read from disk, [1, 64].
  int reader_threads = 8;
  // Bypass the page cache on reads where the file system can; DiskStats() says whether it does.
  bool direct_reads = true;
  // Who keeps its place in host memory.
  PolicyKind placement = kDefaultPolicy;

  absl::Status Validate() const;
};

// State of one segment; opaque. Holders: the store, and the engine's sequences (both may outlive
// the other's interest).
class Segment;
using SegmentRef = std::shared_ptr<Segment>;

inline constexpr uint32_t kOpenEnd = UINT32_MAX;

// Blocks [first_block, end_block) of one segment; end_block kOpenEnd marks the one being written.
struct SegmentRange {
  SegmentRef segment;
  uint32_t first_block = 0;
  uint32_t end_block = 0;
};

// What survives of a sequence: its name, what the owner wants back, and its ranges.
struct Manifest {
  // Unique, 1 to 255 bytes.
  std::string name;
  // The owner's bytes, returned as they are.
  std::string attributes;
  // In order; only the last may be open-ended. Ranges cover blocks from 0 without holes.
  std::vector<SegmentRange> ranges;
  // Of one that was recovered: DataLoss when what a segment of it holds on disk is not known,
  // though it may all be there. It can be deleted, and nothing else.
  absl::Status damage = {};
};

// How much of a segment's layer is durable, all heads.
struct DurableExtent {
  // Blocks before this one (from the segment's first block on) are on disk.
  uint32_t end_block = 0;
  // Rows of block `end_block` that a flush has written.
  uint32_t tail_rows = 0;
};

// Cells of one extent to read: granules of a block's rows, or blocks of a stripe.
struct ReadRequest {
  Segment* segment = nullptr;
  uint16_t layer = 0;
  uint16_t head = 0;
  // Block for rows, stripe (block / stripe_blocks) for stripes.
  uint32_t index = 0;
  // Bit i: cell i is wanted. Not 0.
  uint64_t cells = 0;
  // What they are worth to the reader, by which blocks are placed: any measure, at least 0.
  float mass = kUntoldMass;
};

// Outcome of one ReadRequest.
struct PinnedExtent {
  // Start of the rows or of the stripe; only wanted, not missing cells may be read.
  const std::byte* data = nullptr;
  // Cells that came from disk for this request; the rest was in memory.
  uint64_t from_disk = 0;
  // Wanted cells that could not be read; `status` says why.
  uint64_t missing = 0;
  // OK, or why some are missing: NotFound (no such layer, head or cell, or one that is not sealed
  // or freed), DataLoss (checksum; names the cell), DeadlineExceeded, Unavailable (read error), or
  // ResourceExhausted (no memory to read into, not even scratch). DataLoss before all others.
  absl::Status status;
  // Bytes of the values read from disk for this request, each a cell and its checksum of 4 bytes;
  // what others read is theirs.
  uint64_t disk_bytes = 0;
};

// Keeps extents in place while they are read. Move-only; releases on destruction.
class Pins {
 public:
  Pins();
  Pins(Pins&&) noexcept;
  Pins& operator=(Pins&&) noexcept;
  ~Pins();

  // One per request, in order.
  absl::Span<const PinnedExtent> extents() const;

 private:
  friend class BlockStoreImpl;
  friend class ExtentReader;
  class State;
  std::unique_ptr<State> state_;
};

// What a park found in memory of a manifest's blocks: the memory they take, in bytes.
struct ParkedBytes {
  uint64_t freed_rows = 0;
  uint64_t freed_index = 0;
  // Stays: named by a manifest that is not parked, pinned, or not on disk.
  uint64_t kept = 0;
};

// Where the blocks of some range live.
struct Residency {
  uint64_t sealed_blocks = 0;
  // Of these, those that have at least some of their rows in memory.
  uint64_t host_blocks = 0;
  uint64_t disk_blocks = 0;
  // With those of open blocks.
  uint64_t host_row_bytes = 0;
  uint64_t host_index_bytes = 0;
  // Stored bytes of rows and pieces on disk.
  uint64_t disk_bytes = 0;
};

class BlockStore {
 public:
  // Opens or creates. Indexes manifests, reads no blocks. FailedPrecondition when the folder is
  // of another format version or shard, or has blocks too large for so little host memory;
  // Unavailable when another process holds it.
  static absl::StatusOr<std::unique_ptr<BlockStore>> Open(const StoreOptions& options);
  // Stops writing behind; blocks that are not on disk by now are lost.
  virtual ~BlockStore() = default;

  // Manifests found at Open, each once: the caller takes over the segments.
  virtual std::vector<Manifest> TakeRecovered() = 0;

  // A new segment whose first block is `first_block`. It lives while a manifest names it or
  // the caller holds the reference.
  virtual absl::StatusOr<SegmentRef> CreateSegment(const BlockLayout& layout,
                                                   uint32_t first_block) = 0;

  // Adds or replaces the manifests of those names, all or none; with a disk they survive the
  // process when it returns OK, and with kSync the machine. Blocks that no manifest refers to any
  // more are freed in all tiers. On error the old manifests stand. ResourceExhausted at the disk
  // budget, after up to 10 s of making room of garbage; one that frees something, or is no larger
  // than what it replaces, may use what is kept for that.
  // Unavailable when writing fails; FailedPrecondition when one names what is freed;
  // DeadlineExceeded, and nothing changed, when other writes kept the disk busy until `deadline`.
  // Requires: no name twice.
  virtual absl::Status CommitManifests(absl::Span<const Manifest> manifests,
                                       absl::Time deadline) = 0;
  absl::Status CommitManifest(const Manifest& manifest, absl::Time deadline) {
    return CommitManifests({&manifest, 1}, deadline);
  }
  // NotFound when there is none of one of them; then all stay. Frees and waits as above, and needs
  // no room on disk.
  // Requires: no name twice.
  virtual absl::Status DeleteManifests(absl::Span<const std::string> names,
                                       absl::Time deadline) = 0;
  absl::Status DeleteManifest(const std::string& name, absl::Time deadline) {
    return DeleteManifests({&name, 1}, deadline);
  }

  // Takes the blocks that a manifest names out of memory: rows, stripes and open rows. Leaves alone
  // what a manifest that is not parked names too, what is pinned (I3), and sealed blocks that are
  // not on disk. Open rows are forgotten: RestoreTail brings those back that a flush has written.
  // The manifest is parked until Unpark; those that were recovered are from the start.
  // Requires: nobody writes its open segment meanwhile. FailedPrecondition without a disk; NotFound
  // when there is no such manifest.
  virtual absl::StatusOr<ParkedBytes> Park(std::string_view name) = 0;
  // What it names is in use again. Nothing to do when it is not parked, or not there.
  virtual void Unpark(std::string_view name) = 0;

  // Makes room in host memory for the open rows of blocks [first_block, end_block) of every head
  // of a layer, and for the pieces they will add. Evicts, then waits for a disk writer at work
  // until `deadline`, a few seconds at most. ResourceExhausted when there is no room then; what was
  // reserved stays reserved. Idempotent; heads whose block is sealed already are left alone.
  // FailedPrecondition when a manifest has given those blocks up.
  virtual absl::Status Reserve(Segment& segment, uint16_t layer, uint32_t first_block,
                               uint32_t end_block, absl::Time deadline) = 0;
  // The same for the open rows alone: whoever comes to seal those blocks reserves them before.
  virtual absl::Status ReserveRows(Segment& segment, uint16_t layer, uint32_t first_block,
                                   uint32_t end_block, absl::Time deadline) = 0;
  // Rows of a reserved, unsealed block: [block_tokens][row_bytes]. Stable until sealed, parked, or
  // the segment ends.
  virtual std::byte* OpenRows(Segment& segment, uint16_t layer, uint16_t head, uint32_t block) = 0;
  // Those of every head, [heads].
  virtual void OpenRows(Segment& segment, uint16_t layer, uint32_t block,
                        absl::Span<std::byte*> rows) = 0;
  // Publishes full blocks [first_block, end_block) of one head: their rows as they stand, and their
  // pieces (piece_bytes each), one after the other. Readers that learn of a block afterwards see
  // both. Blocks of one stripe cost less together than one by one.
  // Requires: reserved, and all blocks before them sealed.
  virtual void Seal(Segment& segment, uint16_t layer, uint16_t head, uint32_t first_block,
                    uint32_t end_block, absl::Span<const std::byte> pieces) = 0;
  // Blocks [first, SealedEnd) of that layer and head are sealed; immutable until Unseal.
  virtual uint32_t SealedEnd(const Segment& segment, uint16_t layer, uint16_t head) const = 0;
  // Brings back the rows of Durable().end_block of one layer that a flush wrote before a restart or
  // a park; reserves them. OK when there are none. DataLoss when they are corrupt, Unavailable when
  // they cannot be read, DeadlineExceeded; the errors of Reserve.
  virtual absl::Status RestoreTail(Segment& segment, uint16_t layer, absl::Time deadline) = 0;
  // Forgets flushed rows of unsealed blocks from row `rows` of block `block` on; call it before
  // they are overwritten (truncate). Those below stay durable. Survives the process when it returns
  // OK; writes nothing when there are none. DeadlineExceeded, Unavailable, or ResourceExhausted as
  // for a manifest: nothing has changed.
  virtual absl::Status CutTail(Segment& segment, uint32_t block, uint32_t rows,
                               absl::Time deadline) = 0;
  // Takes the seals off blocks from `block` on (truncate). Of `block`, rows below `rows` stay:
  // open, and as durable as they were; all else is forgotten, of open blocks too. Survives the
  // process when it returns OK. By layer, whether the rows that stay are on disk only: RestoreTail
  // brings them back. FailedPrecondition when a manifest besides the owner's names some of those
  // blocks, somebody pins them or some of their stripe, or the rows that stay are partly on disk
  // only. DeadlineExceeded, ResourceExhausted, Unavailable. On error nothing has changed. Requires:
  // one manifest names the segment with an open end; rows < block_tokens.
  virtual absl::StatusOr<std::vector<bool>> Unseal(Segment& segment, uint32_t block, uint32_t rows,
                                                   absl::Time deadline) = 0;
  // Writes rows of open blocks as Flush does, for a segment that holds copies of durable rows and
  // that no manifest names yet. They are durable when the manifest that comes to name it is, and
  // take of the disk what that may, as it gives up as much.
  // Requires: all sealed blocks are on disk, or there are none.
  virtual absl::Status WriteTail(Segment& segment, absl::Span<const uint32_t> tail_rows,
                                 absl::Time deadline) = 0;

  // Rows of sealed blocks, and of open blocks up to what the caller knows is written (no cells
  // of an open block are ever missing). Reads what is not in memory from disk, in one batch,
  // and keeps it there when there is room that it is worth.
  virtual Pins PinRows(absl::Span<const ReadRequest> requests, absl::Time deadline) = 0;
  // Rows that somebody will probably ask for: brings what is on disk only into memory, unless what
  // would give way is worth more. Waits until that is done, `deadline` at most; tells no errors,
  // who asks for them will see. It is no reference to them.
  virtual void ReadAhead(absl::Span<const ReadRequest> requests, absl::Time deadline) = 0;
  // Stripes; as PinRows. Cells of a stripe are its sealed blocks.
  virtual Pins PinStripes(absl::Span<const ReadRequest> requests, absl::Time deadline) = 0;

  // Waits until all blocks sealed so far are on disk, and has them written if nobody does.
  // FailedPrecondition without a disk, or when the segment is freed; DeadlineExceeded; the error of
  // a write that failed meanwhile.
  virtual absl::Status AwaitDurable(Segment& segment, absl::Time deadline) = 0;
  // As AwaitDurable, then writes the given rows of open blocks, and syncs. tail_rows: rows of the
  // open block of each layer, [layers]; empty leaves what is on disk of open blocks as it is (a
  // segment that somebody else writes). FailedPrecondition without a disk; ResourceExhausted at the
  // disk budget, when there is no garbage to make room of or that took until `deadline`;
  // Unavailable when writes fail; DeadlineExceeded.
  virtual absl::Status Flush(Segment& segment, absl::Span<const uint32_t> tail_rows,
                             absl::Time deadline) = 0;
  // What a crash would leave, per layer.
  virtual DurableExtent Durable(const Segment& segment, uint16_t layer) const = 0;

  virtual const BlockLayout& layout(const Segment& segment) const = 0;
  virtual SegmentId id(const Segment& segment) const = 0;
  // Blocks [first_block, end_block) of one layer, all heads. Costs as much as the range, or what it
  // leaves out of the segment, is long, whichever is less: a whole segment costs nothing.
  virtual Residency Describe(const Segment& segment, uint16_t layer, uint32_t first_block,
                             uint32_t end_block) const = 0;
  virtual TierStats HostStats() const = 0;
  // All zero without a disk.
  virtual TierStats DiskStats() const = 0;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_BLOCK_STORE_H_
