#include "attention/score_scan.h"

#include <algorithm>
#include <cstring>

#include "attention/aligned_floats.h"
#include "attention/dtype.h"

// The order matters: every target sees what follows foreach_target.h anew.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/score_scan.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "attention/dtype-inl.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"
// clang-format on

#ifndef TERRACE_ATTENTION_SCORE_SCAN_CHUNK_
#define TERRACE_ATTENTION_SCORE_SCAN_CHUNK_
namespace terrace::attention {

// Tokens that lie together in a stripe: runs of tokens with one factor per channel and head.
struct ScanChunk {
  // Codes of the first token in channel 0, and from there to the next channel.
  const std::byte* codes = nullptr;
  size_t channel_bytes = 0;
  const int32_t* channels = nullptr;
  size_t channel_count = 0;
  size_t runs = 0;
  size_t run_tokens = 0;
  // [channel_count][heads][run_stride].
  const float* factors = nullptr;
  // What the logits of a run start from, [heads][run_stride]; null for zero.
  const float* offsets = nullptr;
  size_t run_stride = 0;
  // [heads][stride].
  float* logits = nullptr;
  size_t stride = 0;
};

// The int8 parameters of a chunk, and the weights that go into its factors.
struct ScanParams {
  // Parameters of the chunk's first block in channel 0, and from there to the next channel.
  const std::byte* params = nullptr;
  size_t channel_bytes = 0;
  // [heads][channel_count].
  const float* weights = nullptr;
  // [channel_count][heads][run_stride].
  float* factors = nullptr;
  // [heads][run_stride].
  float* offsets = nullptr;
};

}  // namespace terrace::attention
#endif

HWY_BEFORE_NAMESPACE();
namespace terrace::attention::HWY_NAMESPACE {

struct Int8Codes {
  static constexpr size_t kBytes = 1;
  template <class D>
  static HWY_INLINE hn::VFromD<D> Load(D d, const std::byte* in) {
    const hn::Rebind<int32_t, D> di;
    return hn::ConvertTo(d, hn::PromoteTo(di, LoadAnywhere<uint8_t>(d, in)));
  }
};

template <Dtype kDtype>
struct ExactCodes {
  static constexpr size_t kBytes = DtypeBytes(kDtype);
  template <class D>
  static HWY_INLINE hn::VFromD<D> Load(D d, const std::byte* in) {
    return LoadFloat<kDtype>(d, in);
  }
};

// One run of one pass over a chunk: kChannels channels for kHeads heads.
template <int kChannels, int kHeads>
struct Pass {
  const std::byte* codes[kChannels];
  float factors[kChannels][kHeads];
  float offsets[kHeads];
  float* logits;
  size_t stride;
};

// One vector of tokens: each code is loaded once, each logit is loaded and stored once. The first
// pass starts from the offsets and not from the logits.
template <class Codes, bool kFirst, int kChannels, int kHeads, class D>
HWY_INLINE void AddTokens(D d, const Pass<kChannels, kHeads>& pass, size_t token) {
  hn::VFromD<D> sum[kHeads];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
    sum[h] =
        kFirst ? hn::Set(d, pass.offsets[h]) : hn::LoadU(d, pass.logits + h * pass.stride + token);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kChannels; ++i) {
    const auto code = Codes::Load(d, pass.codes[i] + token * Codes::kBytes);
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      sum[h] = hn::MulAdd(hn::Set(d, pass.factors[i][h]), code, sum[h]);
    }
  }
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) hn::StoreU(sum[h], d, pass.logits + h * pass.stride + token);
}

