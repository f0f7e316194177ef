// Writing: bulk and token by token.
#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/engine/sequence_layout.h"
#include "services/engine/work_pool.h"
#include "tests/bench/block_data.h"
#include "tests/bench/comparison.h"
#include "tests/bench/require.h"
#include "tests/bench/store_loads.h"
#include "tests/bench/token_source.h"
#include "tests/bench/trial.h"

namespace terrace::bench {
namespace {

using engine::EmbeddedEngine;
using engine::SequenceInfo;

constexpr double kMiB = 1 << 20;
constexpr int kHeads = 8;
constexpr int kThreads = 2;
constexpr int64_t kChunk = 1024;
// Of a thread, in its second-level cache.
constexpr int kHotBlocks = 8;

std::unique_ptr<EmbeddedEngine> MakeEngine(uint64_t host_bytes) {
  engine::EmbeddedOptions options;
  options.store.host_bytes = host_bytes;
  options.compute_threads = kThreads;
  return RequireOk(EmbeddedEngine::Open(options), "opening an engine");
}

void VerifySome(EmbeddedEngine& engine, const SequenceInfo& sequence, const TokenSource& source,
                int64_t tokens) {
  std::vector<uint32_t> positions;
  for (int64_t i = 0; i < tokens; i += 37) positions.push_back(static_cast<uint32_t>(i));
  for (int layer = 0; layer < sequence.spec.geometry.layers; ++layer) {
    for (int head = 0; head < kHeads; ++head) {
      Require(source.Holds(engine, sequence.handle, layer, head, positions), "appended rows");
    }
  }
}

class BulkAppend {
 public:
  BulkAppend(int layers, int64_t tokens)
      : spec_(SpecOf(layers, kHeads, 128)),
        tokens_(tokens),
        source_(spec_.geometry, tokens),
        // Two sequences at once, and their indexes.
        host_bytes_(bytes() * 4),
        engine_(MakeEngine(host_bytes_)),
        target_(bytes()),
        blocks_(EngineLayout(layers, kHeads), static_cast<uint32_t>(tokens / 64)) {}

  uint64_t bytes() const {
    return spec_.geometry.row_bytes() * kHeads * spec_.geometry.layers * tokens_;
  }

  // Seconds. Sequences go again, so that each run finds the same room, touched before.
  double Engine(int sequences, bool verify);
  double Copy();
  double Encode();
  double Store(int threads);

