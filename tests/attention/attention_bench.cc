// Speed of the CPU kernels. Each benchmark checks its answer before it is timed.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <vector>

#include "attention/reference.h"
#include "attention/row_attention.h"
#include "attention/score_scan.h"
#include "attention/sparq.h"
#include "hwy/highway.h"
#include "tests/attention/kv_head.h"

namespace terrace::attention {
namespace {

using ::terrace::testing::KvHead;
using ::terrace::testing::RandomKvHead;
using ::terrace::testing::RandomQueries;
using ::terrace::testing::ScoreIndex;

constexpr int kTokens = 32768;

// Heads at once, so that what is read does not stay in the caches: 16 of d 128 in bf16 are
// 256 MiB of rows.
constexpr int kHeads = 16;

void Require(bool right, const char* what) {
  if (right) return;
  std::cerr << "wrong answer: " << what << '\n';
  std::abort();
}

IndexLayout Int8Layout(const HeadShape& shape) {
  IndexLayout layout;
  layout.dtype = shape.dtype;
  layout.head_dim = shape.head_dim;
  return layout;
}

struct IndexedHead {
  KvHead head;
  ScoreIndex index;

  explicit IndexedHead(uint64_t seed)
      : head(RandomKvHead(128, 4, kTokens, Dtype::kBFloat16, seed)),
        index(head, Int8Layout(head.shape)) {}
  IndexedHead(const IndexedHead&) = delete;
};

std::vector<std::unique_ptr<IndexedHead>>& IndexedHeads() {
  static auto* const heads = [] {
    auto* made = new std::vector<std::unique_ptr<IndexedHead>>;
    for (int i = 0; i < kHeads; ++i) made->push_back(std::make_unique<IndexedHead>(i + 1));
    return made;
  }();
  return *heads;
}

const SparqPolicy kPolicy{.r = 32, .k = 128, .window = 32};

// What memory gives one thread over as many bytes as the argument says: the yardstick for the
// others, whose heads together take 68 MiB (index) and 256 MiB (rows).
void BM_SequentialRead(benchmark::State& state) {
  const std::vector<uint64_t> words(static_cast<size_t>(state.range(0)) << 17, 1);
  for (auto _ : state) {
    uint64_t sums[8] = {};
    for (size_t i = 0; i < words.size(); i += 8) {
      for (size_t j = 0; j < 8; ++j) sums[j] += words[i + j];
    }
    benchmark::DoNotOptimize(sums);
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * words.size() * 8));
}
BENCHMARK(BM_SequentialRead)
    ->Arg(64)
    ->Arg(256)
    ->Arg(1024)
    ->Unit(benchmark::kMicrosecond)
    ->UseRealTime();

// The scan alone: GB/s of codes and parameters.
void BM_Int8Scan(benchmark::State& state) {
  auto& heads = IndexedHeads();
  SparqScratch scratch;
  std::vector<SparqSelection> selections(kHeads);
  for (int i = 0; i < kHeads; ++i) {
    const KvHead& head = heads[i]->head;
    SelectSparq(head.shape, kPolicy, head.q.data(), heads[i]->index.View(), scratch, selections[i]);
  }
  const KvHead& first = heads[0]->head;
  const auto answer = AttendSparq(ToProblem(first), kPolicy, heads[0]->index.DecodedKeys());
  Require(answer.selection[0] == selections[0].positions, "selection");
  std::vector<float> logits(4 * kTokens);
  const std::vector<float> weights(first.q.begin(), first.q.begin() + 4 * kPolicy.r);
  size_t i = 0;
  for (auto _ : state) {
    ScanLogits(heads[i]->index.View(), selections[i].channels, 4, weights.data(), kTokens,
               scratch.scan, logits.data());
    benchmark::DoNotOptimize(logits.data());
    i = (i + 1) % kHeads;
  }
  const uint64_t bytes = Int8Layout(first.shape).scan_bytes(kPolicy.r, kTokens / 64);
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * bytes));
}
BENCHMARK(BM_Int8Scan)->Unit(benchmark::kMicrosecond)->UseRealTime();

// The whole selection: GB/s of the scan's bytes over all of its time.
void BM_SelectSparq(benchmark::State& state) {
  auto& heads = IndexedHeads();
  SparqScratch scratch;
  SparqSelection selection;
  size_t i = 0;
  for (auto _ : state) {
    const KvHead& head = heads[i]->head;
    SelectSparq(head.shape, kPolicy, head.q.data(), heads[i]->index.View(), scratch, selection);
    benchmark::DoNotOptimize(selection.positions.data());
    i = (i + 1) % kHeads;
  }
  const uint64_t bytes = Int8Layout(heads[0]->head.shape).scan_bytes(kPolicy.r, kTokens / 64);
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * bytes));
}
BENCHMARK(BM_SelectSparq)->Unit(benchmark::kMicrosecond)->UseRealTime();

