#include "kvstore/disk_index.h"

#include <rocksdb/db.h>
#include <rocksdb/options.h>
#include <rocksdb/slice.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "kvstore/disk_database.h"

namespace terrace::kvstore {
namespace {

// Keys that differ only beyond this are not told apart where the index is damaged.
constexpr size_t kKeyBytesMax = 64;

std::string_view ToView(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

// Goes through the good records of one kind. A block of a table that is corrupt is never looked
// into, because RocksDB trusts what it has verified: all its records are lost.
class KindScan {
 public:
  // Told of each record, its key without the kind; an error is damage.
  using Visit = absl::FunctionRef<absl::Status(std::string_view key,
                                               const absl::StatusOr<std::string_view>& payload)>;

  KindScan(const DiskDatabase::Use& db, RecordKind kind)
      : begin_(1, static_cast<char>(kind)),
        end_(1, static_cast<char>(static_cast<char>(kind) + 1)),
        bound_(end_),
        it_(db->NewIterator(Options())) {}

  absl::Status Run(Visit visit, DiskIndex& index) {
    std::string last = begin_;
    it_->Seek(begin_);
    while (true) {
      for (; it_->Valid(); it_->Next()) {
        const std::string_view key = ToView(it_->key());
        last = key;
        const absl::Status status = visit(key.substr(1), CheckedPayload(key, ToView(it_->value())));
        if (!status.ok()) index.damage.push_back(status);
      }
      absl::Status status = FromRocks("reading the index", it_->status());
      if (!absl::IsDataLoss(status)) return status;
      index.damage.push_back(status);
      index.incomplete = true;
      const std::string next = EndOfDamage(last);
      // The damage may go on beyond the kind.
      if (next == end_) return absl::OkStatus();
      it_->Seek(next);
    }
  }

 private:
  rocksdb::ReadOptions Options() const {
    rocksdb::ReadOptions options;
    options.iterate_upper_bound = &bound_;
    return options;
  }

  // A key after `last`, as low as can be found, from which on records of the kind can be read
  // again; the end of the kind when there is none. Byte by byte, each by bisection.
  std::string EndOfDamage(const std::string& last) {
    const auto reads = [&](const std::string& key) {
      if (key <= last) return false;
      it_->Seek(key);
      return !it_->status().IsCorruption();
    };
    std::string lowest = end_;
    std::string prefix = begin_;
    while (prefix.size() < kKeyBytesMax) {
      int low = 0;
      int high = 256;
      while (low < high) {
        const int middle = (low + high) / 2;
        if (reads(prefix + static_cast<char>(middle))) {
          high = middle;
        } else {
          low = middle + 1;
        }
      }
      if (high < 256) lowest = prefix + static_cast<char>(high);
      if (high == 0) break;
      prefix.push_back(static_cast<char>(high - 1));
    }
    return lowest;
  }

  const std::string begin_;
  const std::string end_;
  const rocksdb::Slice bound_;
  const std::unique_ptr<rocksdb::Iterator> it_;
};

SegmentId SegmentOf(std::string_view watermark_key) {
  std::array<char, kEncodedBlockKeyBytes> block_key{};
  std::copy(watermark_key.begin(), watermark_key.end(), block_key.begin());
  return DecodeBlockKey(block_key).segment;
}

absl::Status AddManifest(std::string_view name, std::string_view payload, DiskIndex& index) {
  absl::StatusOr<ManifestRecord> record = DecodeManifest(payload);
  if (!record.ok()) return record.status();
  index.manifests.emplace_back(name, *std::move(record));
  return absl::OkStatus();
}

absl::Status AddWatermark(std::string_view key, const absl::StatusOr<std::string_view>& payload,
                          DiskIndex& index) {
  if (key.size() != sizeof(SegmentId)) {
    index.incomplete = true;
    return absl::DataLossError("watermark key");
  }
  const auto layers = [&]() -> absl::StatusOr<std::vector<DurableExtent>> {
    if (!payload.ok()) return payload.status();
    return DecodeWatermark(*payload);
  }();
  if (layers.ok()) {
    index.watermarks.emplace_back(SegmentOf(key), *layers);
  } else {
    index.unreadable.push_back(SegmentOf(key));
  }
  return layers.status();
}

}  // namespace

absl::StatusOr<DiskIndex> ReadDiskIndex(DiskDatabase& database) {
  DiskIndex index;
  const DiskDatabase::Use db(database, DiskDatabase::Purpose::kRead);
  if (!db) return absl::UnavailableError("the database is closed since a write failed");
  absl::Status status = KindScan(db, RecordKind::kManifest)
                            .Run(
                                [&](std::string_view name, const auto& payload) {
                                  if (!payload.ok()) return payload.status();
                                  return AddManifest(name, *payload, index);
                                },
                                index);
  if (status.ok()) {
    status = KindScan(db, RecordKind::kWatermark)
                 .Run([&](std::string_view key,
                          const auto& payload) { return AddWatermark(key, payload, index); },
                      index);
  }
  if (!status.ok()) return status;
  return index;
}

}  // namespace terrace::kvstore
