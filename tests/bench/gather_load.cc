// Random rows from the host tier.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/bench/block_data.h"
#include "tests/bench/comparison.h"
#include "tests/bench/require.h"
#include "tests/bench/store_loads.h"
#include "tests/bench/token_source.h"
#include "tests/bench/trial.h"

namespace terrace::bench {
namespace {

constexpr int kHeads = 8;
constexpr size_t kRows = 1024;

// Memory like the host tier's.
class HugeBuffer {
 public:
  explicit HugeBuffer(size_t bytes) : bytes_(bytes) {
    void* const data =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    Require(data != MAP_FAILED, "reserving a buffer");
    madvise(data, bytes, MADV_HUGEPAGE);
    data_ = static_cast<std::byte*>(data);
  }
  ~HugeBuffer() { munmap(data_, bytes_); }
  HugeBuffer(const HugeBuffer&) = delete;
  HugeBuffer& operator=(const HugeBuffer&) = delete;

  std::byte* data() const { return data_; }

 private:
  const size_t bytes_;
  std::byte* data_ = nullptr;
};

// `count` of the first `tokens` positions, ascending, as selections are.
std::vector<uint32_t> RandomPositions(uint32_t tokens, size_t count, uint64_t seed) {
  std::vector<uint32_t> all(tokens);
  std::iota(all.begin(), all.end(), 0);
  std::vector<uint32_t> positions;
  std::sample(all.begin(), all.end(), std::back_inserter(positions), count, std::mt19937_64(seed));
  return positions;
}

class Gather {
 public:
  explicit Gather(uint32_t tokens)
      : tokens_(tokens),
        data_(EngineLayout(1, kHeads), tokens / 64),
        flat_(data_.row_bytes()),
        out_(kRows * data_.layout().row_bytes) {
    kvstore::StoreOptions options;
    options.host_bytes = data_.row_bytes() * 2;
    store_ = RequireOk(kvstore::BlockStore::Open(options), "opening a store");
    segment_ = RequireOk(store_->CreateSegment(data_.layout(), 0), "creating a segment");
    data_.Fill(*store_, *segment_, 0, 1);
    for (uint16_t head = 0; head < kHeads; ++head) {
      for (uint32_t block = 0; block < data_.blocks(); ++block) {
        std::memcpy(
            flat_.data() + (size_t{head} * data_.blocks() + block) * data_.layout().rows_bytes(),
            data_.Rows(0, head, block), data_.layout().rows_bytes());
      }
    }
  }

  // Into out().
  void FromStore(uint16_t head, const std::vector<uint32_t>& positions);
  void FromFlat(uint16_t head, const std::vector<uint32_t>& positions);
  // Seconds for all sets of positions, head after head.
  template <typename From>
  double Time(const std::vector<std::vector<uint32_t>>& sets, From from) {
    const Stopwatch watch;
    for (size_t i = 0; i < sets.size(); ++i) from(static_cast<uint16_t>(i % kHeads), sets[i]);
    return watch.seconds();
  }

  const std::vector<std::byte>& out() const { return out_; }

 private:
  const uint32_t tokens_;
  const BlockData data_;
  std::unique_ptr<kvstore::BlockStore> store_;
  kvstore::SegmentRef segment_;
  const HugeBuffer flat_;
  std::vector<std::byte> out_;
  std::vector<kvstore::ReadRequest> requests_;
};

void Gather::FromStore(uint16_t head, const std::vector<uint32_t>& positions) {
  const kvstore::BlockLayout& layout = data_.layout();
  requests_.clear();
  for (const uint32_t position : positions) {
    const uint32_t block = position / layout.block_tokens;
    if (requests_.empty() || requests_.back().index != block) {
      requests_.push_back(
          {.segment = segment_.get(), .layer = 0, .head = head, .index = block, .cells = 0});
    }
    requests_.back().cells |= uint64_t{1} << position % layout.block_tokens / layout.granule_tokens;
  }
  const kvstore::Pins pins = store_->PinRows(requests_, absl::InfiniteFuture());
  std::byte* out = out_.data();
  size_t request = 0;
  for (const uint32_t position : positions) {
    if (requests_[request].index != position / layout.block_tokens) ++request;
    std::memcpy(
        out,
        pins.extents()[request].data + size_t{position % layout.block_tokens} * layout.row_bytes,
        layout.row_bytes);
    out += layout.row_bytes;
  }
}

void Gather::FromFlat(uint16_t head, const std::vector<uint32_t>& positions) {
  const size_t row_bytes = data_.layout().row_bytes;
  const std::byte* const rows = flat_.data() + size_t{head} * tokens_ * row_bytes;
  std::byte* out = out_.data();
  for (const uint32_t position : positions) {
    std::memcpy(out, rows + position * row_bytes, row_bytes);
    out += row_bytes;
  }
}

}  // namespace

void MeasureGather(const BenchArgs& args, Sheet& sheet) {
  const uint32_t tokens = args.quick ? 2048 : 32768;
  Gather gather(tokens);
  std::vector<std::vector<uint32_t>> sets;
  for (uint64_t i = 0; i < (args.quick ? kHeads : 16 * kHeads); ++i) {
    sets.push_back(RandomPositions(tokens, kRows, i));
  }
  const engine::SequenceSpec spec = SpecOf(1, kHeads, 128);
  const TokenSource source(spec.geometry, tokens);
  engine::EmbeddedOptions options;
  options.store.host_bytes = spec.geometry.row_bytes() * kHeads * tokens * 2;
  const auto engine = RequireOk(engine::EmbeddedEngine::Open(options), "opening an engine");
  const auto sequence = RequireOk(engine->Create({}, spec), "creating a sequence");
  source.AppendAll(*engine, sequence, tokens, 1024);
  for (uint16_t head = 0; head < kHeads; ++head) {
    gather.FromFlat(head, sets[head]);
    const std::vector<std::byte> expected = gather.out();
    gather.FromStore(head, sets[head]);
    Require(gather.out() == expected, "gathered rows");
    Require(source.Holds(*engine, sequence.handle, 0, head, sets[head]), "rows read");
  }

  const auto from_flat = [&](uint16_t head, const auto& set) { gather.FromFlat(head, set); };
  const auto from_store = [&](uint16_t head, const auto& set) { gather.FromStore(head, set); };
  const auto from_engine = [&](uint16_t head, const auto& set) {
    RequireOk(engine->ReadRows({}, sequence.handle, 0, head, set).status(), "reading rows");
  };
  const std::vector<double> seconds =
      Interleave(args.runs, {[&] { return gather.Time(sets, from_flat); },
                             [&] { return gather.Time(sets, from_store); },
                             [&] { return gather.Time(sets, from_engine); }});
  const double rows = static_cast<double>(sets.size() * kRows);
  const std::string size = absl::StrCat("1024 of ", tokens, " rows of 512 B, 8 heads");
  sheet.Add(Comparison{.load = "gather, host tier: PinRows and copy",
                       .size = size,
                       .unit = "rows/us",
                       .ours = rows / seconds[1] / 1e6,
                       .baseline = rows / seconds[0] / 1e6,
                       .ratio_min = 0.5,
                       .ours_max = {}}
                .Row());
  sheet.Add(Comparison{.load = "gather, engine: ReadRows",
                       .size = size,
                       .unit = "rows/us",
                       .ours = rows / seconds[2] / 1e6,
                       .baseline = rows / seconds[0] / 1e6,
                       .ratio_min = {},
                       .ours_max = {}}
                .Row());
}

}  // namespace terrace::bench