 private:
  const engine::SequenceSpec spec_;
  const int64_t tokens_;
  const TokenSource source_;
  const uint64_t host_bytes_;
  const std::unique_ptr<EmbeddedEngine> engine_;
  std::unique_ptr<kvstore::BlockStore> store_;
  std::vector<std::byte> target_;
  const BlockData blocks_;
  engine::WorkPool pool_{kThreads};
};

double BulkAppend::Engine(int sequences, bool verify) {
  std::vector<SequenceInfo> made;
  for (int i = 0; i < sequences; ++i) {
    made.push_back(RequireOk(engine_->Create({}, spec_), "creating a sequence"));
  }
  const Stopwatch watch;
  std::vector<std::thread> writers;
  for (const SequenceInfo& sequence : made) {
    writers.emplace_back([&] { source_.AppendAll(*engine_, sequence, tokens_, kChunk); });
  }
  for (std::thread& writer : writers) writer.join();
  const double seconds = watch.seconds();
  for (const SequenceInfo& sequence : made) {
    if (verify) VerifySome(*engine_, sequence, source_, tokens_);
    RequireOk(engine_->Delete({}, sequence.handle), "deleting a sequence");
  }
  return seconds;
}

double BulkAppend::Copy() {
  const Stopwatch watch;
  pool_.ParallelFor(kThreads, [&](int half) {
    std::byte* out = target_.data() + half * target_.size() / kThreads;
    const size_t bytes = kChunk * source_.token_bytes();
    for (int64_t position = half * tokens_ / kThreads; position < (half + 1) * tokens_ / kThreads;
         position += kChunk) {
      for (int layer = 0; layer < spec_.geometry.layers; ++layer) {
        std::memcpy(out, source_.Keys(layer, position), bytes);
        std::memcpy(out + bytes, source_.Values(layer, position), bytes);
        out += 2 * bytes;
      }
    }
  });
  return watch.seconds();
}

double BulkAppend::Encode() {
  const auto layout = engine::SequenceLayout::Make(spec_, 64, 1024);
  const auto blocks = static_cast<int>(target_.size() / layout.block.rows_bytes());
  std::vector<std::byte> pieces(kThreads * layout.block.piece_bytes());
  const Stopwatch watch;
  pool_.ParallelFor(kThreads, [&](int half) {
    for (int block = half * blocks / kThreads; block < (half + 1) * blocks / kThreads; ++block) {
      // Few blocks, again and again: in the engine, too, a block was copied just before. Whatever
      // is there are finite numbers; the same work for all of them.
      const int hot = half * kHotBlocks + block % kHotBlocks;
      const absl::Status status =
          layout.EncodePiece(target_.data() + hot * layout.block.rows_bytes(),
                             pieces.data() + half * layout.block.piece_bytes());
      RequireOk(status, "encoding");
    }
  });
  return watch.seconds();
}

double BulkAppend::Store(int threads) {
  if (store_ == nullptr) {
    kvstore::StoreOptions options;
    options.host_bytes = host_bytes_;
    store_ = RequireOk(kvstore::BlockStore::Open(options), "opening a store");
  }
  // A segment each: it has one writer at a time.
  std::vector<kvstore::SegmentRef> segments;
  for (int i = 0; i < threads; ++i) {
    segments.push_back(RequireOk(store_->CreateSegment(blocks_.layout(), 0), "a segment"));
  }
  const Stopwatch watch;
  std::vector<std::thread> writers;
  const int layers = spec_.geometry.layers;
  for (int i = 0; i < threads; ++i) {
    writers.emplace_back([&, i] {
      blocks_.Fill(*store_, *segments[i], static_cast<uint16_t>(i * layers / threads),
                   static_cast<uint16_t>((i + 1) * layers / threads));
    });
  }
  for (std::thread& writer : writers) writer.join();
  return watch.seconds();
}

}  // namespace

void MeasureBulkAppend(const BenchArgs& args, Sheet& sheet) {
  const int64_t tokens = args.quick ? 2 * kChunk : 8 * kChunk;
  const int layers = args.quick ? 2 : 4;
  BulkAppend bulk(layers, tokens);
  // Touches all memory once.
  bulk.Engine(2, /*verify=*/true);
  bulk.Copy();
  bulk.Store(kThreads);
  const std::vector<double> seconds = Interleave(
      args.runs, {[&] { return bulk.Copy(); }, [&] { return bulk.Engine(1, false); },
                  [&] { return bulk.Engine(2, false) / 2; }, [&] { return bulk.Encode(); },
                  [&] { return bulk.Store(1); }, [&] { return bulk.Store(kThreads); }});
  const double mib = static_cast<double>(bulk.bytes()) / kMiB;
  const double copy = mib / seconds[0];
  const std::string size = absl::StrCat(layers, " layers x ", tokens, " tokens x 8 x 512 B");
  const auto add = [&](const char* load, double took, std::optional<double> target) {
    sheet.Add(Comparison{.load = load,
                         .size = size,
                         .unit = "MiB/s",
                         .ours = mib / took,
                         .baseline = copy,
                         .ratio_min = target,
                         .ours_max = {}}
                  .Row());
  };
  add("bulk append, engine, with its encoding", seconds[1], {});
  add("  less the encoding", std::max(seconds[1] - seconds[3], 1e-9), 0.6);
  add("  the encoding alone, 2 threads", seconds[3], {});
  add("  two sequences at once, with encoding", seconds[2], {});
  add("bulk append, store alone, 1 thread", seconds[4], {});
  add("  2 threads, a segment each", seconds[5], 0.6);
}

void MeasureDecodeAppend(const BenchArgs& args, Sheet& sheet) {
  const int layers = args.quick ? 2 : 32;
  const int64_t tokens = args.quick ? 128 : 512;
  const engine::SequenceSpec spec = SpecOf(layers, kHeads, 128);
  const TokenSource source(spec.geometry, tokens);
  const std::unique_ptr<EmbeddedEngine> engine =
      MakeEngine(spec.geometry.row_bytes() * kHeads * layers * tokens * 2 + (uint64_t{64} << 20));
  const auto decode = [&](bool verify) {
    const SequenceInfo sequence = RequireOk(engine->Create({}, spec), "creating a sequence");
    const Stopwatch watch;
    source.AppendAll(*engine, sequence, tokens, 1);
    const double seconds = watch.seconds();
    if (verify) VerifySome(*engine, sequence, source, tokens);
    RequireOk(engine->Delete({}, sequence.handle), "deleting a sequence");
    return seconds;
  };
  // The same rows to where they lie, and the same pieces, by one thread and without a store.
  const auto layout = engine::SequenceLayout::Make(spec, 64, 1024);
  std::vector<std::byte> rows(layers * kHeads * layout.block.rows_bytes());
  std::vector<std::byte> piece(layout.block.piece_bytes());
  const auto encode = [&] {
    for (int lane = 0; lane < layers * kHeads; ++lane) {
      RequireOk(layout.EncodePiece(&rows[lane * layout.block.rows_bytes()], piece.data()),
                "encode");
    }
  };
  const auto bare = [&](bool encoded) {
    const Stopwatch watch;
    for (int64_t token = 0; token < tokens; ++token) {
      for (int lane = 0; lane < layers * kHeads; ++lane) {
        source.Row(lane / kHeads, lane % kHeads, token,
                   &rows[lane * layout.block.rows_bytes() + token % 64 * layout.block.row_bytes]);
      }
      if (encoded && token % 64 == 63) encode();
    }
    return watch.seconds();
  };
  decode(/*verify=*/true);
  bare(true);
  const std::vector<double> seconds = Interleave(
      args.runs,
      {[&] { return decode(false); }, [&] { return bare(true); }, [&] { return bare(false); }});
  const double scale = 1e6 / static_cast<double>(layers * tokens);
  const std::string size = absl::StrCat(layers, " layers x ", tokens, " tokens, one at a time");
  sheet.Add(Comparison{.load = "decode append, engine",
                       .size = size,
                       .unit = "us",
                       .ours = seconds[0] * scale,
                       .baseline = seconds[1] * scale,
                       .ratio_min = {},
                       .ours_max = 5}
                .Row());
  sheet.Add(Comparison{.load = "  less the bare encoding, 1 thread",
                       .size = size,
                       .unit = "us",
                       .ours = (seconds[0] - (seconds[1] - seconds[2])) * scale,
                       .baseline = seconds[2] * scale,
                       .ratio_min = {},
                       .ours_max = {}}
                .Row());
}

}  // namespace terrace::bench
