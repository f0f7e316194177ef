#include "kvstore/disk_tier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <rocksdb/write_batch.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "kvstore/disk_database.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

using ::terrace::testing::StatusIs;
using ::testing::HasSubstr;

constexpr uint64_t kMiB = uint64_t{1} << 20;

class DiskTierTest : public ::testing::Test {
 protected:
  DiskTierTest() {
    options_.path = folder_.path() + "/db";
    options_.bytes = 64 * kMiB;
    options_.shard = 1;
  }
  void Open() {
    tier_.reset();
    auto tier = DiskTier::Open(options_);
    ASSERT_OK(tier);
    tier_ = *std::move(tier);
  }
  BlockKey Key(uint32_t block, uint64_t segment = 11) const {
    return {SegmentId{segment}, 1, 0, block};
  }
  absl::Status WriteBlocks(uint32_t first, uint32_t end, uint64_t segment = 11) {
    DiskBatch batch;
    for (uint32_t block = first; block < end; ++block) {
      batch.PutRows(Key(block, segment), layout_, RowsOf(layout_, Key(block, segment)).data());
      batch.PutPiece(Key(block, segment), PieceOf(layout_, Key(block, segment)));
    }
    return tier_->Write(batch, /*sync=*/false, DiskTier::Growth::kBounded);
  }
  CellRead ReadGranule(uint32_t block, uint8_t granule, uint64_t segment = 11) {
    CellRead read;
    read.block = Key(block, segment);
    read.granule = granule;
    read.layout = &layout_;
    rows_.assign(layout_.rows_bytes(), std::byte{0xee});
    read.extent = rows_.data();
    tier_->Read({&read, 1}, Soon());
    return read;
  }
  // Changes the database behind the tier's back.
  void Tamper(const std::function<void(rocksdb::DB&)>& change) {
    tier_.reset();
    rocksdb::DB* raw = nullptr;
    ASSERT_TRUE(rocksdb::DB::Open({}, options_.path, &raw).ok());
    const std::unique_ptr<rocksdb::DB> db(raw);
    change(*db);
  }
  static rocksdb::Slice Slice(const RecordKey& key) {
    return {key.view().data(), key.view().size()};
  }

  const TempFolder folder_;
  const BlockLayout layout_ = SmallLayout();
  DiskTierOptions options_;
  std::unique_ptr<DiskTier> tier_;
  std::vector<std::byte> rows_;
};

TEST_F(DiskTierTest, GranulesAndPiecesAreReadBackAcrossReopening) {
  Open();
  ASSERT_OK(WriteBlocks(0, 20));
  for (const bool reopened : {false, true}) {
    if (reopened) Open();
    for (uint8_t granule = 0; granule < 4; ++granule) {
      const CellRead read = ReadGranule(17, granule);
      ASSERT_EQ(read.outcome, CellRead::Outcome::kRead) << read.error;
      EXPECT_EQ(read.stored_bytes, layout_.granule_bytes() + kChecksumBytes);
      EXPECT_TRUE(SameGranules(layout_, Key(17), rows_.data(), 1u << granule));
    }
    std::vector<std::byte> stripe(layout_.stripe_bytes());
    CellRead piece;
    piece.kind = RecordKind::kPiece;
    piece.block = Key(18);
    piece.layout = &layout_;
    piece.extent = stripe.data();
    tier_->Read({&piece, 1}, Soon());
    ASSERT_EQ(piece.outcome, CellRead::Outcome::kRead) << piece.error;
    EXPECT_TRUE(SamePiece(layout_, Key(18), stripe.data()));
  }
}

