// Any byte of a folder may rot while nobody has it open. Then the store says so when it is opened
// or read, or nothing that it serves has changed (I1): it neither serves a wrong byte nor dies of
// one.
//
// Bytes are drawn from a seed, which is printed; TERRACE_TEST_SEED=N draws the same again.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/sim/sim_seeds.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

namespace fs = std::filesystem;

constexpr int kTrialsPerKind = 40;
constexpr uint32_t kBlocks = 16;

enum class Kind { kTable, kBlob, kLog, kManifest, kCurrent };

Kind KindOf(const std::string& name) {
  if (absl::EndsWith(name, ".sst")) return Kind::kTable;
  if (absl::EndsWith(name, ".blob")) return Kind::kBlob;
  if (absl::EndsWith(name, ".log")) return Kind::kLog;
  return absl::StartsWith(name, "MANIFEST") ? Kind::kManifest : Kind::kCurrent;
}

uint64_t Seed() {
  const char* given = std::getenv("TERRACE_TEST_SEED");
  return given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
}

class StoreCorruptionTest : public ::testing::TestWithParam<Kind> {
 protected:
  StoreCorruptionTest() : seed_(Seed()), random_(seed_) {
    std::printf("TERRACE_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed_));
    options_.host_bytes = uint64_t{1} << 20;
    options_.disk_path = folder_.path() + "/disk";
    options_.disk_bytes = uint64_t{64} << 20;
    MakeOriginal();
  }

  // Some sequences: blocks in tables and blobs, deleted ones, tails, and more in the log.
  void MakeOriginal() {
    for (int life = 0; life < 3; ++life) {
      auto store = BlockStore::Open(options_);
      ASSERT_OK(store);
      std::vector<Manifest> recovered = (*store)->TakeRecovered();
      for (uint32_t i = 0; i < 2; ++i) {
        // A second one with rows that are small enough to lie in tables.
        BlockLayout layout = SmallLayout();
        if (i == 1) layout.row_bytes = 32;
        const std::string name = absl::StrCat("life ", life, " ", i);
        const SegmentRef segment = *(*store)->CreateSegment(layout, 0);
        ASSERT_OK((*store)->CommitManifest({name, name, {{segment, 0, kOpenEnd}}}, Soon()));
        ASSERT_OK(AppendBlocks(**store, *segment, 0, kBlocks));
        for (uint16_t layer = 0; layer < layout.layers; ++layer) {
          ASSERT_OK((*store)->Reserve(*segment, layer, kBlocks, kBlocks + 1, Soon()));
          for (uint16_t head = 0; head < layout.heads; ++head) {
            const std::vector<std::byte> rows =
                RowsOf(layout, {(*store)->id(*segment), layer, head, kBlocks});
            std::copy(rows.begin(), rows.end(), (*store)->OpenRows(*segment, layer, head, kBlocks));
          }
        }
        ASSERT_OK(
            (*store)->Flush(*segment, std::vector<uint32_t>(layout.layers, kTailRows), Soon()));
        ids_[name] = (*store)->id(*segment);
      }
      if (life == 1) {
        ASSERT_OK((*store)->DeleteManifest("life 0 0", Soon()));
      }
    }
    ids_.erase("life 0 0");
    fs::rename(options_.disk_path, folder_.path() + "/original");
  }

  // The folder as it was, to know that what is told later was not always so.
  void CheckIntact() {
    fs::copy(folder_.path() + "/original", options_.disk_path);
    CheckFolder();
    ASSERT_EQ(told_, 0);
  }
  // Of a new copy, in order.
  std::vector<fs::path> Files(Kind kind) {
    fs::remove_all(options_.disk_path);
    fs::copy(folder_.path() + "/original", options_.disk_path);
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(options_.disk_path)) {
      const std::string name = entry.path().filename();
      const bool is_data =
          name == "CURRENT" || absl::StartsWith(name, "MANIFEST") || KindOf(name) < Kind::kManifest;
      if (is_data && KindOf(name) == kind && entry.file_size() > 0) files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    return files;
  }
  // One byte of a new copy; false when there is no file of that kind.
  bool Corrupt(Kind kind) {
    const std::vector<fs::path> files = Files(kind);
    if (files.empty()) return false;
    const fs::path& path = files[random_() % files.size()];
    Corrupt(path, static_cast<std::streamoff>(random_() % fs::file_size(path)));
    return true;
  }
  void Corrupt(const fs::path& path, std::streamoff offset) {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    char byte = 0;
    file.seekg(offset).get(byte);
    // A bit, or all of them.
    const int change = random_() % 4 == 0 ? 0xff : 1 << random_() % 8;
    file.seekp(offset).put(static_cast<char>(byte ^ change));
    what_ = absl::StrCat(path.filename().string(), " at ", offset, " changed by ", change);
  }

  // OK, or an error that says what is lost.
  static void ExpectRightOrLost(const absl::Status& status) {
    EXPECT_TRUE(status.ok() || absl::IsDataLoss(status)) << status;
    told_ += status.ok() ? 0 : 1;
  }

  void CheckFolder() {
    auto store = BlockStore::Open(options_);
    if (!store.ok()) {
      ++told_;
      EXPECT_TRUE(absl::IsDataLoss(store.status()) || absl::IsUnavailable(store.status()) ||
                  absl::IsFailedPrecondition(store.status()))
          << store.status();
      return;
    }
    size_t served = 0;
    for (const Manifest& manifest : (*store)->TakeRecovered()) {
      ASSERT_TRUE(ids_.contains(manifest.name)) << manifest.name << " comes from nowhere";
      ASSERT_EQ(manifest.attributes, manifest.name);
      Segment& segment = *manifest.ranges.at(0).segment;
      ASSERT_EQ((*store)->id(segment), ids_[manifest.name]);
      CheckSegment(**store, segment);
      ++served;
    }
    // What is missing is told, unless it is the end of the log that is gone.
    if (GetParam() != Kind::kLog && served != ids_.size()) {
      EXPECT_GT((*store)->DiskStats().error_count, 0u) << "a sequence is gone, and nobody says so";
    }
  }

  void CheckSegment(BlockStore& store, Segment& segment) {
    const BlockLayout& layout = store.layout(segment);
    for (uint16_t layer = 0; layer < layout.layers; ++layer) {
      for (uint16_t head = 0; head < layout.heads; ++head) {
        const uint32_t end = store.SealedEnd(segment, layer, head);
        ASSERT_LE(end, kBlocks);
        for (uint32_t block = 0; block < end; ++block) {
          ExpectRightOrLost(CheckBlock(store, segment, layer, head, block));
        }
      }
      const DurableExtent durable = store.Durable(segment, layer);
      const absl::Status restored = store.RestoreTail(segment, layer, Soon());
      ExpectRightOrLost(restored);
      if (!restored.ok() || durable.tail_rows == 0) continue;
      ASSERT_EQ(durable.tail_rows, kTailRows);
      for (uint16_t head = 0; head < layout.heads; ++head) {
        const std::vector<std::byte> rows =
            RowsOf(layout, {store.id(segment), layer, head, durable.end_block});
        EXPECT_EQ(std::memcmp(store.OpenRows(segment, layer, head, durable.end_block), rows.data(),
                              kTailRows * layout.row_bytes),
                  0);
      }
    }
  }

  static constexpr uint32_t kTailRows = 5;
  const uint64_t seed_;
  std::mt19937_64 random_;
  const TempFolder folder_{terrace::testing::FastFolder()};
  StoreOptions options_;
  // By name.
  std::map<std::string, SegmentId> ids_;
  std::string what_;
  // Errors so far.
  inline static int told_ = 0;
};

TEST_P(StoreCorruptionTest, AByteThatRottedIsToldOrDoesNotMatter) {
  if (HasFailure()) return;
  told_ = 0;
  CheckIntact();
  for (int trial = 0; trial < kTrialsPerKind && !HasFailure(); ++trial) {
    ASSERT_TRUE(Corrupt(GetParam())) << "no such file";
    SCOPED_TRACE(what_);
    CheckFolder();
  }
  // A log that rotted ends where one would that was torn: nobody can tell, and what lies before
  // that is served.
  EXPECT_EQ(told_ > 0, GetParam() != Kind::kLog);
}

// It is short, and one byte in it can hide all that it says after.
using StoreManifestFileTest = StoreCorruptionTest;

TEST_P(StoreManifestFileTest, EachOfItsBytesIsToldOrDoesNotMatter) {
  if (HasFailure()) return;
  const auto bytes = static_cast<std::streamoff>(fs::file_size(Files(GetParam()).at(0)));
  for (std::streamoff offset = 0; offset < bytes && !HasFailure(); ++offset) {
    Corrupt(Files(GetParam()).at(0), offset);
    SCOPED_TRACE(what_);
    CheckFolder();
  }
}

std::string NameOf(const ::testing::TestParamInfo<Kind>& each) {
  constexpr const char* kNames[] = {"Table", "Blob", "Log", "Manifest", "Current"};
  return kNames[static_cast<int>(each.param)];
}

INSTANTIATE_TEST_SUITE_P(Files, StoreCorruptionTest,
                         ::testing::Values(Kind::kTable, Kind::kBlob, Kind::kLog, Kind::kManifest,
                                           Kind::kCurrent),
                         NameOf);

INSTANTIATE_TEST_SUITE_P(Files, StoreManifestFileTest, ::testing::Values(Kind::kManifest), NameOf);

}  // namespace
}  // namespace terrace::kvstore
