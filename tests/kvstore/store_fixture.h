// What the tests of the store share: a folder of their own, a small layout, and bytes that follow
// from the identity of a block, so that whatever is read can be verified without remembering it.
#ifndef TERRACE_TESTS_KVSTORE_STORE_FIXTURE_H_
#define TERRACE_TESTS_KVSTORE_STORE_FIXTURE_H_

#include <stdlib.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kvstore/block_store.h"
#include "kvstore/block_store_impl.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {

class TempFolder {
 public:
  explicit TempFolder(const std::string& parent = ::testing::TempDir()) {
    std::string path = parent + "/terrace-kvstore-XXXXXX";
    path_ = mkdtemp(path.data());
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline absl::Time Soon() { return absl::Now() + absl::Seconds(30); }

// 8 KiB rows in four granules, 4 blocks a stripe, pieces of two planes.
inline BlockLayout SmallLayout() {
  return {.layers = 2,
          .heads = 2,
          .block_tokens = 16,
          .row_bytes = 512,
          .granule_tokens = 4,
          .stripe_blocks = 4,
          .planes = {{.count = 8, .cell_bytes = 16}, {.count = 3, .cell_bytes = 4}}};
}

// The bytes of a block; `salt` tells a second writing of the same block from the first.
inline void FillBytes(const BlockKey& key, uint32_t salt, bool is_piece, size_t size,
                      std::byte* out) {
  uint64_t state = static_cast<uint64_t>(key.segment) * 0x9E3779B97F4A7C15u;
  state ^= uint64_t{key.layer} << 50 ^ uint64_t { key.head } << 40 ^ uint64_t { key.block } << 8 ^
           uint64_t { salt } << 2 ^ uint64_t { is_piece };
  for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
    state += 0x9E3779B97F4A7C15u;
    uint64_t mixed = (state ^ state >> 30) * 0xBF58476D1CE4E5B9u;
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EBu;
    mixed ^= mixed >> 31;
    std::memcpy(out + i, &mixed, std::min(sizeof(mixed), size - i));
  }
}

inline std::vector<std::byte> RowsOf(const BlockLayout& layout, const BlockKey& key,
                                     uint32_t salt = 0) {
  std::vector<std::byte> rows(layout.rows_bytes());
  FillBytes(key, salt, /*is_piece=*/false, rows.size(), rows.data());
  return rows;
}

inline std::vector<std::byte> PieceOf(const BlockLayout& layout, const BlockKey& key,
                                      uint32_t salt = 0) {
  std::vector<std::byte> piece(layout.piece_bytes());
  FillBytes(key, salt, /*is_piece=*/true, piece.size(), piece.data());
  return piece;
}

// Reserves, fills and seals one block of one lane, unless it is sealed already.
inline absl::Status AppendBlock(BlockStore& store, Segment& segment, uint16_t layer, uint16_t head,
                                uint32_t block, uint32_t salt = 0, absl::Time deadline = Soon()) {
  const BlockLayout& layout = store.layout(segment);
  const BlockKey key{store.id(segment), layer, head, block};
  if (store.SealedEnd(segment, layer, head) > block) return absl::OkStatus();
  if (absl::Status status = store.Reserve(segment, layer, block, block + 1, deadline);
      !status.ok()) {
    return status;
  }
  FillBytes(key, salt, /*is_piece=*/false, layout.rows_bytes(),
            store.OpenRows(segment, layer, head, block));
  store.Seal(segment, layer, head, block, block + 1, PieceOf(layout, key, salt));
  return absl::OkStatus();
}

// Block [first, end) of all lanes.
inline absl::Status AppendBlocks(BlockStore& store, Segment& segment, uint32_t first, uint32_t end,
                                 uint32_t salt = 0, absl::Time deadline = Soon()) {
  const BlockLayout& layout = store.layout(segment);
  for (uint32_t block = first; block < end; ++block) {
    for (uint16_t layer = 0; layer < layout.layers; ++layer) {
      absl::Status status = store.Reserve(segment, layer, block, block + 1, deadline);
      if (!status.ok()) return status;
      for (uint16_t head = 0; head < layout.heads; ++head) {
        status = AppendBlock(store, segment, layer, head, block, salt, deadline);
        if (!status.ok()) return status;
      }
    }
  }
  return absl::OkStatus();
}

inline bool SameGranules(const BlockLayout& layout, const BlockKey& key, const std::byte* rows,
                         uint64_t cells, uint32_t salt = 0) {
  const std::vector<std::byte> expected = RowsOf(layout, key, salt);
  for (uint32_t granule = 0; granule < layout.granules(); ++granule) {
    const size_t offset = granule * layout.granule_bytes();
    if ((cells >> granule & 1) != 0 &&
        std::memcmp(rows + offset, expected.data() + offset, layout.granule_bytes()) != 0) {
      return false;
    }
  }
  return true;
}

inline bool SamePiece(const BlockLayout& layout, const BlockKey& key, const std::byte* stripe,
                      uint32_t salt = 0) {
  std::vector<std::byte> piece(layout.piece_bytes());
  layout.Gather(stripe, key.block % layout.stripe_blocks, piece.data());
  return piece == PieceOf(layout, key, salt);
}

inline uint64_t AllGranules(const BlockLayout& layout) {
  return layout.granules() == 64 ? ~uint64_t{0} : (uint64_t{1} << layout.granules()) - 1;
}

// OK when rows and piece of a sealed block can be read and are right; Internal when they are wrong.
inline absl::Status CheckBlock(BlockStore& store, Segment& segment, uint16_t layer, uint16_t head,
                               uint32_t block, uint32_t salt = 0, absl::Time deadline = Soon()) {
  const BlockLayout& layout = store.layout(segment);
  const BlockKey key{store.id(segment), layer, head, block};
  const ReadRequest rows{&segment, layer, head, block, AllGranules(layout)};
  const Pins row_pins = store.PinRows({&rows, 1}, deadline);
  if (!row_pins.extents()[0].status.ok()) return row_pins.extents()[0].status;
  if (!SameGranules(layout, key, row_pins.extents()[0].data, rows.cells, salt)) {
    return absl::InternalError("wrong rows");
  }
  if (layout.planes.empty()) return absl::OkStatus();
  const ReadRequest stripe{&segment, layer, head, block / layout.stripe_blocks,
                           uint64_t{1} << block % layout.stripe_blocks};
  const Pins stripe_pins = store.PinStripes({&stripe, 1}, deadline);
  if (!stripe_pins.extents()[0].status.ok()) return stripe_pins.extents()[0].status;
  if (!SamePiece(layout, key, stripe_pins.extents()[0].data, salt)) {
    return absl::InternalError("wrong piece");
  }
  return absl::OkStatus();
}

inline absl::Status CheckBlocks(BlockStore& store, Segment& segment, uint32_t first, uint32_t end,
                                uint32_t salt = 0) {
  const BlockLayout& layout = store.layout(segment);
  for (uint32_t block = first; block < end; ++block) {
    for (uint16_t layer = 0; layer < layout.layers; ++layer) {
      for (uint16_t head = 0; head < layout.heads; ++head) {
        if (absl::Status status = CheckBlock(store, segment, layer, head, block, salt);
            !status.ok()) {
          return status;
        }
      }
    }
  }
  return absl::OkStatus();
}

// A store in a folder of its own. Conservation (I8) is checked whenever a store is let go of.
class StoreTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kMiB = uint64_t{1} << 20;