TEST_F(DiskTierTest, AReadFailsAloneInItsBatch) {
  Open();
  ASSERT_OK(WriteBlocks(0, 3));
  std::vector<std::byte> rows(layout_.rows_bytes());
  std::vector<CellRead> reads(3);
  for (uint32_t i = 0; i < 3; ++i) {
    reads[i].block = Key(i == 1 ? 99 : i);
    reads[i].granule = static_cast<uint8_t>(i);
    reads[i].layout = &layout_;
    reads[i].extent = rows.data();
  }
  tier_->Read(absl::MakeSpan(reads), Soon());
  EXPECT_EQ(reads[0].outcome, CellRead::Outcome::kRead);
  EXPECT_EQ(reads[1].outcome, CellRead::Outcome::kCorrupt) << "a promised value is not there";
  EXPECT_EQ(reads[2].outcome, CellRead::Outcome::kRead);
}

TEST_F(DiskTierTest, AFlippedBitIsFoundAndNoByteIsDelivered) {
  Open();
  ASSERT_OK(WriteBlocks(0, 2));
  const RecordKey key = RecordKey::Granule(Key(1), 2);
  Tamper([&](rocksdb::DB& db) {
    std::string value;
    ASSERT_TRUE(db.Get({}, Slice(key), &value).ok());
    value[1234] = static_cast<char>(value[1234] ^ 0x10);
    ASSERT_TRUE(db.Put({}, Slice(key), value).ok());
  });
  Open();
  const CellRead read = ReadGranule(1, 2);
  EXPECT_EQ(read.outcome, CellRead::Outcome::kCorrupt);
  EXPECT_THAT(read.error, HasSubstr("checksum"));
  EXPECT_EQ(rows_, std::vector<std::byte>(rows_.size(), std::byte{0xee}));
  EXPECT_EQ(ReadGranule(1, 1).outcome, CellRead::Outcome::kRead);
}

TEST_F(DiskTierTest, AValueUnderAnotherKeyIsCorrupt) {
  Open();
  ASSERT_OK(WriteBlocks(0, 2));
  Tamper([&](rocksdb::DB& db) {
    std::string value;
    ASSERT_TRUE(db.Get({}, Slice(RecordKey::Granule(Key(0), 2)), &value).ok());
    ASSERT_TRUE(db.Put({}, Slice(RecordKey::Granule(Key(1), 2)), value).ok());
  });
  Open();
  EXPECT_EQ(ReadGranule(0, 2).outcome, CellRead::Outcome::kRead);
  EXPECT_EQ(ReadGranule(1, 2).outcome, CellRead::Outcome::kCorrupt);
}

TEST_F(DiskTierTest, AByteRottenInABlobFileIsCorrupt) {
  Open();
  ASSERT_OK(WriteBlocks(0, 8));
  // Out of the log and the buffers, into a blob file.
  Tamper([](rocksdb::DB& db) { ASSERT_TRUE(db.Flush({}).ok()); });
  const std::vector<std::byte> rows = RowsOf(layout_, Key(5));
  const std::string granule(reinterpret_cast<const char*>(rows.data()) + layout_.granule_bytes(),
                            layout_.granule_bytes());
  int rotten = 0;
  for (const auto& entry : std::filesystem::directory_iterator(options_.path)) {
    std::ifstream in(entry.path(), std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(in), {}};
    const size_t at = bytes.find(granule);
    if (at == std::string::npos || entry.path().extension() == ".log") continue;
    ++rotten;
    bytes[at + 700] = static_cast<char>(bytes[at + 700] + 1);
    std::ofstream(entry.path(), std::ios::binary) << bytes;
  }
  ASSERT_EQ(rotten, 1);
  Open();
  EXPECT_EQ(ReadGranule(5, 1).outcome, CellRead::Outcome::kCorrupt);
  EXPECT_EQ(ReadGranule(5, 2).outcome, CellRead::Outcome::kRead);
}

