// One way to lay blocks out in RocksDB, filled and read the way the disk tier does it: the same
// keys, checksums, batches and database settings, but for what the layout varies.
#ifndef TERRACE_TESTS_BENCH_DISK_LAYOUT_H_
#define TERRACE_TESTS_BENCH_DISK_LAYOUT_H_

#include <rocksdb/db.h>
#include <rocksdb/options.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kvstore/disk_record.h"
#include "tests/bench/byte_pool.h"

namespace terrace::bench {

// Blocks of 64 rows of 512 bytes: a head of 128 dimensions in bf16. Its index piece is what the
// engine makes of them in int8: codes, parameters, value sum, digests.
inline constexpr uint32_t kRowBytes = 512;
inline constexpr uint32_t kBlockRows = 64;
inline constexpr uint32_t kBlockBytes = kBlockRows * kRowBytes;
inline constexpr uint32_t kGranuleBytes = 8192;
inline constexpr uint32_t kPieceBytes = 9472;
inline constexpr uint16_t kLayers = 8;
inline constexpr uint16_t kHeads = 8;

struct DiskLayout {
  // Values of 64 rows instead of 16.
  bool whole_blocks = false;
  bool blob_files = true;

  uint32_t value_bytes() const { return whole_blocks ? kBlockBytes : kGranuleBytes; }
  uint32_t values_per_block() const { return kBlockBytes / value_bytes(); }
};

// What is read, and by how many: `threads` take batches of `batch` keys until none is left.
struct DiskReads {
  std::vector<kvstore::RecordKey> keys;
  int threads = 1;
  size_t batch = 1;
  // Whether RocksDB checks its own checksums, too, before we check ours.
  bool checked_twice = true;
};

struct WriteFigures {
  double seconds = 0;
  // Bytes that the database wrote to files until it came to rest, over bytes it was given.
  double amplification = 0;
};

class DiskDataset {
 public:
  // `blocks` of each layer and head.
  DiskDataset(std::string path, DiskLayout layout, uint32_t blocks, const BytePool& pool)
      : path_(std::move(path)), layout_(layout), blocks_(blocks), pool_(pool) {}

  // Replaces what is there. Rows and pieces arrive as a prompt brings them, 16 blocks of each layer
  // and head at a time. The time is until they would survive the machine.
  WriteFigures Write(bool direct_writes) const;

  // Opens anew and cold, so that no read finds what another one left. The caller owns it.
  std::unique_ptr<rocksdb::DB> OpenCold(bool direct_reads) const;
  // Reads, verifies checksums and copies values to where rows would lie. Seconds.
  double Read(rocksdb::DB& db, const DiskReads& reads) const;
  // All values against the bytes that were written.
  void Verify() const;

  // In order of layer, head and block.
  std::vector<kvstore::RecordKey> RowKeys() const;
  std::vector<kvstore::RecordKey> PieceKeys() const;
  // The values that hold `count` random rows.
  std::vector<kvstore::RecordKey> RandomRowKeys(size_t count, uint64_t seed) const;

  const DiskLayout& layout() const { return layout_; }
  uint64_t row_bytes() const { return uint64_t{kLayers} * kHeads * blocks_ * kBlockBytes; }
  uint64_t piece_bytes() const { return uint64_t{kLayers} * kHeads * blocks_ * kPieceBytes; }

 private:
  rocksdb::Options Options() const;
  void Fill(rocksdb::DB& db) const;

  const std::string path_;
  const DiskLayout layout_;
  const uint32_t blocks_;
  const BytePool& pool_;
};

}  // namespace terrace::bench

#endif  // TERRACE_TESTS_BENCH_DISK_LAYOUT_H_
