// A long sequence as such: the memory it takes beside its rows, and opening, forking, cutting it.
#include <malloc.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/bench/comparison.h"
#include "tests/bench/data_folder.h"
#include "tests/bench/require.h"
#include "tests/bench/store_loads.h"
#include "tests/bench/token_source.h"
#include "tests/bench/trial.h"

namespace terrace::bench {
namespace {

using engine::EmbeddedEngine;
using engine::SequenceInfo;

constexpr int kLayers = 32;
constexpr int kHeads = 8;
// Metadata goes by blocks. Rows of 8 dimensions instead of 128 are as many blocks in a sixteenth of
// the memory; what metadata is compared to are rows of 128.
constexpr int kSmallDim = 8;
constexpr uint64_t kRowBytes = 512;

// In use, of all arenas. Rows, index and value sums lie in a region of their own.
uint64_t HeapBytes() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

class LongSequence {
 public:
  LongSequence(const BenchArgs& args, int64_t tokens, bool on_disk)
      : tokens_(tokens),
        spec_(SpecOf(kLayers, kHeads, kSmallDim)),
        source_(spec_.geometry, tokens),
        folder_(args.folder) {
    options_.store.host_bytes =
        spec_.geometry.row_bytes() * kHeads * kLayers * tokens * 4 + (uint64_t{256} << 20);
    if (on_disk) options_.store.disk_path = folder_.path() + "/store";
    Open();
  }

  // Seconds.
  double Open() {
    engine_.reset();
    const Stopwatch watch;
    engine_ = RequireOk(EmbeddedEngine::Open(options_), "opening an engine");
    return watch.seconds();
  }
  double Resume() {
    const Stopwatch watch;
    sequence_ = RequireOk(engine_->Resume({}, sequence_.handle, ""), "resuming");
    const double seconds = watch.seconds();
    Require(sequence_.length == tokens_, "the length after a restart");
    return seconds;
  }
  // Bytes of heap that the sequence took.
  uint64_t Fill() {
    const uint64_t before = HeapBytes();
    sequence_ = RequireOk(engine_->Create({}, spec_), "creating a sequence");
    source_.AppendAll(*engine_, sequence_, tokens_, 1024);
    return HeapBytes() - before;
  }
  void Flush() { RequireOk(engine_->Flush({}, sequence_.handle).status(), "flushing"); }
  // Seconds of the fork, or what `use` of it says.
  double ForkAndDelete(int64_t position, const std::function<double(const SequenceInfo&)>& use);
  double Truncate(const SequenceInfo& sequence, int64_t length) {
    const Stopwatch watch;
    const auto cut = engine_->Truncate({}, sequence.handle, sequence.writer_epoch, length);
    const double seconds = watch.seconds();
    Require(cut.ok() && cut->length == length, "the length after a cut");
    return seconds;
  }
  // Seconds of each cut that takes back a draft of four tokens just appended at `position`.
  std::vector<double> RollBack(const SequenceInfo& sequence, int64_t position, int drafts) {
    constexpr int64_t kDraft = 4;
    std::vector<double> seconds;
    Truncate(sequence, position);
    for (int draft = 0; draft < drafts; ++draft) {
      for (int layer = 0; layer < kLayers; ++layer) {
        source_.Append(*engine_, sequence, layer, position, kDraft);
      }
      seconds.push_back(Truncate(sequence, position));
    }
    return seconds;
  }
  void Verify(const SequenceInfo& sequence, int64_t length) {
    const auto last = static_cast<uint32_t>(length - 1);
    for (int layer = 0; layer < kLayers; layer += 7) {
      Require(source_.Holds(*engine_, sequence.handle, layer, layer % kHeads, {0, last / 2, last}),
              "rows of a long sequence");
    }
  }

  const SequenceInfo& sequence() const { return sequence_; }
  int64_t tokens() const { return tokens_; }

