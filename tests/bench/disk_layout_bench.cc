// Which layout the disk tier should have: values of a granule or of a block, in blob files or in
// the tree, direct or buffered, with how many readers and in what batches. Only RocksDB is measured
// here, not the store; README.md beside this says what came out.
#include <array>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/bench/bench_args.h"
#include "tests/bench/data_folder.h"
#include "tests/bench/disk_layout.h"
#include "tests/bench/sheet.h"
#include "tests/bench/trial.h"

namespace terrace::bench {
namespace {

constexpr double kMiB = 1 << 20;

struct Size {
  // Of each layer and head. 128 are 256 MiB of rows and 74 MiB of pieces.
  uint32_t blocks = 128;
  size_t random_rows = 2048;
};

struct ReadPlan {
  DiskLayout layout;
  bool direct = true;
  int threads = 4;
  size_t batch = 32;
  bool checked_twice = true;
};

// One factor at a time from the first, then pairs that may matter together.
const std::vector<ReadPlan>& ReadPlans() {
  constexpr DiskLayout kBase;
  constexpr DiskLayout kBlocks{.whole_blocks = true};
  constexpr DiskLayout kTree{.blob_files = false};
  static const auto* const plans = new std::vector<ReadPlan>{
      {.layout = kBase},
      {.layout = kBlocks},
      {.layout = kTree},
      {.layout = kBase, .direct = false},
      {.layout = kBase, .threads = 1},
      {.layout = kBase, .threads = 2},
      {.layout = kBase, .threads = 8},
      {.layout = kBase, .batch = 1},
      {.layout = kBase, .batch = 8},
      {.layout = kBase, .batch = 128},
      {.layout = kBase, .checked_twice = false},
      {.layout = kBlocks, .batch = 8},
      {.layout = kBlocks, .direct = false},
      {.layout = {.whole_blocks = true, .blob_files = false}},
      {.layout = kTree, .direct = false},
      {.layout = kBase, .direct = false, .threads = 1},
      {.layout = kBase, .threads = 1, .batch = 1},
      {.layout = kBase, .threads = 8, .batch = 128},
      {.layout = kBase, .threads = 8, .checked_twice = false},
      {.layout = kBlocks, .checked_twice = false},
      {.layout = kTree, .checked_twice = false},
  };
  return *plans;
}

struct WritePlan {
  DiskLayout layout;
  bool direct = false;
};

constexpr std::array<WritePlan, 5> kWritePlans = {{
    {.layout = {}, .direct = true},
    {.layout = {}},
    {.layout = {.whole_blocks = true}},
    {.layout = {.blob_files = false}},
    {.layout = {.whole_blocks = true, .blob_files = false}},
}};

enum class Load { kRestore, kResume, kSparse };
constexpr std::array<std::pair<Load, const char*>, 3> kLoads = {
    {{Load::kRestore, "restore"}, {Load::kResume, "resume"}, {Load::kSparse, "sparse"}}};

struct ReadFigures {
  std::vector<double> seconds;
  double storage_bytes = 0;
};

class LayoutBench {
 public:
  LayoutBench(const BenchArgs& args, const Size& size)
      : args_(args), size_(size), folder_(args.folder), pool_(size_t{64} << 20) {
    for (int i = 0; i < 4; ++i) {
      const DiskLayout layout{.whole_blocks = i / 2 == 1, .blob_files = i % 2 == 0};
      datasets_.push_back(std::make_unique<DiskDataset>(absl::StrCat(folder_.path(), "/", i),
                                                        layout, size.blocks, pool_));
    }
  }

  void RunWrites();
  void RunReads();
  void Print() const { sheet_.Print(args_); }

 private:
  const DiskDataset& DatasetOf(const DiskLayout& layout) const {
    return *datasets_[(layout.whole_blocks ? 2 : 0) + (layout.blob_files ? 0 : 1)];
  }
  void MeasureRead(const ReadPlan& plan, Load load, int run, ReadFigures& figures) const;
  void AddRead(const ReadPlan& plan, Load load, const char* name, const ReadFigures& figures);

