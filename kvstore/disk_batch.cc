#include "kvstore/disk_batch.h"

#include <rocksdb/slice.h>

#include <array>

#include "absl/base/internal/raw_logging.h"
#include "kvstore/disk_batch_rep.h"

namespace terrace::kvstore {
namespace {

// Above that many, one range tombstone is cheaper than a tombstone for each record.
constexpr uint64_t kPointDeletesMax = 256;

rocksdb::Slice ToSlice(std::string_view view) { return {view.data(), view.size()}; }

std::string_view ToChars(absl::Span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

SegmentId NextId(SegmentId segment) { return SegmentId{static_cast<uint64_t>(segment) + 1}; }

void CheckAdded(const rocksdb::Status& status) {
  ABSL_RAW_CHECK(status.ok(), "a batch in memory takes every record");
}

}  // namespace

DiskBatch::DiskBatch() : rep_(std::make_unique<Rep>()) {}
DiskBatch::DiskBatch(DiskBatch&&) noexcept = default;
DiskBatch& DiskBatch::operator=(DiskBatch&&) noexcept = default;
DiskBatch::~DiskBatch() = default;

void DiskBatch::Put(std::string_view key, std::string_view payload) {
  const auto checksum = RecordChecksum(key, payload);
  const rocksdb::Slice key_slice = ToSlice(key);
  const std::array<rocksdb::Slice, 2> value = {ToSlice(payload),
                                               rocksdb::Slice(checksum.data(), checksum.size())};
  CheckAdded(rep_->batch.Put(rocksdb::SliceParts(&key_slice, 1),
                             rocksdb::SliceParts(value.data(), value.size())));
}

void DiskBatch::PutAsIs(std::string_view key, std::string_view value) {
  CheckAdded(rep_->batch.Put(ToSlice(key), ToSlice(value)));
}

void DiskBatch::Delete(std::string_view key) { CheckAdded(rep_->batch.Delete(ToSlice(key))); }

void DiskBatch::DeleteRange(const RecordKey& begin, const RecordKey& end) {
  CheckAdded(rep_->batch.DeleteRange(ToSlice(begin.view()), ToSlice(end.view())));
}

void DiskBatch::PutRows(const BlockKey& block, const BlockLayout& layout, const std::byte* rows) {
  for (uint32_t granule = 0; granule < layout.granules(); ++granule) {
    Put(RecordKey::Granule(block, static_cast<uint8_t>(granule)).view(),
        ToChars({rows, layout.granule_bytes()}));
    rows += layout.granule_bytes();
  }
}

void DiskBatch::PutPiece(const BlockKey& block, absl::Span<const std::byte> piece) {
  Put(RecordKey(RecordKind::kPiece, block).view(), ToChars(piece));
}

void DiskBatch::PutTail(const BlockKey& block, absl::Span<const std::byte> rows) {
  Put(RecordKey(RecordKind::kTail, block).view(), ToChars(rows));
}

void DiskBatch::DeleteTail(const BlockKey& block) {
  Delete(RecordKey(RecordKind::kTail, block).view());
}

void DiskBatch::PutWatermark(SegmentId segment, absl::Span<const DurableExtent> layers) {
  Put(RecordKey(RecordKind::kWatermark, segment).view(), EncodeWatermark(layers));
}

void DiskBatch::DeleteSegment(SegmentId segment) {
  for (const RecordKind kind : {RecordKind::kRows, RecordKind::kPiece, RecordKind::kTail}) {
    DeleteRange(RecordKey(kind, segment), RecordKey(kind, NextId(segment)));
  }
  DeleteWatermark(segment);
}

void DiskBatch::DeleteWatermark(SegmentId segment) {
  Delete(RecordKey(RecordKind::kWatermark, segment).view());
}

void DiskBatch::DeleteBlocks(const BlockKey& first, uint32_t end_block, uint32_t granules) {
  BlockKey block = first;
  if (uint64_t{end_block - first.block} * granules > kPointDeletesMax) {
    block.block = end_block;
    for (const RecordKind kind : {RecordKind::kRows, RecordKind::kPiece}) {
      DeleteRange(RecordKey(kind, first), RecordKey(kind, block));
    }
    return;
  }
  for (; block.block < end_block; ++block.block) {
    for (uint32_t granule = 0; granule < granules; ++granule) {
      Delete(RecordKey::Granule(block, static_cast<uint8_t>(granule)).view());
    }
    Delete(RecordKey(RecordKind::kPiece, block).view());
  }
}

void DiskBatch::PutManifest(std::string_view name, const ManifestRecord& record) {
  Put(ManifestKey(name), EncodeManifest(record));
}

void DiskBatch::DeleteManifest(std::string_view name) { Delete(ManifestKey(name)); }

bool DiskBatch::empty() const { return rep_->batch.Count() == 0; }
size_t DiskBatch::bytes() const { return rep_->batch.GetDataSize(); }

}  // namespace terrace::kvstore