TEST_F(DiskTierTest, FoldersOfOthersAreRefused) {
  Open();
  EXPECT_THAT(DiskTier::Open(options_), StatusIs(absl::StatusCode::kUnavailable))
      << "locked by the tier that is open";
  tier_.reset();
  DiskTierOptions other = options_;
  other.shard = 2;
  EXPECT_THAT(DiskTier::Open(other),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("shard 1")));
  Tamper([](rocksdb::DB& db) {
    std::string value = EncodeFormat({.version = 99, .shard = 1});
    AppendChecksum("f", value);
    ASSERT_TRUE(db.Put({}, "f", value).ok());
  });
  EXPECT_THAT(DiskTier::Open(options_),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("version 99")));
  Tamper([](rocksdb::DB& db) { ASSERT_TRUE(db.Put({}, "f", "rotten").ok()); });
  EXPECT_THAT(DiskTier::Open(options_), StatusIs(absl::StatusCode::kDataLoss));
  Tamper([](rocksdb::DB& db) {
    ASSERT_TRUE(db.Delete({}, "f").ok());
    ASSERT_TRUE(db.Put({}, "somebody", "else").ok());
  });
  EXPECT_THAT(DiskTier::Open(options_),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("not of this store")));
}

TEST_F(DiskTierTest, AFolderWithFilesOfOthersIsRefusedAndLeftAlone) {
  std::filesystem::create_directories(options_.path + "/lost+found");
  // Of a database that was being created.
  std::ofstream(options_.path + "/LOCK");
  std::ofstream(options_.path + "/MANIFEST-000001");
  const std::string notes = options_.path + "/notes.txt";
  std::ofstream(notes) << "notes";
  EXPECT_THAT(DiskTier::Open(options_),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("notes.txt")));
  const auto files = std::distance(std::filesystem::directory_iterator(options_.path),
                                   std::filesystem::directory_iterator());
  EXPECT_EQ(files, 4);
  std::filesystem::remove(notes);
  Open();
  EXPECT_OK(WriteBlocks(0, 1));
}

TEST_F(DiskTierTest, SegmentIdsNeverComeBack) {
  uint64_t last = 0;
  for (int round = 0; round < 3; ++round) {
    Open();
    for (int i = 0; i < 1500; ++i) {
      const auto id = tier_->NextSegmentId();
      ASSERT_OK(id);
      EXPECT_EQ(static_cast<uint64_t>(*id) >> 48, 1u);
      EXPECT_GT(static_cast<uint64_t>(*id), last);
      last = static_cast<uint64_t>(*id);
    }
  }
}

TEST_F(DiskTierTest, TheIndexNamesManifestsWatermarksAndDamage) {
  Open();
  DiskBatch batch;
  batch.PutManifest("one", {.attributes = "a", .ranges = {}});
  batch.PutManifest("two", {.attributes = "b", .ranges = {}});
  const std::vector<DurableExtent> layers = {{3, 0}, {4, 5}};
  batch.PutWatermark(SegmentId{0x1ff}, layers);
  ASSERT_OK(tier_->Write(batch, false, DiskTier::Growth::kBounded));
  auto index = tier_->LoadIndex();
  ASSERT_OK(index);
  ASSERT_EQ(index->manifests.size(), 2u);
  EXPECT_EQ(index->manifests[1].first, "two");
  EXPECT_EQ(index->manifests[1].second.attributes, "b");
  ASSERT_EQ(index->watermarks.size(), 1u);
  EXPECT_EQ(index->watermarks[0].first, SegmentId{0x1ff});
  EXPECT_EQ(index->watermarks[0].second[1].tail_rows, 5u);
  EXPECT_TRUE(index->damage.empty());
  Tamper([](rocksdb::DB& db) { ASSERT_TRUE(db.Put({}, "mone", "rotten").ok()); });
  Open();
  index = tier_->LoadIndex();
  ASSERT_OK(index);
  EXPECT_EQ(index->manifests.size(), 1u);
  EXPECT_EQ(index->damage.size(), 1u);
}

