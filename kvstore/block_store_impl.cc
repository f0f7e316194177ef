#include "kvstore/block_store_impl.h"

#include <algorithm>
#include <utility>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/str_cat.h"

namespace terrace::kvstore {
namespace {

constexpr int kShardShift = 48;
// Far above any sequence, and low enough that sums of block indices do not overflow.
constexpr uint32_t kBlocksMax = uint32_t{1} << 30;

// How long Reserve waits for room that a writer at work may make, and for room that only pins in
// its way can leave. The caller may have given no deadline.
constexpr absl::Duration kWriterWait = absl::Seconds(5);
constexpr absl::Duration kPinWait = absl::Milliseconds(100);
// How long a manifest or a cut that does not fit the disk waits for garbage to go.
constexpr absl::Duration kManifestWait = absl::Seconds(10);

}  // namespace

struct BlockStoreImpl::Link {
  Mutex mu;
  BlockStoreImpl* store ABSL_GUARDED_BY(mu) = nullptr;
};

absl::StatusOr<std::unique_ptr<BlockStore>> OpenBlockStore(const StoreOptions& options,
                                                           DiskFault fault, rocksdb::Env* env) {
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  auto pool = ExtentPool::Create(options.host_bytes);
  if (!pool.ok()) return pool.status();
  std::unique_ptr<DiskTier> disk;
  if (!options.disk_path.empty()) {
    auto opened = DiskTier::Open({.path = options.disk_path,
                                  .bytes = options.disk_bytes,
                                  .shard = options.shard,
                                  .direct_reads = options.direct_reads,
                                  .fault = std::move(fault),
                                  .env = env});
    if (!opened.ok()) return opened.status();
    disk = *std::move(opened);
  }
  auto store = std::make_unique<BlockStoreImpl>(options, *std::move(pool), std::move(disk));
  if (absl::Status status = store->Recover(); !status.ok()) return status;
  return store;
}

BlockStoreImpl::BlockStoreImpl(const StoreOptions& options, std::unique_ptr<ExtentPool> pool,
                               std::unique_ptr<DiskTier> disk)
    : link_(std::make_shared<Link>()),
      core_(options, std::move(pool), std::move(disk)),
      reclaimer_(core_.disk == nullptr ? nullptr : std::make_unique<Reclaimer>(core_)),
      writer_(core_.disk == nullptr ? nullptr : std::make_unique<WriteBehind>(core_, *reclaimer_)),
      demoter_(core_.disk == nullptr ? nullptr : std::make_unique<Demoter>(core_)),
      manifests_(core_, writer_.get()),
      reader_(core_),
      tails_(core_, reader_) {
  MutexLock lock(link_->mu);
  link_->store = this;
}

BlockStoreImpl::~BlockStoreImpl() {
  // It looks at extents of segments that from here on go without leaving the host tier.
  demoter_.reset();
  // From here on segments go quietly.
  MutexLock lock(link_->mu);
  link_->store = nullptr;
}

absl::Status BlockStoreImpl::Recover() {
  if (core_.disk == nullptr) return absl::OkStatus();
  const auto make_segment = [this](SegmentId id, const BlockLayout& layout, uint32_t first_block) {
    return MakeSegment(id, layout, first_block);
  };
  if (absl::Status status = manifests_.Recover(make_segment); !status.ok()) return status;
  reclaimer_->Watch();
  return absl::OkStatus();
}

absl::Status BlockStoreImpl::WithRoom(absl::Time deadline,
                                      absl::FunctionRef<absl::Status()> write) {
  return reclaimer_ == nullptr ? write() : reclaimer_->WithRoom(deadline, write);
}

absl::Status BlockStoreImpl::CommitManifests(absl::Span<const Manifest> manifests,
                                             absl::Time deadline) {
  return WithRoom(std::min(deadline, absl::Now() + kManifestWait),
                  [&] { return manifests_.Commit(manifests, deadline); });
}

SegmentRef BlockStoreImpl::MakeSegment(SegmentId id, const BlockLayout& layout,
                                       uint32_t first_block) {
  const auto release = [link = link_](Segment* segment) {
    {
      MutexLock lock(link->mu);
      if (link->store != nullptr) link->store->manifests_.Abandon(*segment);
    }
    delete segment;
  };
  return SegmentRef(new Segment(&core_, id, layout, first_block), release);
}

absl::StatusOr<SegmentRef> BlockStoreImpl::CreateSegment(const BlockLayout& layout,
                                                         uint32_t first_block) {
  if (absl::Status status = layout.Validate(); !status.ok()) return status;
  if (first_block >= kBlocksMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("first block ", first_block, ", allowed: below ", kBlocksMax));
  }
  size_t largest = 0;
  {
    MutexLock lock(core_.mu);
    largest = core_.host.largest_extent();
  }
  if (std::max(layout.rows_bytes(), layout.stripe_bytes()) > largest) {
    return absl::InvalidArgumentError(absl::StrCat(
        "block layout: rows of ", layout.rows_bytes(), " and stripes of ", layout.stripe_bytes(),
        " bytes; ", core_.options.host_bytes, " bytes of host memory allow ", largest, " each"));
  }
  if (core_.disk == nullptr) {
    MutexLock lock(core_.mu);
    const uint64_t shard = core_.options.shard;
    return MakeSegment(SegmentId{shard << kShardShift | ++last_id_}, layout, first_block);
  }
  const absl::StatusOr<SegmentId> id = core_.disk->NextSegmentId();
  if (!id.ok()) return id.status();
  return MakeSegment(*id, layout, first_block);
}

