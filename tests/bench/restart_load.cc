// Reads from disk, after a restart: all rows in order, and random granules.
#include <algorithm>
#include <cstdint>
#include <functional>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/bench/block_data.h"
#include "tests/bench/comparison.h"
#include "tests/bench/data_folder.h"
#include "tests/bench/raw_file.h"
#include "tests/bench/require.h"
#include "tests/bench/store_loads.h"
#include "tests/bench/trial.h"

namespace terrace::bench {
namespace {

using kvstore::ReadRequest;

constexpr double kMiB = 1 << 20;
constexpr int kLayers = 8;
constexpr int kHeads = 8;
constexpr int kReaders = 8;
// Of each head, per call of a restore: 16 MiB of rows.
constexpr uint32_t kCallBlocks = 64;
// Rows that each of 8 heads selects in a step.
constexpr size_t kCallGranules = size_t{8} * 64;

class StoredSequence {
 public:
  StoredSequence(const BenchArgs& args, uint32_t blocks)
      : folder_(args.folder), data_(EngineLayout(kLayers, kHeads), blocks) {}

  // MiB/s of rows until all of them are on disk.
  double Write();
  // Opens the store anew; the sequence's segment in it. Seconds.
  double Restart();
  void Stop() { store_.reset(); }

  // Pins all rows, layer after layer. Seconds.
  double Restore(bool verify);
  // Pins granules at random, none twice, in `calls` calls. Seconds.
  double ReadSparse(size_t calls, uint64_t seed, bool verify);

  const BlockData& data() const { return data_; }
  const std::string& folder() const { return folder_.path(); }

 private:
  kvstore::StoreOptions Options() const {
    kvstore::StoreOptions options;
    options.host_bytes = data_.row_bytes() * 2;
    options.disk_path = folder_.path() + "/store";
    options.reader_threads = kReaders;
    return options;
  }
  void Pin(const std::vector<ReadRequest>& requests, bool verify);