// What selection replaces: all rows of one head.
void BM_DenseDecode(benchmark::State& state) {
  auto& heads = IndexedHeads();
  const HeadShape shape = heads[0]->head.shape;
  RowScratch scratch;
  std::vector<float> output(4 * 128);
  std::vector<SoftmaxState> states(4);
  const auto attend = [&](const KvHead& head) {
    std::fill(output.begin(), output.end(), 0.0F);
    for (int h = 0; h < 4; ++h) states[h] = {-INFINITY, 0.0F, &output[h * 128]};
    for (int first = 0; first < kTokens; first += 1024) {
      AttendBlock(shape, head.q.data(), 1, kTokens - 1, &head.rows[first * shape.row_bytes()],
                  first, 1024, scratch, absl::MakeSpan(states));
    }
  };
  attend(heads[0]->head);
  const auto answer = Attend(ToProblem(heads[0]->head), DensePolicy{});
  Require(std::abs(states[0].output[0] / states[0].sum - answer.output[0]) < 1e-5, "dense");
  size_t i = 0;
  for (auto _ : state) {
    attend(heads[i]->head);
    benchmark::DoNotOptimize(output.data());
    i = (i + 1) % kHeads;
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * kTokens * shape.row_bytes()));
}
BENCHMARK(BM_DenseDecode)->Unit(benchmark::kMicrosecond)->UseRealTime();

// The rows of a selection: 128 of 32,768.
void BM_AttendSelection(benchmark::State& state) {
  auto& heads = IndexedHeads();
  const HeadShape shape = heads[0]->head.shape;
  RowScratch scratch;
  std::vector<float> output(4 * 128);
  std::vector<SoftmaxState> states(4);
  size_t i = 0;
  for (auto _ : state) {
    const KvHead& head = heads[i % kHeads]->head;
    std::vector<const std::byte*> rows;
    for (size_t row = 0; row < 128; ++row) {
      rows.push_back(&head.rows[(row * 7919 + i * 31) % kTokens * shape.row_bytes()]);
    }
    for (int h = 0; h < 4; ++h) states[h] = {-INFINITY, 0.0F, &output[h * 128]};
    AttendRows(shape, head.q.data(), rows, scratch, absl::MakeSpan(states));
    benchmark::DoNotOptimize(output.data());
    ++i;
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * 128 * shape.row_bytes()));
}
BENCHMARK(BM_AttendSelection)->Unit(benchmark::kMicrosecond)->UseRealTime();

// A chunk of prefill: all of its queries see all 1,024 rows. FLOP/s of the two products.
void BM_Prefill(benchmark::State& state) {
  constexpr int kRows = 1024;
  const auto queries = static_cast<int>(state.range(0));
  const KvHead head = RandomKvHead(64, 4, kRows, Dtype::kBFloat16, 5);
  const std::vector<float> q = RandomQueries(head.shape, queries, 6);
  RowScratch scratch;
  std::vector<float> output(queries * 4 * 64);
  std::vector<SoftmaxState> states(queries * 4);
  const auto attend = [&] {
    std::fill(output.begin(), output.end(), 0.0F);
    for (size_t i = 0; i < states.size(); ++i) states[i] = {-INFINITY, 0.0F, &output[i * 64]};
    AttendBlock(head.shape, q.data(), queries, kRows - 1, head.rows.data(), 0, kRows, scratch,
                absl::MakeSpan(states));
  };
  attend();
  KvHead last = head;
  last.q.assign(q.end() - 4 * 64, q.end());
  const auto answer = Attend(ToProblem(last), DensePolicy{});
  const SoftmaxState& got = states[states.size() - 4];
  Require(std::abs(got.output[0] / got.sum - answer.output[0]) < 1e-5, "prefill");
  for (auto _ : state) {
    attend();
    benchmark::DoNotOptimize(output.data());
  }
  const double flops = 4.0 * queries * 4 * kRows * 64;
  state.counters["FLOPS"] = benchmark::Counter(flops * static_cast<double>(state.iterations()),
                                               benchmark::Counter::kIsRate);
}
BENCHMARK(BM_Prefill)->Arg(64)->Arg(256)->Unit(benchmark::kMicrosecond)->UseRealTime();

// Sealing one block.
void BM_EncodeInt8(benchmark::State& state) {
  const KvHead& head = IndexedHeads()[0]->head;
  const IndexLayout layout = Int8Layout(head.shape);
  std::vector<std::byte> piece(layout.piece_bytes());
  size_t block = 0;
  for (auto _ : state) {
    const absl::Status status =
        EncodeBlock(layout, &head.rows[block * 64 * head.shape.row_bytes()], piece.data());
    Require(status.ok(), "encode");
    block = (block + 1) % (kTokens / 64);
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations() * 64));
}
BENCHMARK(BM_EncodeInt8)->Unit(benchmark::kMicrosecond)->UseRealTime();

}  // namespace
}  // namespace terrace::attention

BENCHMARK_MAIN();