absl::Status BlockStoreImpl::CheckReservable(const Segment& segment, uint16_t layer,
                                             uint32_t first_block, uint32_t end_block) const {
  if (segment.dead || end_block > segment.trim_end) {
    return absl::FailedPreconditionError(
        absl::StrCat("segment ", static_cast<uint64_t>(segment.id), " is freed from block ",
                     segment.dead ? segment.first_block : segment.trim_end, " on"));
  }
  if (layer >= segment.layout.layers || first_block < segment.first_block ||
      end_block < first_block || end_block > kBlocksMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "reserve layer ", layer, " blocks [", first_block, ", ", end_block, ") of a segment of ",
        segment.layout.layers, " layers from block ", segment.first_block, " on"));
  }
  return absl::OkStatus();
}

absl::Status BlockStoreImpl::ReserveBlocks(Segment& segment, uint16_t layer, uint32_t first_block,
                                           uint32_t end_block, Pieces pieces, absl::Time deadline) {
  MutexLock lock(core_.mu);
  if (absl::Status status = CheckReservable(segment, layer, first_block, end_block); !status.ok()) {
    return status;
  }
  const bool writes_behind = core_.disk != nullptr && core_.options.durability != Durability::kNone;
  for (uint32_t block = first_block; block < end_block; ++block) {
    for (uint16_t head = 0; head < segment.layout.heads; ++head) {
      const uint16_t lane = segment.LaneIndex(layer, head);
      if (ReserveBlock(segment, lane, block, pieces)) continue;
      // Keeps I5: room comes only from the writer and from pins that go.
      const absl::Time start = absl::Now();
      do {
        if (!writes_behind) return NoRoom(segment);
        const absl::Time until =
            std::min(deadline, start + (writer_->busy() ? kWriterWait : kPinWait));
        if (absl::Now() >= until) return NoRoom(segment);
        core_.room.WaitUntil(core_.mu, until);
        if (segment.dead || end_block > segment.trim_end) {
          return CheckReservable(segment, layer, first_block, end_block);
        }
      } while (!ReserveBlock(segment, lane, block, pieces));
    }
  }
  if (core_.host.crowded()) core_.crowded.NotifyAll();
  return absl::OkStatus();
}

bool BlockStoreImpl::ReserveBlock(Segment& segment, uint16_t lane_index, uint32_t block,
                                  Pieces pieces) {
  if (block < segment.lanes[lane_index].sealed_end) return true;
  const ExtentRef rows{&segment, block - segment.first_block, lane_index, ExtentKind::kRows};
  if (segment.ExtentAt(lane_index, rows.kind, rows.index).data == nullptr &&
      !core_.host.Take(rows, Demand::kReserve)) {
    return false;
  }
  Lane& lane = segment.lanes[lane_index];
  lane.reserved_end = std::max(lane.reserved_end, block + 1);
  if (pieces == Pieces::kNot || segment.layout.planes.empty()) return true;
  const ExtentRef stripe{&segment, segment.StripeIndex(block), lane_index, ExtentKind::kStripe};
  if (segment.ExtentAt(lane_index, stripe.kind, stripe.index).data == nullptr &&
      !core_.host.Take(stripe, Demand::kReserve)) {
    return false;
  }
  lane.pieces_end = std::max(lane.pieces_end, block + 1);
  core_.host.Recount(stripe);
  return true;
}

absl::Status BlockStoreImpl::NoRoom(const Segment& segment) const {
  const TierStats stats = core_.host.stats();
  std::string message = absl::StrCat(
      "host memory: no room for a block of ", segment.layout.rows_bytes(),
      " bytes and a stripe of ", segment.layout.stripe_bytes(), "; ", stats.used_bytes, " of ",
      stats.capacity_bytes, " bytes used, ", stats.pinned_bytes, " of them pinned or not on disk");
  if (writer_ != nullptr && !writer_->status().ok()) {
    absl::StrAppend(&message, "; the disk writer: ", writer_->status().message());
  }
  return absl::ResourceExhaustedError(message);
}

