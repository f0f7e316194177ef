// BlockStoreImpl: the block store, put together.
#ifndef TERRACE_KVSTORE_BLOCK_STORE_IMPL_H_
#define TERRACE_KVSTORE_BLOCK_STORE_IMPL_H_

#include <memory>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kvstore/block_store.h"
#include "kvstore/demoter.h"
#include "kvstore/disk_tier.h"
#include "kvstore/extent_reader.h"
#include "kvstore/manifest_table.h"
#include "kvstore/reclaimer.h"
#include "kvstore/store_core.h"
#include "kvstore/tail_log.h"
#include "kvstore/write_behind.h"

namespace terrace::kvstore {

// BlockStore::Open, with what tests put in the disk's place (DiskTierOptions).
absl::StatusOr<std::unique_ptr<BlockStore>> OpenBlockStore(const StoreOptions& options,
                                                           DiskFault fault,
                                                           rocksdb::Env* env = nullptr);

class BlockStoreImpl final : public BlockStore {
 public:
  // `disk` is null for a store without one.
  BlockStoreImpl(const StoreOptions& options, std::unique_ptr<ExtentPool> pool,
                 std::unique_ptr<DiskTier> disk);
  ~BlockStoreImpl() override;

  // Call it once, before anything else.
  absl::Status Recover();

  std::vector<Manifest> TakeRecovered() override { return manifests_.TakeRecovered(); }
  absl::StatusOr<SegmentRef> CreateSegment(const BlockLayout& layout,
                                           uint32_t first_block) override;
  absl::Status CommitManifests(absl::Span<const Manifest> manifests, absl::Time deadline) override;
  absl::Status DeleteManifests(absl::Span<const std::string> names, absl::Time deadline) override {
    return manifests_.Delete(names, deadline);
  }
  absl::StatusOr<ParkedBytes> Park(std::string_view name) override { return manifests_.Park(name); }
  void Unpark(std::string_view name) override { manifests_.Unpark(name); }
  absl::Status Reserve(Segment& segment, uint16_t layer, uint32_t first_block, uint32_t end_block,
                       absl::Time deadline) override {
    return ReserveBlocks(segment, layer, first_block, end_block, Pieces::kToo, deadline);
  }
  absl::Status ReserveRows(Segment& segment, uint16_t layer, uint32_t first_block,
                           uint32_t end_block, absl::Time deadline) override {
    return ReserveBlocks(segment, layer, first_block, end_block, Pieces::kNot, deadline);
  }
  std::byte* OpenRows(Segment& segment, uint16_t layer, uint16_t head, uint32_t block) override;
  void OpenRows(Segment& segment, uint16_t layer, uint32_t block,
                absl::Span<std::byte*> rows) override;
  void Seal(Segment& segment, uint16_t layer, uint16_t head, uint32_t first_block,
            uint32_t end_block, absl::Span<const std::byte> pieces) override;
  uint32_t SealedEnd(const Segment& segment, uint16_t layer, uint16_t head) const override;
  absl::Status RestoreTail(Segment& segment, uint16_t layer, absl::Time deadline) override;
  absl::Status CutTail(Segment& segment, uint32_t block, uint32_t rows,
                       absl::Time deadline) override;
  absl::StatusOr<std::vector<bool>> Unseal(Segment& segment, uint32_t block, uint32_t rows,
                                           absl::Time deadline) override;
  absl::Status WriteTail(Segment& segment, absl::Span<const uint32_t> tail_rows,
                         absl::Time deadline) override;
  Pins PinRows(absl::Span<const ReadRequest> requests, absl::Time deadline) override;
  void ReadAhead(absl::Span<const ReadRequest> requests, absl::Time deadline) override {
    reader_.ReadAhead(requests, deadline);
  }
  Pins PinStripes(absl::Span<const ReadRequest> requests, absl::Time deadline) override;
  absl::Status AwaitDurable(Segment& segment, absl::Time deadline) override;
  absl::Status Flush(Segment& segment, absl::Span<const uint32_t> tail_rows,
                     absl::Time deadline) override;
  DurableExtent Durable(const Segment& segment, uint16_t layer) const override;
  const BlockLayout& layout(const Segment& segment) const override { return segment.layout; }
  SegmentId id(const Segment& segment) const override { return segment.id; }
  Residency Describe(const Segment& segment, uint16_t layer, uint32_t first_block,
                     uint32_t end_block) const override;
  TierStats HostStats() const override;
  TierStats DiskStats() const override;

 private:
  // Way from a segment back to the store, for as long as both are there.
  struct Link;

  // Gives a bounded write the room that garbage takes.
  absl::Status WithRoom(absl::Time deadline, absl::FunctionRef<absl::Status()> write);
  SegmentRef MakeSegment(SegmentId id, const BlockLayout& layout, uint32_t first_block);
  absl::Status CheckTail(const Segment& segment, absl::Span<const uint32_t> tail_rows) const;
  absl::Status CheckReservable(const Segment& segment, uint16_t layer, uint32_t first_block,
                               uint32_t end_block) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  enum class Pieces { kToo, kNot };
  absl::Status ReserveBlocks(Segment& segment, uint16_t layer, uint32_t first_block,
                             uint32_t end_block, Pieces pieces, absl::Time deadline);
  // False when there is no room for it.
  bool ReserveBlock(Segment& segment, uint16_t lane, uint32_t block, Pieces pieces)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  std::byte* RowsToFill(const Segment& segment, uint16_t lane, uint32_t block) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);
  // Seal, of blocks of one stripe.
  void SealInStripe(Segment& segment, uint16_t lane, uint32_t first_block, uint32_t end_block,
                    const std::byte* pieces);
  absl::Status NoRoom(const Segment& segment) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_.mu);

  // Shared with the segments.
  const std::shared_ptr<Link> link_;
  mutable StoreCore core_;
  uint64_t last_id_ ABSL_GUARDED_BY(core_.mu) = 0;
  // Null without a disk.
  std::unique_ptr<Reclaimer> reclaimer_;
  std::unique_ptr<WriteBehind> writer_;
  std::unique_ptr<Demoter> demoter_;
  ManifestTable manifests_;
  ExtentReader reader_;
  TailLog tails_;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_BLOCK_STORE_IMPL_H_