 private:
  const int64_t tokens_;
  const engine::SequenceSpec spec_;
  const TokenSource source_;
  const DataFolder folder_;
  engine::EmbeddedOptions options_;
  std::unique_ptr<EmbeddedEngine> engine_;
  SequenceInfo sequence_;
};

double LongSequence::ForkAndDelete(int64_t position,
                                   const std::function<double(const SequenceInfo&)>& use) {
  const Stopwatch watch;
  const SequenceInfo fork = RequireOk(engine_->Fork({}, sequence_.handle, position, ""), "fork");
  const double forked = watch.seconds();
  const double used = use != nullptr ? use(fork) : forked;
  RequireOk(engine_->Delete({}, fork.handle), "deleting a fork");
  return used;
}

void AddTime(const std::string& load, const std::string& size, const std::vector<double>& seconds,
             Sheet& sheet, double ms_max = 10) {
  sheet.Add(Comparison{.load = load,
                       .size = size,
                       .unit = "ms",
                       .ours = Median(seconds) * 1e3,
                       .baseline = {},
                       .ratio_min = {},
                       .ours_max = ms_max}
                .Row());
}

void AddTimes(const BenchArgs& args, LongSequence& held, Sheet& sheet, const char* where) {
  const std::string size = absl::StrCat(held.tokens(), " tokens x 32 x 8, ", where);
  // In a cut block, so that rows are copied too.
  const int64_t half = held.tokens() / 2 + 7;
  const int64_t end = held.tokens() - 64;
  std::vector<double> forks;
  std::vector<double> cut_forks;
  std::vector<double> shared_cuts;
  std::vector<double> cuts;
  for (int run = 0; run < args.runs; ++run) {
    forks.push_back(held.ForkAndDelete(end, nullptr));
    // Another block each time: one that was read before is in memory.
    cut_forks.push_back(held.ForkAndDelete(end - 64 * run - 7, nullptr));
    shared_cuts.push_back(held.ForkAndDelete(end, [&](const SequenceInfo& fork) {
      const double seconds = held.Truncate(fork, half + 64 * run);
      held.Verify(fork, half + 64 * run);
      return seconds;
    }));
  }
  std::vector<double> drafts;
  std::vector<double> edge_drafts;
  held.ForkAndDelete(end, [&](const SequenceInfo& fork) {
    const int count = args.quick ? 4 : 100;
    drafts = held.RollBack(fork, end - 32, count);
    edge_drafts = held.RollBack(fork, end - 66, count);
    held.Verify(fork, end - 66);
    return 0.0;
  });
  for (int run = 0; run < args.runs; ++run) {
    const int64_t length = held.tokens() - (run + 1) * held.tokens() / (2 * args.runs) + 7;
    cuts.push_back(held.Truncate(held.sequence(), length));
    held.Verify(held.sequence(), length);
  }
  AddTime("fork at the end of a block", size, forks, sheet);
  AddTime("fork within a block", size, cut_forks, sheet);
  AddTime("truncate a fork to half, within a block", size, shared_cuts, sheet);
  // Hundreds a second.
  constexpr double kDraftMsMax = 3;
  AddTime("take a draft of 4 back, within a block", size, drafts, sheet, kDraftMsMax);
  AddTime("take a draft of 4 back, across a block's end", size, edge_drafts, sheet, kDraftMsMax);
  AddTime(absl::StrCat("truncate, freeing 1/", 2 * args.runs, " of the blocks"), size, cuts, sheet);
}

}  // namespace

void MeasureLongSequence(const BenchArgs& args, Sheet& sheet) {
  const int64_t tokens = args.quick ? 2048 : 131072;
  {
    LongSequence held(args, tokens, /*on_disk=*/false);
    const auto metadata = static_cast<double>(held.Fill());
    held.Verify(held.sequence(), tokens);
    const auto rows = static_cast<double>(kRowBytes * kHeads * kLayers * tokens);
    const std::string size = absl::StrCat(tokens, " tokens x 32 x 8, in memory");
    sheet.Add(Comparison{.load = "metadata per row, heap",
                         .size = size,
                         .unit = "bytes",
                         .ours = metadata / rows * kRowBytes,
                         .baseline = kRowBytes,
                         .ratio_min = {},
                         .ours_max = kRowBytes * 0.01}
                  .Row());
    AddTimes(args, held, sheet, "in memory");
  }
  const int64_t disk_tokens = args.quick ? 2048 : 131072;
  LongSequence stored(args, disk_tokens, /*on_disk=*/true);
  stored.Fill();
  stored.Flush();
  std::vector<double> opens;
  std::vector<double> resumes;
  for (int run = 0; run < args.runs; ++run) {
    opens.push_back(stored.Open());
    resumes.push_back(stored.Resume());
  }
  stored.Verify(stored.sequence(), disk_tokens);
  const std::string size = absl::StrCat(disk_tokens, " tokens x 32 x 8, on disk");
  sheet.Add(Comparison{.load = "open the engine",
                       .size = size,
                       .unit = "ms",
                       .ours = Median(opens) * 1e3,
                       .baseline = {},
                       .ratio_min = {},
                       .ours_max = {}}
                .Row());
  AddTime("resume the sequence", size, resumes, sheet);
  AddTimes(args, stored, sheet, "on disk");
}

}  // namespace terrace::bench