  StoreTest() {
    options_.host_bytes = kMiB;
    options_.disk_path = folder_.path() + "/disk";
    options_.disk_bytes = 256 * kMiB;
    options_.shard = 3;
  }
  // Also reopens: blocks that are not on disk are lost then.
  void Open() {
    Close();
    auto store = OpenBlockStore(options_, fault_);
    ASSERT_OK(store);
    store_ = *std::move(store);
  }
  void Close();
  void TearDown() override { Close(); }

  SegmentRef NewSegment(uint32_t first_block = 0) {
    auto segment = store_->CreateSegment(layout_, first_block);
    EXPECT_OK(segment);
    return *std::move(segment);
  }
  absl::Status Commit(std::string name, std::vector<SegmentRange> ranges) {
    return store_->CommitManifest(
        {.name = std::move(name), .attributes = "attributes", .ranges = std::move(ranges)},
        absl::InfiniteFuture());
  }
  // The segment of the one manifest that was recovered.
  SegmentRef OnlyRecovered() {
    std::vector<Manifest> manifests = store_->TakeRecovered();
    EXPECT_EQ(manifests.size(), 1u);
    return manifests.empty() ? nullptr : manifests[0].ranges[0].segment;
  }
  // Whether it comes true: threads of the store may hold on to a segment a little longer.
  static bool Eventually(const std::function<bool()>& holds) {
    const absl::Time deadline = Soon();
    while (!holds()) {
      if (absl::Now() > deadline) return false;
      std::this_thread::yield();
    }
    return true;
  }
  // Blocks of all lanes in memory.
  uint64_t HostBlocks(const Segment& segment) const {
    uint64_t sum = 0;
    for (uint16_t layer = 0; layer < layout_.layers; ++layer) {
      sum += store_->Describe(segment, layer, 0, kOpenEnd).host_blocks;
    }
    return sum;
  }
  // Changes a byte wherever the disk holds these bytes; returns where many. Only while closed.
  int Rot(absl::Span<const std::byte> bytes) const;