  const DataFolder folder_;
  const BlockData data_;
  kvstore::SegmentRef segment_;
  std::unique_ptr<kvstore::BlockStore> store_;
};

double StoredSequence::Write() {
  store_ = RequireOk(kvstore::BlockStore::Open(Options()), "opening a store");
  segment_ = RequireOk(store_->CreateSegment(data_.layout(), 0), "creating a segment");
  RequireOk(store_->CommitManifest(
                {.name = "bench", .attributes = "", .ranges = {{segment_, 0, kvstore::kOpenEnd}}},
                absl::InfiniteFuture()),
            "committing a manifest");
  const Stopwatch watch;
  data_.Fill(*store_, *segment_, 0, kLayers);
  RequireOk(store_->Flush(*segment_, {}, absl::InfiniteFuture()), "flushing");
  const double seconds = watch.seconds();
  segment_.reset();
  store_.reset();
  return static_cast<double>(data_.row_bytes()) / kMiB / seconds;
}

double StoredSequence::Restart() {
  segment_.reset();
  store_.reset();
  ChillFiles(folder_.path());
  const Stopwatch watch;
  store_ = RequireOk(kvstore::BlockStore::Open(Options()), "opening a store");
  const std::vector<kvstore::Manifest> manifests = store_->TakeRecovered();
  const double seconds = watch.seconds();
  Require(manifests.size() == 1, "the sequence came back");
  segment_ = manifests[0].ranges[0].segment;
  Require(store_->SealedEnd(*segment_, 0, 0) == data_.blocks(), "all blocks came back");
  return seconds;
}

void StoredSequence::Pin(const std::vector<ReadRequest>& requests, bool verify) {
  const kvstore::Pins pins = store_->PinRows(requests, absl::InfiniteFuture());
  for (size_t i = 0; i < requests.size(); ++i) {
    const kvstore::PinnedExtent& extent = pins.extents()[i];
    RequireOk(extent.status, "reading rows");
    Require(extent.from_disk == requests[i].cells, "rows come from disk");
  }
  if (verify) Require(data_.Matches(requests, pins), "rows from disk");
}

double StoredSequence::Restore(bool verify) {
  const uint64_t all = (uint64_t{1} << data_.layout().granules()) - 1;
  std::vector<ReadRequest> requests;
  const Stopwatch watch;
  for (uint16_t layer = 0; layer < kLayers; ++layer) {
    for (uint32_t first = 0; first < data_.blocks(); first += kCallBlocks) {
      requests.clear();
      for (uint16_t head = 0; head < kHeads; ++head) {
        for (uint32_t i = first; i < std::min(first + kCallBlocks, data_.blocks()); ++i) {
          requests.push_back({segment_.get(), layer, head, i, all});
        }
      }
      Pin(requests, verify);
    }
  }
  return watch.seconds();
}

double StoredSequence::ReadSparse(size_t calls, uint64_t seed, bool verify) {
  const uint32_t granules = data_.layout().granules();
  std::vector<uint32_t> chosen(kLayers * kHeads * data_.blocks() * granules);
  for (size_t i = 0; i < chosen.size(); ++i) chosen[i] = static_cast<uint32_t>(i);
  std::shuffle(chosen.begin(), chosen.end(), std::mt19937_64(seed));
  chosen.resize(std::min(chosen.size(), calls * kCallGranules));
  std::vector<std::vector<ReadRequest>> all;
  for (size_t i = 0; i < chosen.size(); ++i) {
    if (i % kCallGranules == 0) all.emplace_back();
    const uint32_t block = chosen[i] / granules;
    const uint32_t lane = block / data_.blocks();
    all.back().push_back({segment_.get(), static_cast<uint16_t>(lane / kHeads),
                          static_cast<uint16_t>(lane % kHeads), block % data_.blocks(),
                          uint64_t{1} << chosen[i] % granules});
  }
  const Stopwatch watch;
  for (const std::vector<ReadRequest>& requests : all) Pin(requests, verify);
  return watch.seconds();
}

void AddRestore(const BenchArgs& args, StoredSequence& stored, const RawFile& raw, Sheet& sheet) {
  std::vector<double> opening;
  const auto restart_and = [&](const std::function<double()>& read) {
    opening.push_back(stored.Restart());
    return read();
  };
  restart_and([&] { return stored.Restore(/*verify=*/true); });
  const std::vector<double> seconds = Interleave(
      args.runs, {[&] { return restart_and([&] { return stored.Restore(false); }); },
                  [&] { return raw.ReadAll(1); }, [&] { return raw.ReadAll(kReaders); }});
  const double mib = static_cast<double>(stored.data().row_bytes()) / kMiB;
  const std::string size = absl::StrCat(static_cast<int>(mib), " MiB of rows, 8 reader threads");
  sheet.Add(Comparison{.load = "restore after a restart, against 1 thread x 1 MiB",
                       .size = size,
                       .unit = "MiB/s",
                       .ours = mib / seconds[0],
                       .baseline = static_cast<double>(raw.bytes()) / kMiB / seconds[1],
                       .ratio_min = 0.6,
                       .ours_max = {}}
                .Row());
  sheet.Add(Comparison{.load = "  against 8 threads x 1 MiB",
                       .size = size,
                       .unit = "MiB/s",
                       .ours = mib / seconds[0],
                       .baseline = static_cast<double>(raw.bytes()) / kMiB / seconds[2],
                       .ratio_min = {},
                       .ours_max = {}}
                .Row());
  sheet.Add(Comparison{.load = "open the store",
                       .size = size,
                       .unit = "ms",
                       .ours = Median(opening) * 1e3,
                       .baseline = {},
                       .ratio_min = {},
                       .ours_max = {}}
                .Row());
}

void AddSparse(const BenchArgs& args, StoredSequence& stored, const RawFile& raw, Sheet& sheet) {
  const size_t calls = args.quick ? 1 : 16;
  const size_t granule = stored.data().layout().granule_bytes();
  uint64_t seed = 1;
  const auto sparse = [&](bool verify) {
    stored.Restart();
    return stored.ReadSparse(calls, ++seed, verify);
  };
  const auto bare = [&] {
    std::mt19937_64 random(++seed);
    std::vector<uint64_t> offsets(calls * kCallGranules);
    for (uint64_t& offset : offsets) offset = random() % (raw.bytes() / granule) * granule;
    return raw.Read(offsets, granule, kReaders);
  };
  sparse(/*verify=*/true);
  const std::vector<double> seconds = Interleave(args.runs, {[&] { return sparse(false); }, bare});
  const auto reads = static_cast<double>(calls * kCallGranules);
  sheet.Add(Comparison{.load = "sparse reads after a restart, calls of 512",
                       .size = absl::StrCat(granule, " B granules, 8 reader threads"),
                       .unit = "reads/s",
                       .ours = reads / seconds[0],
                       .baseline = reads / seconds[1],
                       .ratio_min = 0.6,
                       .ours_max = {}}
                .Row());
}

}  // namespace

void MeasureDisk(const BenchArgs& args, Sheet& sheet) {
  StoredSequence stored(args, args.quick ? 4 : 256);
  const double written = stored.Write();
  const RawFile raw(stored.folder() + "/raw", stored.data().row_bytes());
  if (!raw.direct()) std::cerr << "no direct reads here: the page cache helps all" << std::endl;
  sheet.Add(Comparison{.load = "write behind, until flushed (one run)",
                       .size = absl::StrCat(stored.data().row_bytes() >> 20, " MiB of rows"),
                       .unit = "MiB/s",
                       .ours = written,
                       .baseline = {},
                       .ratio_min = {},
                       .ours_max = {}}
                .Row());
  AddRestore(args, stored, raw, sheet);
  AddSparse(args, stored, raw, sheet);
  stored.Stop();
}

}  // namespace terrace::bench