TEST_F(DiskTierTest, DeletesExactlyWhatItIsTold) {
  Open();
  for (const uint64_t segment : {0xfeu, 0xffu, 0x100u}) ASSERT_OK(WriteBlocks(0, 6, segment));
  // 200 blocks: deleted as ranges, where few are deleted one by one.
  ASSERT_OK(WriteBlocks(6, 200, 0xfe));
  DiskBatch batch;
  batch.DeleteSegment(SegmentId{0xff});
  batch.DeleteBlocks(Key(4, 0x100), 6, layout_.granules());
  batch.DeleteBlocks(Key(4, 0xfe), 200, layout_.granules());
  ASSERT_OK(tier_->Write(batch, false, DiskTier::Growth::kFrees));
  for (uint32_t block = 0; block < 6; ++block) {
    const auto kept = block < 4 ? CellRead::Outcome::kRead : CellRead::Outcome::kCorrupt;
    EXPECT_EQ(ReadGranule(block, 3, 0xfe).outcome, kept) << block;
    EXPECT_EQ(ReadGranule(block, 3, 0xff).outcome, CellRead::Outcome::kCorrupt) << block;
    EXPECT_EQ(ReadGranule(block, 3, 0x100).outcome, kept) << block;
  }
}

TEST_F(DiskTierTest, StaysWithinItsBudgetAndReclaimsWhatWasDeleted) {
  Open();
  // 128 blocks of 8 KiB a batch; two segments share every file.
  constexpr uint32_t kStep = 64;
  uint32_t blocks = 0;
  absl::Status status;
  while (status.ok()) {
    ASSERT_LT(blocks, 10'000u) << "the budget is never reached";
    status = WriteBlocks(blocks, blocks + kStep, 21);
    if (status.ok()) status = WriteBlocks(blocks, blocks + kStep, 22);
    if (status.ok()) blocks += kStep;
    ASSERT_LE(tier_->used_bytes(), options_.bytes);
  }
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("budget")));
  EXPECT_GT(uint64_t{blocks} * 2 * layout_.rows_bytes(), options_.bytes / 2)
      << "most of it is used";
  DiskBatch batch;
  batch.DeleteSegment(SegmentId{21});
  ASSERT_OK(tier_->Write(batch, false, DiskTier::Growth::kFrees));
  std::atomic<bool> cancelled = true;
  EXPECT_THAT(tier_->Reclaim(/*goal_bytes=*/0, cancelled),
              StatusIs(absl::StatusCode::kUnavailable));
  cancelled = false;
  ASSERT_OK(tier_->Reclaim(options_.bytes * 3 / 4, cancelled));
  EXPECT_LE(tier_->used_bytes(), options_.bytes * 3 / 4);
  EXPECT_LE(tier_->used_bytes(), options_.bytes);
  EXPECT_OK(WriteBlocks(0, 256, 23));
  for (uint32_t block = 0; block < blocks; block += 7) {
    const auto granule = static_cast<uint8_t>(block % 4);
    ASSERT_EQ(ReadGranule(block, granule, 22).outcome, CellRead::Outcome::kRead);
    ASSERT_TRUE(SameGranules(layout_, Key(block, 22), rows_.data(), 1u << granule));
  }
}