std::byte* BlockStoreImpl::RowsToFill(const Segment& segment, uint16_t lane_index,
                                      uint32_t block) const {
  const Extent* extent =
      segment.FindExtent(lane_index, ExtentKind::kRows, block - segment.first_block);
  ABSL_RAW_CHECK(extent != nullptr && extent->data != nullptr, "rows are not reserved");
  return extent->data;
}

std::byte* BlockStoreImpl::OpenRows(Segment& segment, uint16_t layer, uint16_t head,
                                    uint32_t block) {
  MutexLock lock(core_.mu);
  return RowsToFill(segment, segment.LaneIndex(layer, head), block);
}

void BlockStoreImpl::OpenRows(Segment& segment, uint16_t layer, uint32_t block,
                              absl::Span<std::byte*> rows) {
  ABSL_RAW_CHECK(rows.size() == segment.layout.heads, "one place for each head");
  MutexLock lock(core_.mu);
  for (uint16_t head = 0; head < segment.layout.heads; ++head) {
    rows[head] = RowsToFill(segment, segment.LaneIndex(layer, head), block);
  }
}

void BlockStoreImpl::Seal(Segment& segment, uint16_t layer, uint16_t head, uint32_t first_block,
                          uint32_t end_block, absl::Span<const std::byte> pieces) {
  const BlockLayout& layout = segment.layout;
  const size_t piece_bytes = layout.piece_bytes();
  ABSL_RAW_CHECK(
      first_block <= end_block && pieces.size() == (end_block - first_block) * piece_bytes,
      "pieces have the wrong size");
  for (uint32_t block = first_block; block < end_block;) {
    const uint32_t end =
        std::min(end_block, block + layout.stripe_blocks - segment.StripeCell(block));
    SealInStripe(segment, segment.LaneIndex(layer, head), block, end,
                 pieces.data() + (block - first_block) * piece_bytes);
    block = end;
  }
}

void BlockStoreImpl::SealInStripe(Segment& segment, uint16_t lane_index, uint32_t first_block,
                                  uint32_t end_block, const std::byte* pieces) {
  const BlockLayout& layout = segment.layout;
  const ExtentRef ref{&segment, segment.StripeIndex(first_block), lane_index, ExtentKind::kStripe};
  const uint32_t first_cell = segment.StripeCell(first_block);
  // Blocks may be freed under the writer's hands: nobody will read them.
  const auto kept_end = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu) {
    return segment.dead ? first_block : std::min(end_block, segment.trim_end);
  };
  std::byte* stripe = nullptr;
  {
    MutexLock lock(core_.mu);
    end_block = kept_end();
    if (end_block <= first_block) return;
    const Lane& lane = segment.lanes[lane_index];
    ABSL_RAW_CHECK(first_block == lane.sealed_end && end_block <= lane.reserved_end,
                   "blocks are sealed in order, and after they were reserved");
    if (!layout.planes.empty()) {
      ABSL_RAW_CHECK(end_block <= lane.pieces_end, "pieces are reserved before they are sealed");
      // So that a manifest that frees the segment meanwhile leaves it in place.
      core_.host.Pin(ref);
      stripe = segment.ExtentAt(ref.lane, ref.kind, ref.index).data;
      ABSL_RAW_CHECK(stripe != nullptr, "a stripe that a block is reserved in stays");
    }
  }
  if (stripe != nullptr) layout.Scatter(pieces, first_cell, end_block - first_block, stripe);
  MutexLock lock(core_.mu);
  const uint32_t end = kept_end();
  if (stripe != nullptr) {
    if (end > first_block) {
      const uint64_t valid = segment.ExtentAt(ref.lane, ref.kind, ref.index).valid;
      const uint64_t cells = ~uint64_t{0} >> (64 - (end - first_block)) << first_cell;
      core_.host.SetValid(ref, valid | cells);
    }
    if (core_.host.Unpin(ref)) core_.room.NotifyAll();
  }
  if (end <= first_block) return;
  // Keeps I4: rows and pieces become visible by this one step.
  segment.lanes[lane_index].sealed_end = end;
  core_.host.CountWrite((end - first_block) * (layout.rows_bytes() + layout.piece_bytes()));
  if (writer_ != nullptr && core_.options.durability != Durability::kNone) {
    writer_->Enqueue(segment);
  }
}

uint32_t BlockStoreImpl::SealedEnd(const Segment& segment, uint16_t layer, uint16_t head) const {
  MutexLock lock(core_.mu);
  return segment.lane(layer, head).sealed_end;
}

absl::Status BlockStoreImpl::RestoreTail(Segment& segment, uint16_t layer, absl::Time deadline) {
  const DurableExtent durable = Durable(segment, layer);
  if (durable.tail_rows == 0) return absl::OkStatus();
  if (absl::Status status =
          ReserveRows(segment, layer, durable.end_block, durable.end_block + 1, deadline);
      !status.ok()) {
    return status;
  }
  return tails_.Restore(segment, layer, deadline);
}

