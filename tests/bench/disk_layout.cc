#include "tests/bench/disk_layout.h"

#include <rocksdb/cache.h>
#include <rocksdb/statistics.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <random>
#include <thread>

#include "tests/bench/data_folder.h"
#include "tests/bench/require.h"
#include "tests/bench/trial.h"

namespace terrace::bench {
namespace {

using kvstore::BlockKey;
using kvstore::RecordKey;
using kvstore::RecordKind;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kBatchBytes = 4 * kMiB;
constexpr uint32_t kChunkBlocks = 16;
constexpr kvstore::SegmentId kSegment{1};

rocksdb::Slice ToSlice(std::string_view view) { return {view.data(), view.size()}; }
std::string_view ToView(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

void RequireOk(const rocksdb::Status& status, const char* what) {
  Require(status.ok(), std::string(what) + ": " + status.ToString());
}

uint64_t IdOf(const RecordKey& key) { return std::hash<std::string_view>()(key.view()); }

std::string_view PayloadOf(const RecordKey& key, size_t size, const BytePool& pool) {
  return {reinterpret_cast<const char*>(pool.Of(IdOf(key), size)), size};
}

uint64_t Property(rocksdb::DB& db, const std::string& name) {
  uint64_t value = 0;
  db.GetIntProperty(name, &value);
  return value;
}

void AwaitRest(rocksdb::DB& db) {
  while (Property(db, rocksdb::DB::Properties::kNumRunningCompactions) != 0 ||
         Property(db, rocksdb::DB::Properties::kNumRunningFlushes) != 0 ||
         Property(db, rocksdb::DB::Properties::kCompactionPending) != 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

// Gathers records up to the size of the disk tier's batches.
class BatchedWriter {
 public:
  BatchedWriter(rocksdb::DB& db, const BytePool& pool) : db_(db), pool_(pool) {}

  void Put(const RecordKey& key, size_t size) {
    const std::string_view payload = PayloadOf(key, size, pool_);
    const auto checksum = kvstore::RecordChecksum(key.view(), payload);
    const rocksdb::Slice name = ToSlice(key.view());
    const rocksdb::Slice value[] = {ToSlice(payload), {checksum.data(), checksum.size()}};
    RequireOk(batch_.Put({&name, 1}, {value, 2}), "filling a batch");
    if (batch_.GetDataSize() >= kBatchBytes) Send();
  }
  void Send() {
    RequireOk(db_.Write({}, &batch_), "writing");
    batch_.Clear();
  }

 private:
  rocksdb::DB& db_;
  const BytePool& pool_;
  rocksdb::WriteBatch batch_;
};

}  // namespace

// As the disk tier has them for a budget of some GiB.
rocksdb::Options DiskDataset::Options() const {
  rocksdb::Options options;
  options.create_if_missing = true;
  options.write_buffer_size = 16 * kMiB;
  options.max_write_buffer_number = 2;
  options.max_total_wal_size = 32 * kMiB;
  options.max_background_jobs = 2;
  // Bounded, too, because RocksDB reads a database of one table in a way that misses blobs else.
  options.max_open_files = 256;
  options.compression = rocksdb::kNoCompression;
  options.bottommost_compression = rocksdb::kNoCompression;
  options.allow_fallocate = false;
  options.advise_random_on_open = true;
  options.info_log_level = rocksdb::WARN_LEVEL;
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  options.enable_blob_files = layout_.blob_files;
  options.min_blob_size = 512;
  options.blob_file_size = 256 * kMiB;
  // Small tables are for a tree of references; one that holds the rows gets the usual ones.
  if (layout_.blob_files) options.target_file_size_base = kMiB;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(32 * kMiB);
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

void DiskDataset::Fill(rocksdb::DB& db) const {
  BatchedWriter writer(db, pool_);
  for (uint32_t chunk = 0; chunk < blocks_; chunk += kChunkBlocks) {
    const uint32_t end = std::min(blocks_, chunk + kChunkBlocks);
    for (uint32_t lane = 0; lane < uint32_t{kLayers} * kHeads; ++lane) {
      for (uint32_t block = chunk; block < end; ++block) {
        const BlockKey key{kSegment, static_cast<uint16_t>(lane / kHeads),
                           static_cast<uint16_t>(lane % kHeads), block};
        for (uint32_t i = 0; i < layout_.values_per_block(); ++i) {
          writer.Put(RecordKey::Granule(key, static_cast<uint8_t>(i)), layout_.value_bytes());
        }
        writer.Put(RecordKey(RecordKind::kPiece, key), kPieceBytes);
      }
    }
  }
  writer.Send();
}

WriteFigures DiskDataset::Write(bool direct_writes) const {
  rocksdb::Options options = Options();
  RequireOk(rocksdb::DestroyDB(path_, options), "removing a database");
  options.use_direct_io_for_flush_and_compaction = direct_writes;
  options.statistics = rocksdb::CreateDBStatistics();
  rocksdb::DB* opened = nullptr;
  RequireOk(rocksdb::DB::Open(options, path_, &opened), "creating a database");
  const std::unique_ptr<rocksdb::DB> db(opened);
  WriteFigures figures;
  const Stopwatch watch;
  Fill(*db);
  RequireOk(db->FlushWAL(/*sync=*/true), "syncing");
  figures.seconds = watch.seconds();
  RequireOk(db->Flush({}), "flushing");
  AwaitRest(*db);
  // Flushes and compactions count their blob files with their tables.
  const uint64_t written = options.statistics->getTickerCount(rocksdb::WAL_FILE_BYTES) +
                           options.statistics->getTickerCount(rocksdb::FLUSH_WRITE_BYTES) +
                           options.statistics->getTickerCount(rocksdb::COMPACT_WRITE_BYTES);
  figures.amplification =
      static_cast<double>(written) / static_cast<double>(row_bytes() + piece_bytes());
  return figures;
}

std::unique_ptr<rocksdb::DB> DiskDataset::OpenCold(bool direct_reads) const {
  ChillFiles(path_);
  rocksdb::Options options = Options();
  options.use_direct_reads = direct_reads;
  rocksdb::DB* opened = nullptr;
  RequireOk(rocksdb::DB::OpenForReadOnly(options, path_, &opened), "opening a database");
  return std::unique_ptr<rocksdb::DB>(opened);
}

double DiskDataset::Read(rocksdb::DB& db, const DiskReads& reads) const {
  std::atomic<size_t> next = 0;
  std::atomic<size_t> failed = 0;
  const auto work = [&] {
    const size_t batch = reads.batch;
    rocksdb::ReadOptions options;
    options.verify_checksums = reads.checked_twice;
    std::vector<rocksdb::Slice> names(batch);
    std::vector<rocksdb::PinnableSlice> values(batch);
    std::vector<rocksdb::Status> statuses(batch);
    std::vector<char> rows(batch * kBlockBytes);
    for (size_t i = next.fetch_add(batch); i < reads.keys.size(); i = next.fetch_add(batch)) {
      const size_t count = std::min(batch, reads.keys.size() - i);
      for (size_t j = 0; j < count; ++j) names[j] = ToSlice(reads.keys[i + j].view());
      db.MultiGet(options, db.DefaultColumnFamily(), count, names.data(), values.data(),
                  statuses.data());
      for (size_t j = 0; j < count; ++j) {
        const auto payload = kvstore::CheckedPayload(reads.keys[i + j].view(), ToView(values[j]));
        if (statuses[j].ok() && payload.ok()) {
          std::memcpy(rows.data() + j * kBlockBytes, payload->data(), payload->size());
        } else {
          ++failed;
        }
        values[j].Reset();
      }
    }
  };
  const Stopwatch watch;
  std::vector<std::thread> threads;
  for (int i = 0; i < reads.threads; ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  const double seconds = watch.seconds();
  Require(failed == 0, "every value is there with its checksum");
  return seconds;
}

void DiskDataset::Verify() const {
  const std::unique_ptr<rocksdb::DB> db = OpenCold(/*direct_reads=*/true);
  const auto verify = [&](const std::vector<RecordKey>& keys, size_t size) {
    std::string value;
    for (const RecordKey& key : keys) {
      RequireOk(db->Get({}, ToSlice(key.view()), &value), "reading back");
      const auto payload = kvstore::CheckedPayload(key.view(), value);
      Require(payload.ok() && *payload == PayloadOf(key, size, pool_), "bytes as written");
    }
  };
  verify(RowKeys(), layout_.value_bytes());
  verify(PieceKeys(), kPieceBytes);
}

std::vector<RecordKey> DiskDataset::RowKeys() const {
  std::vector<RecordKey> keys;
  for (uint16_t layer = 0; layer < kLayers; ++layer) {
    for (uint16_t head = 0; head < kHeads; ++head) {
      for (uint32_t i = 0; i < blocks_ * layout_.values_per_block(); ++i) {
        keys.push_back(RecordKey::Granule({kSegment, layer, head, i / layout_.values_per_block()},
                                          static_cast<uint8_t>(i % layout_.values_per_block())));
      }
    }
  }
  return keys;
}

std::vector<RecordKey> DiskDataset::PieceKeys() const {
  std::vector<RecordKey> keys;
  for (uint16_t layer = 0; layer < kLayers; ++layer) {
    for (uint16_t head = 0; head < kHeads; ++head) {
      for (uint32_t block = 0; block < blocks_; ++block) {
        keys.emplace_back(RecordKind::kPiece, BlockKey{kSegment, layer, head, block});
      }
    }
  }
  return keys;
}

std::vector<RecordKey> DiskDataset::RandomRowKeys(size_t count, uint64_t seed) const {
  const std::vector<RecordKey> all = RowKeys();
  std::mt19937_64 random(seed);
  std::vector<RecordKey> keys;
  for (size_t i = 0; i < count; ++i) keys.push_back(all[random() % all.size()]);
  return keys;
}

}  // namespace terrace::bench