// Writers that take all the room they are given, beside a reclaim that has half of what is there to
// rewrite.
TEST_F(DiskTierTest, AReclaimKeepsItsRoomFromWriters) {
  Open();
  uint32_t blocks = 0;
  while (WriteBlocks(blocks, blocks + 64, 21).ok() && WriteBlocks(blocks, blocks + 64, 22).ok()) {
    blocks += 64;
    ASSERT_LT(blocks, 10'000u) << "the budget is never reached";
  }
  DiskBatch batch;
  for (uint32_t block = 0; block < blocks; block += 2) {
    batch.DeleteBlocks(Key(block, 21), block + 1, layout_.granules());
  }
  ASSERT_OK(tier_->Write(batch, false, DiskTier::Growth::kFrees));
  std::atomic<bool> cancelled = false;
  std::atomic<bool> done = false;
  std::thread reclaim([&] {
    EXPECT_OK(tier_->Reclaim(options_.bytes * 3 / 4, cancelled));
    done = true;
  });
  int written = 0;
  for (uint32_t i = 0; !done; ++i) {
    DiskBatch more;
    more.PutRows(Key(i, 23), layout_, RowsOf(layout_, Key(i, 23)).data());
    const auto growth = i % 2 == 0 ? DiskTier::Growth::kReplaces : DiskTier::Growth::kBounded;
    const absl::Status status = tier_->Write(more, false, growth);
    EXPECT_TRUE(status.ok() || absl::IsResourceExhausted(status)) << status;
    written += status.ok() ? 1 : 0;
    const uint64_t used = tier_->used_bytes();
    if (used > options_.bytes) ADD_FAILURE() << "I5: " << used << " bytes used";
    if (::testing::Test::HasFailure()) break;
  }
  reclaim.join();
  EXPECT_GT(written, 0);
}

// What replaces may use the headroom, and no more than all of it.
TEST_F(DiskTierTest, WhatReplacesEndsAtTheBudgetToo) {
  Open();
  uint32_t blocks = 0;
  const auto fill = [&](DiskTier::Growth growth) {
    absl::Status status;
    while (status.ok()) {
      DiskBatch batch;
      batch.PutRows(Key(blocks), layout_, RowsOf(layout_, Key(blocks)).data());
      status = tier_->Write(batch, false, growth);
      if (status.ok()) ++blocks;
      ASSERT_LT(blocks, 20'000u) << "the budget is never reached";
    }
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("budget")));
    EXPECT_LE(tier_->used_bytes(), options_.bytes);
  };
  fill(DiskTier::Growth::kBounded);
  const uint32_t bounded = blocks;
  fill(DiskTier::Growth::kReplaces);
  EXPECT_GT(blocks, bounded) << "the headroom serves nobody";
  // And what deletes goes through.
  DiskBatch batch;
  batch.DeleteSegment(SegmentId{11});
  ASSERT_OK(tier_->Write(batch, false, DiskTier::Growth::kFrees));
  std::atomic<bool> cancelled = false;
  ASSERT_OK(tier_->Reclaim(/*goal_bytes=*/0, cancelled));
  EXPECT_LT(tier_->used_bytes(), options_.bytes / 2);
}

TEST_F(DiskTierTest, RotIsWrittenAnewInBatches) {
  Open();
  const std::string rotten(size_t{1} << 20, 'r');
  std::vector<std::string> keys;
  for (uint32_t block = 0; block < 10; ++block) {
    const RecordKey key = RecordKey::Granule(Key(block), 0);
    keys.emplace_back(key.view());
    DiskBatch batch;
    batch.PutAsIs(key.view(), rotten);
    ASSERT_OK(tier_->Write(batch, false, DiskTier::Growth::kBounded));
  }
  std::atomic<bool> cancelled = false;
  const auto found = tier_->FindCorrupt(cancelled);
  ASSERT_OK(found);
  EXPECT_EQ(*found, keys);
  const uint64_t writes = tier_->write_count();
  std::vector<size_t> counts;
  for (absl::Span<const std::string> rest = *found; !rest.empty();) {
    const auto moved = tier_->Rewrite(rest);
    ASSERT_OK(moved);
    ASSERT_GT(*moved, 0u);
    counts.push_back(*moved);
    rest.remove_prefix(*moved);
  }
  // More than 4 MiB by a record at most.
  EXPECT_EQ(counts, (std::vector<size_t>{4, 4, 2}));
  EXPECT_EQ(tier_->write_count() - writes, counts.size());
}