absl::Status BlockStoreImpl::CutTail(Segment& segment, uint32_t block, uint32_t rows,
                                     absl::Time deadline) {
  return WithRoom(std::min(deadline, absl::Now() + kManifestWait),
                  [&] { return tails_.Cut(segment, block, rows, deadline); });
}

absl::StatusOr<std::vector<bool>> BlockStoreImpl::Unseal(Segment& segment, uint32_t block,
                                                         uint32_t rows, absl::Time deadline) {
  absl::StatusOr<std::vector<bool>> on_disk;
  const absl::Status status = WithRoom(std::min(deadline, absl::Now() + kManifestWait), [&] {
    on_disk = manifests_.Unseal(segment, block, rows, deadline);
    return on_disk.status();
  });
  return status.ok() ? std::move(on_disk) : status;
}

absl::Status BlockStoreImpl::WriteTail(Segment& segment, absl::Span<const uint32_t> tail_rows,
                                       absl::Time deadline) {
  if (absl::Status status = CheckTail(segment, tail_rows); !status.ok()) return status;
  return WithRoom(std::min(deadline, absl::Now() + kManifestWait), [&] {
    return tails_.Write(segment, tail_rows, TailLog::Purpose::kBranch, deadline);
  });
}

absl::Status BlockStoreImpl::CheckTail(const Segment& segment,
                                       absl::Span<const uint32_t> tail_rows) const {
  if (core_.disk == nullptr) return absl::FailedPreconditionError("the store has no disk");
  if (tail_rows.size() != segment.layout.layers) {
    return absl::InvalidArgumentError(absl::StrCat("flush: tails of ", tail_rows.size(),
                                                   " layers, expected ", segment.layout.layers));
  }
  for (const uint32_t rows : tail_rows) {
    if (rows < segment.layout.block_tokens) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "flush: a tail of ", rows, " rows, allowed: below ", segment.layout.block_tokens));
  }
  return absl::OkStatus();
}

Pins BlockStoreImpl::PinRows(absl::Span<const ReadRequest> requests, absl::Time deadline) {
  Pins pins;
  pins.state_ = reader_.Pin(ExtentKind::kRows, requests, deadline);
  return pins;
}

Pins BlockStoreImpl::PinStripes(absl::Span<const ReadRequest> requests, absl::Time deadline) {
  Pins pins;
  pins.state_ = reader_.Pin(ExtentKind::kStripe, requests, deadline);
  return pins;
}

absl::Status BlockStoreImpl::AwaitDurable(Segment& segment, absl::Time deadline) {
  if (core_.disk == nullptr) return absl::FailedPreconditionError("the store has no disk");
  MutexLock lock(core_.mu);
  return writer_->WriteSealed(segment, deadline);
}

absl::Status BlockStoreImpl::Flush(Segment& segment, absl::Span<const uint32_t> tail_rows,
                                   absl::Time deadline) {
  if (!tail_rows.empty()) {
    if (absl::Status status = CheckTail(segment, tail_rows); !status.ok()) return status;
  }
  if (absl::Status status = AwaitDurable(segment, deadline); !status.ok()) return status;
  if (!tail_rows.empty()) {
    return WithRoom(deadline, [&] {
      return tails_.Write(segment, tail_rows, TailLog::Purpose::kFlush, deadline);
    });
  }
  absl::Status synced = core_.disk->Sync();
  if (!synced.ok()) {
    MutexLock lock(core_.mu);
    core_.CountDiskError(synced);
  }
  return synced;
}

DurableExtent BlockStoreImpl::Durable(const Segment& segment, uint16_t layer) const {
  MutexLock lock(core_.mu);
  return {.end_block = segment.DurableEnd(layer), .tail_rows = segment.tail_rows[layer]};
}

Residency BlockStoreImpl::Describe(const Segment& segment, uint16_t layer, uint32_t first_block,
                                   uint32_t end_block) const {
  MutexLock lock(core_.mu);
  return segment.Describe(layer, first_block, end_block);
}

TierStats BlockStoreImpl::HostStats() const {
  MutexLock lock(core_.mu);
  return core_.host.stats();
}

TierStats BlockStoreImpl::DiskStats() const {
  if (core_.disk == nullptr) return {};
  const uint64_t used_bytes = core_.disk->used_bytes();
  MutexLock lock(core_.mu);
  TierStats stats = core_.disk_stats;
  stats.capacity_bytes = core_.options.disk_bytes;
  stats.used_bytes = used_bytes;
  stats.direct_reads = core_.disk->direct_reads();
  return stats;
}

}  // namespace terrace::kvstore
