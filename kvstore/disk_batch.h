// DiskBatch: changes to the disk tier that are written at once, or not at all.
#ifndef TERRACE_KVSTORE_DISK_BATCH_H_
#define TERRACE_KVSTORE_DISK_BATCH_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/types/span.h"
#include "kvstore/block_key.h"
#include "kvstore/block_layout.h"
#include "kvstore/block_store.h"
#include "kvstore/disk_record.h"

namespace terrace::kvstore {

class DiskBatch {
 public:
  DiskBatch();
  DiskBatch(DiskBatch&&) noexcept;
  DiskBatch& operator=(DiskBatch&&) noexcept;
  ~DiskBatch();

  // Any record, with its checksum.
  void Put(std::string_view key, std::string_view payload);
  // A value that ends in what may be its checksum.
  void PutAsIs(std::string_view key, std::string_view value);
  // rows: [block_tokens][row_bytes].
  void PutRows(const BlockKey& block, const BlockLayout& layout, const std::byte* rows);
  void PutPiece(const BlockKey& block, absl::Span<const std::byte> piece);
  void PutTail(const BlockKey& block, absl::Span<const std::byte> rows);
  void DeleteTail(const BlockKey& block);
  void PutWatermark(SegmentId segment, absl::Span<const DurableExtent> layers);
  // All records of the segment, by range tombstones: for one of unknown or many records.
  void DeleteSegment(SegmentId segment);
  void DeleteWatermark(SegmentId segment);
  // Rows and pieces of blocks [first.block, end_block) of one layer and head.
  void DeleteBlocks(const BlockKey& first, uint32_t end_block, uint32_t granules);
  void PutManifest(std::string_view name, const ManifestRecord& record);
  void DeleteManifest(std::string_view name);

  bool empty() const;
  // Bytes of all keys and values so far.
  size_t bytes() const;

 private:
  friend class DiskTier;
  struct Rep;

  void Delete(std::string_view key);
  void DeleteRange(const RecordKey& begin, const RecordKey& end);

  std::unique_ptr<Rep> rep_;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_KVSTORE_DISK_BATCH_H_
