// A block store that counts what is pinned through it, and what of that it says came from disk.
#ifndef TERRACE_TESTS_SERVICES_ENGINE_COUNTING_STORE_H_
#define TERRACE_TESTS_SERVICES_ENGINE_COUNTING_STORE_H_

#include <bit>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "kvstore/block_store.h"

namespace terrace::testing {

// Counts are for one thread that steps.
class CountingStore final : public kvstore::BlockStore {
 public:
  // Cells: granules of rows, or pieces of stripes.
  struct Count {
    uint64_t cells = 0;
    uint64_t cells_from_disk = 0;
    // Stored bytes of those from disk, each a cell and its checksum.
    uint64_t bytes_from_disk = 0;
  };

  explicit CountingStore(std::unique_ptr<BlockStore> store) : store_(std::move(store)) {}

  const Count& rows() const { return rows_; }
  const Count& pieces() const { return pieces_; }
  void Reset() { rows_ = pieces_ = Count(); }

  kvstore::Pins PinRows(absl::Span<const kvstore::ReadRequest> requests,
                        absl::Time deadline) override {
    return Counted(requests, store_->PinRows(requests, deadline), rows_,
                   [](const kvstore::BlockLayout& layout) { return layout.granule_bytes(); });
  }
  kvstore::Pins PinStripes(absl::Span<const kvstore::ReadRequest> requests,
                           absl::Time deadline) override {
    return Counted(requests, store_->PinStripes(requests, deadline), pieces_,
                   [](const kvstore::BlockLayout& layout) { return layout.piece_bytes(); });
  }

  std::vector<kvstore::Manifest> TakeRecovered() override { return store_->TakeRecovered(); }
  absl::StatusOr<kvstore::SegmentRef> CreateSegment(const kvstore::BlockLayout& layout,
                                                    uint32_t first_block) override {
    return store_->CreateSegment(layout, first_block);
  }
  absl::Status CommitManifests(absl::Span<const kvstore::Manifest> manifests,
                               absl::Time deadline) override {
    return store_->CommitManifests(manifests, deadline);
  }
  absl::Status DeleteManifests(absl::Span<const std::string> names, absl::Time deadline) override {
    return store_->DeleteManifests(names, deadline);
  }
  absl::StatusOr<kvstore::ParkedBytes> Park(std::string_view name) override {
    return store_->Park(name);
  }
  void Unpark(std::string_view name) override { store_->Unpark(name); }
  absl::Status Reserve(kvstore::Segment& segment, uint16_t layer, uint32_t first_block,
                       uint32_t end_block, absl::Time deadline) override {
    return store_->Reserve(segment, layer, first_block, end_block, deadline);
  }
  absl::Status ReserveRows(kvstore::Segment& segment, uint16_t layer, uint32_t first_block,
                           uint32_t end_block, absl::Time deadline) override {
    return store_->ReserveRows(segment, layer, first_block, end_block, deadline);
  }
  std::byte* OpenRows(kvstore::Segment& segment, uint16_t layer, uint16_t head,
                      uint32_t block) override {
    return store_->OpenRows(segment, layer, head, block);
  }
  void OpenRows(kvstore::Segment& segment, uint16_t layer, uint32_t block,
                absl::Span<std::byte*> rows) override {
    store_->OpenRows(segment, layer, block, rows);
  }
  void Seal(kvstore::Segment& segment, uint16_t layer, uint16_t head, uint32_t first_block,
            uint32_t end_block, absl::Span<const std::byte> pieces) override {
    store_->Seal(segment, layer, head, first_block, end_block, pieces);
  }
  uint32_t SealedEnd(const kvstore::Segment& segment, uint16_t layer,
                     uint16_t head) const override {
    return store_->SealedEnd(segment, layer, head);
  }
  absl::Status RestoreTail(kvstore::Segment& segment, uint16_t layer,
                           absl::Time deadline) override {
    return store_->RestoreTail(segment, layer, deadline);
  }
  absl::Status CutTail(kvstore::Segment& segment, uint32_t block, uint32_t rows,
                       absl::Time deadline) override {
    return store_->CutTail(segment, block, rows, deadline);
  }
  absl::StatusOr<std::vector<bool>> Unseal(kvstore::Segment& segment, uint32_t block, uint32_t rows,
                                           absl::Time deadline) override {
    return store_->Unseal(segment, block, rows, deadline);
  }
  absl::Status WriteTail(kvstore::Segment& segment, absl::Span<const uint32_t> tail_rows,
                         absl::Time deadline) override {
    return store_->WriteTail(segment, tail_rows, deadline);
  }
  void ReadAhead(absl::Span<const kvstore::ReadRequest> requests, absl::Time deadline) override {
    store_->ReadAhead(requests, deadline);
  }
  absl::Status AwaitDurable(kvstore::Segment& segment, absl::Time deadline) override {
    return store_->AwaitDurable(segment, deadline);
  }
  absl::Status Flush(kvstore::Segment& segment, absl::Span<const uint32_t> tail_rows,
                     absl::Time deadline) override {
    return store_->Flush(segment, tail_rows, deadline);
  }
  kvstore::DurableExtent Durable(const kvstore::Segment& segment, uint16_t layer) const override {
    return store_->Durable(segment, layer);
  }
  const kvstore::BlockLayout& layout(const kvstore::Segment& segment) const override {
    return store_->layout(segment);
  }
  kvstore::SegmentId id(const kvstore::Segment& segment) const override {
    return store_->id(segment);
  }
  kvstore::Residency Describe(const kvstore::Segment& segment, uint16_t layer, uint32_t first_block,
                              uint32_t end_block) const override {
    return store_->Describe(segment, layer, first_block, end_block);
  }
  kvstore::TierStats HostStats() const override { return store_->HostStats(); }
  kvstore::TierStats DiskStats() const override { return store_->DiskStats(); }

 private:
  template <typename CellBytes>
  kvstore::Pins Counted(absl::Span<const kvstore::ReadRequest> requests, kvstore::Pins pins,
                        Count& count, CellBytes cell_bytes) const {
    constexpr uint64_t kChecksumBytes = 4;
    for (size_t i = 0; i < requests.size(); ++i) {
      const auto from_disk = static_cast<uint64_t>(std::popcount(pins.extents()[i].from_disk));
      count.cells += static_cast<uint64_t>(std::popcount(requests[i].cells));
      count.cells_from_disk += from_disk;
      count.bytes_from_disk +=
          from_disk * (cell_bytes(store_->layout(*requests[i].segment)) + kChecksumBytes);
    }
    return pins;
  }

  const std::unique_ptr<BlockStore> store_;
  Count rows_;
  Count pieces_;
};

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_SERVICES_ENGINE_COUNTING_STORE_H_