  const BenchArgs& args_;
  const Size size_;
  const DataFolder folder_;
  const BytePool pool_;
  std::vector<std::unique_ptr<DiskDataset>> datasets_;
  Sheet sheet_;
};

void LayoutBench::RunWrites() {
  std::array<std::vector<double>, kWritePlans.size()> seconds;
  std::array<double, kWritePlans.size()> amplification{};
  for (int run = 0; run < args_.runs; ++run) {
    for (size_t i = 0; i < kWritePlans.size(); ++i) {
      std::cerr << "write " << run + 1 << "/" << args_.runs << ", layout " << i + 1 << "/"
                << kWritePlans.size() << std::endl;
      const WriteFigures figures = DatasetOf(kWritePlans[i].layout).Write(kWritePlans[i].direct);
      seconds[i].push_back(figures.seconds);
      amplification[i] = figures.amplification;
    }
  }
  for (const auto& dataset : datasets_) dataset->Verify();
  for (size_t i = 0; i < kWritePlans.size(); ++i) {
    const DiskDataset& data = DatasetOf(kWritePlans[i].layout);
    const double median = Median(seconds[i]);
    const auto values = static_cast<double>(data.row_bytes() / data.layout().value_bytes());
    sheet_.Add(
        {{"load", "write"},
         {"values", data.layout().whole_blocks ? "32 KiB" : "8 KiB"},
         {"in", data.layout().blob_files ? "blobs" : "tree"},
         {"I/O", kWritePlans[i].direct ? "direct" : "buffered"},
         {"threads", 1},
         {"batch", "4 MiB"},
         {"CRC", "-"},
         {"MiB/s", static_cast<double>(data.row_bytes() + data.piece_bytes()) / median / kMiB},
         {"values/s", values / median},
         {"amplification", amplification[i]}});
  }
}

void LayoutBench::MeasureRead(const ReadPlan& plan, Load load, int run,
                              ReadFigures& figures) const {
  const DiskDataset& data = DatasetOf(plan.layout);
  DiskReads reads{.keys = {},
                  .threads = plan.threads,
                  .batch = plan.batch,
                  .checked_twice = plan.checked_twice};
  switch (load) {
    case Load::kRestore:
      reads.keys = data.RowKeys();
      break;
    case Load::kResume:
      reads.keys = data.PieceKeys();
      break;
    case Load::kSparse:
      reads.keys = data.RandomRowKeys(size_.random_rows, static_cast<uint64_t>(run));
      break;
  }
  const std::unique_ptr<rocksdb::DB> db = data.OpenCold(plan.direct);
  const uint64_t before = StorageBytesRead();
  figures.seconds.push_back(data.Read(*db, reads));
  figures.storage_bytes = static_cast<double>(StorageBytesRead() - before);
}

// Bytes are those that were asked for: of a sparse read the row, not what it lies in.
void LayoutBench::AddRead(const ReadPlan& plan, Load load, const char* name,
                          const ReadFigures& figures) {
  const DiskDataset& data = DatasetOf(plan.layout);
  const double median = Median(figures.seconds);
  double bytes = static_cast<double>(data.row_bytes());
  double values = bytes / data.layout().value_bytes();
  if (load == Load::kResume) {
    bytes = static_cast<double>(data.piece_bytes());
    values = bytes / kPieceBytes;
  } else if (load == Load::kSparse) {
    values = static_cast<double>(size_.random_rows);
    bytes = values * kRowBytes;
  }
  sheet_.Add({{"load", name},
              {"values", plan.layout.whole_blocks ? "32 KiB" : "8 KiB"},
              {"in", plan.layout.blob_files ? "blobs" : "tree"},
              {"I/O", plan.direct ? "direct" : "buffered"},
              {"threads", plan.threads},
              {"batch", std::to_string(plan.batch)},
              {"CRC", plan.checked_twice ? "twice" : "once"},
              {"MiB/s", bytes / median / kMiB},
              {"values/s", values / median},
              {"amplification", figures.storage_bytes / bytes}});
}

void LayoutBench::RunReads() {
  const std::vector<ReadPlan>& plans = ReadPlans();
  for (const auto& [load, name] : kLoads) {
    std::vector<ReadFigures> figures(plans.size());
    for (int run = 0; run < args_.runs; ++run) {
      std::cerr << name << " " << run + 1 << "/" << args_.runs << std::endl;
      for (size_t i = 0; i < plans.size(); ++i) MeasureRead(plans[i], load, run, figures[i]);
    }
    for (size_t i = 0; i < plans.size(); ++i) AddRead(plans[i], load, name, figures[i]);
  }
}

}  // namespace
}  // namespace terrace::bench

int main(int argc, char** argv) {
  using namespace terrace::bench;
  const BenchArgs args = ParseBenchArgs(
      "Compares layouts of blocks in RocksDB: bulk write, restore of all rows, resume (index "
      "pieces), reads of random rows; all reads cold.",
      argc, argv);
  LayoutBench bench(args, args.quick ? Size{.blocks = 4, .random_rows = 64} : Size{});
  bench.RunWrites();
  bench.RunReads();
  bench.Print();
}