// Readers wait for whoever opens the database anew, and he for its users.
TEST_F(DiskTierTest, WhoStaysLongLeavesWhenItIsOpenedAnew) {
  const auto database = DiskDatabase::Open(options_.path, options_.bytes, false, nullptr);
  ASSERT_OK(database);
  for (const auto purpose : {DiskDatabase::Purpose::kRead, DiskDatabase::Purpose::kChange}) {
    std::atomic<bool> entered = false;
    std::atomic<bool> must_leave = false;
    std::thread user([&] {
      const DiskDatabase::Use db(**database, purpose, &must_leave);
      entered = true;
      while (!must_leave) std::this_thread::yield();
    });
    while (!entered) std::this_thread::yield();
    (*database)->StopsWriting();
    (*database)->Revive();
    user.join();
    EXPECT_FALSE((*database)->failed());
    // Whoever comes then is not told to leave.
    must_leave = false;
    const DiskDatabase::Use db(**database, purpose, &must_leave);
    EXPECT_TRUE(static_cast<bool>(db));
    EXPECT_FALSE(must_leave);
  }
}

TEST_F(DiskTierTest, TailsAreReadBackAndDeleted) {
  Open();
  const std::vector<std::byte> rows = RowsOf(layout_, Key(3));
  DiskBatch batch;
  batch.PutTail(Key(3), absl::MakeConstSpan(rows).first(3 * layout_.row_bytes));
  ASSERT_OK(tier_->Write(batch, true, DiskTier::Growth::kBounded));
  const auto tail = tier_->ReadTail(Key(3), layout_, 3);
  ASSERT_OK(tail);
  EXPECT_EQ(tail->size(), 3 * layout_.row_bytes);
  EXPECT_EQ(std::memcmp(tail->data(), rows.data(), tail->size()), 0);
  DiskBatch removal;
  removal.DeleteTail(Key(3));
  ASSERT_OK(tier_->Write(removal, true, DiskTier::Growth::kFrees));
  EXPECT_THAT(tier_->ReadTail(Key(3), layout_, 3), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(DiskTierTest, ATailWithoutARecordIsReadFromTheBlock) {
  Open();
  ASSERT_OK(WriteBlocks(3, 4));
  const std::vector<std::byte> rows = RowsOf(layout_, Key(3));
  for (uint32_t count = 1; count < layout_.block_tokens; ++count) {
    const auto whole = tier_->ReadTail(Key(3), layout_, count);
    ASSERT_OK(whole) << count;
    ASSERT_GE(whole->size(), size_t{count} * layout_.row_bytes);
    ASSERT_LT(whole->size(), size_t{count} * layout_.row_bytes + layout_.granule_bytes());
    EXPECT_EQ(std::memcmp(whole->data(), rows.data(), whole->size()), 0);
  }
  DiskBatch tail;
  tail.PutTail(Key(3), absl::MakeConstSpan(rows).last(3 * layout_.row_bytes));
  ASSERT_OK(tier_->Write(tail, true, DiskTier::Growth::kBounded));
  const auto record = tier_->ReadTail(Key(3), layout_, 3);
  ASSERT_OK(record);
  EXPECT_NE(std::memcmp(record->data(), rows.data(), record->size()), 0);
}

TEST_F(DiskTierTest, GoesOnAfterTheFileSystemRefusedAWrite) {
  Open();
  ASSERT_OK(WriteBlocks(0, 4));
  ASSERT_OK(tier_->Sync());
  // No file may grow beyond what is a small part of a batch: what a full disk looks like.
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit tight = before;
  tight.rlim_cur = 40'000;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &tight), 0);
  absl::Status status;
  for (int i = 0; i < 100 && status.ok(); ++i) status = WriteBlocks(100, 110);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable));
  // The first attempt may still find the database stopped.
  for (int i = 0; i < 100; ++i) {
    status = WriteBlocks(4, 8);
    if (status.ok()) break;
  }
  EXPECT_OK(status);
  Open();
  for (uint32_t block = 0; block < 8; ++block) {
    EXPECT_EQ(ReadGranule(block, 0).outcome, CellRead::Outcome::kRead) << block;
  }
}

}  // namespace
}  // namespace terrace::kvstore