// Adds channels [first, first + kChannels) of a chunk to the logits.
template <class Codes, bool kFirst, int kChannels, int kHeads>
HWY_INLINE void AddChannels(const ScanChunk& chunk, size_t first) {
  constexpr size_t kLine = 64;
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  Pass<kChannels, kHeads> pass;
  pass.logits = chunk.logits;
  pass.stride = chunk.stride;
  const std::byte* next[kChannels];
  for (int i = 0; i < kChannels; ++i) {
    pass.codes[i] = chunk.codes + chunk.channels[first + i] * chunk.channel_bytes;
    const size_t ahead = std::min(first + kChannels + i, chunk.channel_count - 1);
    next[i] = chunk.codes + chunk.channels[ahead] * chunk.channel_bytes;
  }
  const float* const factors = chunk.factors + first * kHeads * chunk.run_stride;
  for (size_t run = 0; run < chunk.runs; ++run) {
    for (int h = 0; h < kHeads; ++h) {
      const size_t cell = h * chunk.run_stride + run;
      pass.offsets[h] = chunk.offsets == nullptr ? 0.0F : chunk.offsets[cell];
      for (int i = 0; i < kChannels; ++i) {
        pass.factors[i][h] = factors[size_t{kHeads} * i * chunk.run_stride + cell];
      }
    }
    size_t t = run * chunk.run_tokens;
    const size_t end = t + chunk.run_tokens;
    // The next channels lie elsewhere; the hardware does not guess where.
    for (size_t byte = t * Codes::kBytes; byte < end * Codes::kBytes; byte += kLine) {
      for (int i = 0; i < kChannels; ++i) hwy::Prefetch(next[i] + byte);
    }
    for (; t + lanes <= end; t += lanes) AddTokens<Codes, kFirst>(d, pass, t);
    for (; t < end; ++t) AddTokens<Codes, kFirst>(OneLane(), pass, t);
  }
}

template <class Codes, int kHeads>
HWY_INLINE void ScanHeads(const ScanChunk& chunk) {
  constexpr int kChannels = 4;
  size_t i = 0;
  if (chunk.channel_count >= kChannels) {
    AddChannels<Codes, true, kChannels, kHeads>(chunk, 0);
    i = kChannels;
  } else {
    AddChannels<Codes, true, 1, kHeads>(chunk, 0);
    i = 1;
  }
  for (; i + kChannels <= chunk.channel_count; i += kChannels) {
    AddChannels<Codes, false, kChannels, kHeads>(chunk, i);
  }
  for (; i < chunk.channel_count; ++i) AddChannels<Codes, false, 1, kHeads>(chunk, i);
}

template <class Codes>
void ScanCodes(const ScanChunk& chunk, int heads) {
  switch (heads) {
    case 4:
      return ScanHeads<Codes, 4>(chunk);
    case 2:
      return ScanHeads<Codes, 2>(chunk);
    default:
      return ScanHeads<Codes, 1>(chunk);
  }
}

// Sets the logits of `heads` heads, which are 1, 2 or 4.
void Scan(IndexFormat format, Dtype dtype, const ScanChunk& chunk, int heads) {
  if (format == IndexFormat::kInt8) return ScanCodes<Int8Codes>(chunk, heads);
  switch (dtype) {
    case Dtype::kFloat32:
      return ScanCodes<ExactCodes<Dtype::kFloat32>>(chunk, heads);
    case Dtype::kBFloat16:
      return ScanCodes<ExactCodes<Dtype::kBFloat16>>(chunk, heads);
    case Dtype::kFloat16:
      return ScanCodes<ExactCodes<Dtype::kFloat16>>(chunk, heads);
  }
}

// factor = weight * scale and offset = Σ weight * minimum, for a vector of runs and kHeads heads.
template <int kHeads>
HWY_INLINE void FoldRuns(const ScanChunk& chunk, const ScanParams& params, size_t run) {
  const hn::ScalableTag<float> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  const size_t lanes = hn::Lanes(d);
  HWY_ALIGN uint32_t cells[hn::MaxLanes(d)] = {};
  hn::VFromD<decltype(d)> offsets[kHeads];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) offsets[h] = hn::Zero(d);
  for (size_t i = 0; i < chunk.channel_count; ++i) {
    const std::byte* in =
        params.params + chunk.channels[i] * params.channel_bytes + run * sizeof(uint32_t);
    if (run + lanes > chunk.runs) {
      std::memcpy(cells, in, (chunk.runs - run) * sizeof(uint32_t));
      in = reinterpret_cast<const std::byte*>(cells);
    }
    const auto bits = LoadAnywhere<uint32_t>(d, in);
    const auto scale = FloatFromHalfBits(d, hn::And(bits, hn::Set(du, 0xffffU)));
    const auto minimum = FloatFromHalfBits(d, hn::ShiftRight<16>(bits));
    float* const factors = params.factors + i * kHeads * chunk.run_stride + run;
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      const auto weight = hn::Set(d, params.weights[h * chunk.channel_count + i]);
      hn::StoreU(hn::Mul(weight, scale), d, factors + h * chunk.run_stride);
      offsets[h] = hn::MulAdd(weight, minimum, offsets[h]);
    }
  }
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
    hn::StoreU(offsets[h], d, params.offsets + h * chunk.run_stride + run);
  }
}

