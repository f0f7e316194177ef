// ExtentReader pins extents and brings their missing cells from disk.
//
// A cell that is missing is claimed by one request, which alone may write its bytes; the others
// wait for it. When there is no room the cells go into scratch memory of the request instead, so
// that what is on disk can always be read; scratch is bounded too.
//
// Thread-safe.
#ifndef TERRACE_KVSTORE_EXTENT_READER_H_
#define TERRACE_KVSTORE_EXTENT_READER_H_

#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvstore/block_store.h"
#include "kvstore/cell_read.h"
#include "kvstore/reader_pool.h"
#include "kvstore/store_core.h"

namespace terrace::kvstore {

// Memory of one request for an extent that found no room.
class Scratch {
 public:
  // Null when `used` would exceed `limit`. `used` must outlive it.
  static std::shared_ptr<Scratch> Create(size_t bytes, uint64_t limit, std::atomic<uint64_t>& used);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  std::byte* data() const { return data_.get(); }

 private:
  Scratch(size_t bytes, std::atomic<uint64_t>& used);

  const size_t bytes_;
  std::atomic<uint64_t>& used_;
  const std::unique_ptr<std::byte[]> data_;
};

class Pins::State {
 public:
  explicit State(StoreCore& core) : core_(core) {}
  ~State();
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  std::vector<PinnedExtent> extents;
  // By request; without a segment where the request was refused.
  std::vector<ExtentRef> refs;
  // Shared with whoever else holds the segment: pinned extents live in it.
  std::vector<SegmentRef> segments;
  // Shared with reads that still run when their deadline has passed.
  std::vector<std::shared_ptr<Scratch>> scratch;

 private:
  StoreCore& core_;
};

class ExtentReader {
 public:
  explicit ExtentReader(StoreCore& core);

  std::unique_ptr<Pins::State> Pin(ExtentKind kind, absl::Span<const ReadRequest> requests,
                                   absl::Time deadline);
  // Brings missing rows into memory where the host tier finds them worth it, until `deadline`;
  // rows that somebody reads already are left to him.
  void ReadAhead(absl::Span<const ReadRequest> requests, absl::Time deadline);
  // Reads the tails of these blocks, in order, each as DiskTier::ReadTail. DeadlineExceeded when
  // the disk takes longer than `deadline`.
  absl::StatusOr<std::vector<absl::StatusOr<std::string>>> ReadTails(std::vector<BlockKey> blocks,
                                                                     const BlockLayout& layout,
                                                                     uint32_t rows,
                                                                     absl::Time deadline);

 private:
  // Where cells that are read go.
  struct Target {
    ExtentRef ref;
    // Of the call.
    size_t request = 0;
    std::byte* extent = nullptr;
    // Scratch: nobody else sees it.
    bool is_private = false;
    // Segment::unseals when it was asked for.
    uint32_t unseals = 0;
  };
  // Cells that are read together. Shared by the request, which may give up on it, and the threads
  // that work on it.
  struct Batch {
    absl::Time deadline;
    size_t step = 0;
    std::vector<CellRead> reads;
    // Parallel to `reads`: what it is for, and its cell there.
    std::vector<Target> targets;
    std::vector<uint8_t> cells;
    // What keeps the targets alive.
    std::vector<SegmentRef> segments;
    std::vector<std::shared_ptr<Scratch>> scratch;

    // Guarded by the mutex of the core. Outcomes of published reads may be read.
    std::vector<bool> published;
    size_t next = 0;
    size_t published_count = 0;
  };
  // One call to Pin.
  struct Call {
    ExtentKind kind;
    absl::Span<const ReadRequest> requests;
    absl::Time deadline;
    Pins::State& state;
    // By request: cells still to come.
    std::vector<uint64_t> rest;
    // Nobody has asked for it yet.
    bool ahead = false;

    bool Done() const;
  };

  void Run(Call& call);
  // Pins the request's extent and takes from it what is in memory.
  void Admit(Call& call, size_t request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  // Reads of all cells still to come that nobody else reads.
  std::shared_ptr<Batch> Claim(Call& call) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  void ClaimCells(Call& call, size_t request, Batch& batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  void AddReads(const Target& target, uint64_t cells, Batch& batch)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  // Reads the next cells of a batch; false when there are none.
  bool RunStep(Batch& batch);
  void Publish(Batch& batch, size_t read) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  // Gives up what has not been started; what runs goes on without the request.
  void Cancel(Batch& batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  // Waits for the batch and for the reads of others, and enters the outcomes.
  void Settle(Call& call, Batch& batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  void Collect(Call& call, const Batch& batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);

  StoreCore& core_;
  const uint64_t scratch_limit_;
  std::atomic<uint64_t> scratch_bytes_ = 0;
  // Last: its threads use the rest.
  ReaderPool pool_;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_EXTENT_READER_H_