  const TempFolder folder_;
  StoreOptions options_;
  DiskFault fault_;
  BlockLayout layout_ = SmallLayout();
  std::unique_ptr<BlockStore> store_;
};

// I8, and that the tier is within its budget (I5).
MATCHER(IsConserved, "admits what it holds, evicted and deleted, within its budget") {
  const TierStats& stats = arg;
  *result_listener << "blocks: admitted " << stats.admitted_blocks << " resident "
                   << stats.resident_blocks << " evicted " << stats.evicted_blocks << " deleted "
                   << stats.deleted_blocks << "; used " << stats.used_bytes << " of "
                   << stats.capacity_bytes;
  return stats.admitted_blocks ==
             stats.resident_blocks + stats.evicted_blocks + stats.deleted_blocks &&
         stats.admitted_bytes == stats.resident_bytes + stats.evicted_bytes + stats.deleted_bytes &&
         stats.demoted_blocks <= stats.evicted_blocks &&
         stats.ahead_useful_blocks + stats.ahead_late_blocks + stats.ahead_wasted_blocks <=
             stats.ahead_blocks &&
         stats.used_bytes <= stats.capacity_bytes && stats.pinned_bytes <= stats.capacity_bytes;
}

inline void StoreTest::Close() {
  if (store_ == nullptr) return;
  EXPECT_THAT(store_->HostStats(), IsConserved());
  EXPECT_THAT(store_->DiskStats(), IsConserved());
  store_.reset();
}

inline int StoreTest::Rot(absl::Span<const std::byte> bytes) const {
  const std::string wanted(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator(options_.disk_path)) {
    std::ifstream in(entry.path(), std::ios::binary);
    std::string content{std::istreambuf_iterator<char>(in), {}};
    const size_t at = content.find(wanted);
    if (at == std::string::npos) continue;
    ++found;
    content[at + wanted.size() / 2] = static_cast<char>(content[at + wanted.size() / 2] ^ 1);
    std::ofstream(entry.path(), std::ios::binary) << content;
  }
  return found;
}

}  // namespace terrace::kvstore

#endif  // TERRACE_TESTS_KVSTORE_STORE_FIXTURE_H_