// Folds the parameters of a chunk for `heads` heads, which are 1, 2 or 4.
void FoldParams(const ScanChunk& chunk, const ScanParams& params, int heads) {
  for (size_t run = 0; run < chunk.runs; run += hn::Lanes(hn::ScalableTag<float>())) {
    switch (heads) {
      case 4:
        FoldRuns<4>(chunk, params, run);
        break;
      case 2:
        FoldRuns<2>(chunk, params, run);
        break;
      default:
        FoldRuns<1>(chunk, params, run);
    }
  }
}

// The chosen channels of the tail's keys as floats: tile[i][row].
void GatherTail(Dtype dtype, const std::byte* tail, size_t row_bytes, size_t rows,
                const int32_t* channels, size_t channel_count, size_t row_stride, float* tile) {
  const size_t bytes = DtypeBytes(dtype);
  for (size_t row = 0; row < rows; ++row) {
    for (size_t i = 0; i < channel_count; ++i) {
      const std::byte* const in = tail + row * row_bytes + channels[i] * bytes;
      float* const out = tile + i * row_stride + row;
      switch (dtype) {
        case Dtype::kFloat32:
          hn::StoreU(LoadFloat<Dtype::kFloat32>(OneLane(), in), OneLane(), out);
          break;
        case Dtype::kBFloat16:
          hn::StoreU(LoadFloat<Dtype::kBFloat16>(OneLane(), in), OneLane(), out);
          break;
        case Dtype::kFloat16:
          hn::StoreU(LoadFloat<Dtype::kFloat16>(OneLane(), in), OneLane(), out);
          break;
      }
    }
  }
}

}  // namespace terrace::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace::attention {
namespace {

HWY_EXPORT(Scan);
HWY_EXPORT(FoldParams);
HWY_EXPORT(GatherTail);

// Tokens scanned channel after channel before the next: four heads of fp32 logits take 16 KiB,
// a third of a first-level cache.
constexpr size_t kChunkTokens = 1024;

// Heads that share one pass over the codes: as many as registers hold.
int HeadsAtOnce(int left) { return left >= 4 ? 4 : left >= 2 ? 2 : 1; }

// What a scan is asked for, as ScanLogits was.
struct Request {
  const IndexLayout& layout;
  absl::Span<const int32_t> channels;
  int group;
  const float* weights;
  size_t stride;
  ScanScratch& scratch;
};

// The factors of exact codes are the weights, the same for every run.
const float* ExactFactors(const Request& request, const float* weights, int heads) {
  const size_t channels = request.channels.size();
  float* const factors = AlignedFloats(request.scratch.factors, channels * heads);
  for (size_t i = 0; i < channels; ++i) {
    for (int h = 0; h < heads; ++h) factors[i * heads + h] = weights[h * channels + i];
  }
  return factors;
}

// Scans a chunk for all heads. `params` is of its first block, null for exact codes.
void ScanChunkHeads(const Request& request, IndexFormat format, Dtype dtype, ScanChunk chunk,
                    const std::byte* params) {
  float* const logits = chunk.logits;
  for (int h = 0, heads = 0; h < request.group; h += heads) {
    heads = HeadsAtOnce(request.group - h);
    const float* const weights = request.weights + h * request.channels.size();
    chunk.logits = logits + h * request.stride;
    if (params == nullptr) {
      chunk.run_stride = 1;
      chunk.factors = ExactFactors(request, weights, heads);
    } else {
      ScanParams fold;
      fold.params = params;
      fold.channel_bytes = request.layout.blocks_per_stripe() * request.layout.param_bytes();
      fold.weights = weights;
      chunk.run_stride = WholeLines(chunk.runs);
      fold.offsets = AlignedFloats(request.scratch.offsets, heads * chunk.run_stride);
      fold.factors =
          AlignedFloats(request.scratch.factors, chunk.channel_count * heads * chunk.run_stride);
      chunk.factors = fold.factors;
      chunk.offsets = fold.offsets;
      HWY_DYNAMIC_DISPATCH(FoldParams)(chunk, fold, heads);
    }
    HWY_DYNAMIC_DISPATCH(Scan)(format, dtype, chunk, heads);
  }
}

ScanChunk NewChunk(const Request& request, float* logits) {
  ScanChunk chunk;
  chunk.channels = request.channels.data();
  chunk.channel_count = request.channels.size();
  chunk.logits = logits;
  chunk.stride = request.stride;
  return chunk;
}

void ScanStrip(const Request& request, const IndexStrip& strip, float* logits) {
  const IndexLayout& layout = request.layout;
  const bool exact = layout.format == IndexFormat::kExact;
  const auto block_tokens = static_cast<size_t>(layout.block_tokens);
  const size_t chunk_blocks = std::max<size_t>(1, kChunkTokens / block_tokens);
  for (size_t done = 0; done < static_cast<size_t>(strip.block_count); done += chunk_blocks) {
    const size_t blocks = std::min(chunk_blocks, strip.block_count - done);
    const size_t first = strip.first_block + done;
    ScanChunk chunk = NewChunk(request, logits + done * block_tokens);
    chunk.codes = strip.stripe + first * block_tokens * layout.code_bytes();
    chunk.channel_bytes = layout.stripe_tokens * layout.code_bytes();
    chunk.runs = exact ? 1 : blocks;
    chunk.run_tokens = exact ? blocks * block_tokens : block_tokens;
    const std::byte* const params =
        exact ? nullptr : strip.stripe + layout.code_plane_bytes() + first * layout.param_bytes();
    ScanChunkHeads(request, layout.format, layout.dtype, chunk, params);
  }
}

void ScanTail(const Request& request, const ScoreView& view, float* logits) {
  const auto rows = static_cast<size_t>(view.tail_rows);
  const size_t row_stride = WholeLines(rows);
  float* const tile = AlignedFloats(request.scratch.tail, request.channels.size() * row_stride);
  const size_t row_bytes = size_t{2} * request.layout.head_dim * DtypeBytes(request.layout.dtype);
  HWY_DYNAMIC_DISPATCH(GatherTail)
  (request.layout.dtype, view.tail, row_bytes, rows, request.channels.data(),
   request.channels.size(), row_stride, tile);
  std::vector<int32_t> tile_channels(request.channels.size());
  for (size_t i = 0; i < tile_channels.size(); ++i) tile_channels[i] = static_cast<int32_t>(i);
  ScanChunk chunk = NewChunk(request, logits);
  chunk.codes = reinterpret_cast<const std::byte*>(tile);
  chunk.channel_bytes = row_stride * sizeof(float);
  chunk.channels = tile_channels.data();
  chunk.runs = 1;
  chunk.run_tokens = rows;
  ScanChunkHeads(request, IndexFormat::kExact, Dtype::kFloat32, chunk, nullptr);
}

}  // namespace

void ScanLogits(const ScoreView& view, absl::Span<const int32_t> channels, int group,
                const float* weights, size_t stride, ScanScratch& scratch, float* logits) {
  const Request request{view.layout, channels, group, weights, stride, scratch};
  size_t position = 0;
  for (const IndexStrip& strip : view.strips) {
    ScanStrip(request, strip, logits + position);
    position += static_cast<size_t>(strip.block_count) * view.layout.block_tokens;
  }
  if (view.tail_rows > 0) ScanTail(request, view, logits + position);
}

}  // namespace terrace::attention
#endif  // HWY_ONCE
