#include "services/engine/sequence.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/engine/error.h"

namespace terrace::engine {

Sequence::Sequence(std::string handle_in, SequenceLayout layout_in, const SequenceRecord& record,
                   PrefixDigest digest)
    : handle(std::move(handle_in)),
      layout(std::move(layout_in)),
      tenant(record.tenant),
      spec(record.spec),
      created(record.created),
      epoch(record.writer_epoch),
      closed(record.retained_until != absl::InfiniteFuture()),
      retained_until_us(absl::ToUnixMicros(record.retained_until)),
      leased(record.leased),
      layer_length(record.spec.geometry.layers),
      tail_on_disk(record.spec.geometry.layers),
      generation((uint64_t{std::random_device{}()} << 32) | 1),
      prefix_sums(static_cast<size_t>(record.spec.geometry.layers) * record.spec.geometry.kv_heads),
      tokens(PrefixHasher(tenant, spec, layout.block.block_tokens, digest)),
      recorded_tokens(record.tokens.end()),
      recorded_sparse_from(record.tokens.sparse_from) {
  tokens.Restore(record.tokens);
}

int64_t Sequence::length() const {
  int64_t shortest = layer_length[0].load();
  for (const std::atomic<int64_t>& length : layer_length) {
    shortest = std::min(shortest, length.load());
  }
  return shortest;
}

absl::Status Sequence::CheckFingerprint(absl::string_view got) const {
  if (got.empty() || got == spec.model_fingerprint) return absl::OkStatus();
  return FingerprintMismatch(got, spec.model_fingerprint);
}

absl::Status Sequence::CheckLayer(int layer) const {
  if (layer >= 0 && layer < spec.geometry.layers) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("layer: got ", layer, ", expected 0 to ", spec.geometry.layers - 1));
}

bool Sequence::KnowsMoreThanRecorded(int64_t length) const {
  const kvstore::MutexLock lock(tokens_mu);
  return std::min(length, tokens.end()) > recorded_tokens ||
         tokens.SparseFrom(length) != recorded_sparse_from;
}

int64_t Sequence::HashedTokens() const {
  const kvstore::MutexLock lock(tokens_mu);
  return static_cast<int64_t>(tokens.blocks().size()) * block_tokens();
}

void Sequence::InheritTokens(const Sequence& parent, int64_t length) {
  TokenChain inherited = [&] {
    const kvstore::MutexLock lock(parent.tokens_mu);
    return parent.tokens;
  }();
  inherited.Cut(length);
  inherited.Advance(length);
  const kvstore::MutexLock lock(tokens_mu);
  tokens = std::move(inherited);
}

std::vector<BlockHash> Sequence::CutTokens(int64_t length) {
  const kvstore::MutexLock lock(tokens_mu);
  const TokenChain::Hashes& blocks = tokens.blocks();
  const auto whole = static_cast<size_t>(length / block_tokens());
  std::vector<BlockHash> gone;
  if (whole < blocks.size()) gone = blocks.Copy(whole, blocks.size());
  tokens.Cut(length);
  return gone;
}

bool Sequence::Holds(uint32_t blocks, const BlockHash& last) const {
  const kvstore::MutexLock lock(tokens_mu);
  return blocks <= tokens.blocks().size() && tokens.blocks()[blocks - 1] == last;
}

const kvstore::SegmentRange& Sequence::RangeOf(uint32_t block) const {
  // Forks of forks have many.
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), block,
                                      [](uint32_t wanted, const kvstore::SegmentRange& range) {
                                        return wanted < range.first_block;
                                      });
  // Else a caller asked for a block beyond the sequence.
  if (after == ranges.begin() || block >= std::prev(after)->end_block) std::abort();
  return *std::prev(after);
}

std::vector<kvstore::SegmentRange> Sequence::CutRanges(uint32_t end_block) const {
  std::vector<kvstore::SegmentRange> kept;
  for (const kvstore::SegmentRange& range : ranges) {
    if (range.first_block >= end_block) break;
    kept.push_back(range);
    kept.back().end_block = std::min(range.end_block, end_block);
  }
  return kept;
}

int64_t Sequence::DurableLayerLength(const kvstore::BlockStore& store, int layer) const {
  const int64_t held = layer_length[layer].load();
  int64_t durable = 0;
  for (const kvstore::SegmentRange& range : ranges) {
    const kvstore::DurableExtent extent =
        store.Durable(*range.segment, static_cast<uint16_t>(layer));
    if (extent.end_block < range.end_block) {
      // Not only an open range has a tail: the block may have been sealed since.
      durable = int64_t{extent.end_block} * block_tokens() + extent.tail_rows;
      break;
    }
    durable = int64_t{range.end_block} * block_tokens();
  }
  return std::min(durable, held);
}

int64_t Sequence::DurableLength(const kvstore::BlockStore& store) const {
  int64_t durable = length();
  for (int layer = 0; layer < spec.geometry.layers; ++layer) {
    durable = std::min(durable, DurableLayerLength(store, layer));
  }
  return durable;
}

SequenceRecord Sequence::Record(int64_t tokens_end, int64_t durable) const {
  const kvstore::MutexLock lock(tokens_mu);
  return {.tenant = tenant,
          .spec = spec,
          .writer_epoch = epoch,
          .created = created,
          .retained_until =
              retained() ? absl::FromUnixMicros(retained_until_us) : absl::InfiniteFuture(),
          .leased = leased,
          .tokens = tokens.Record(tokens_end, durable)};
}

SequenceInfo Sequence::Info(const kvstore::BlockStore& store) const {
  SequenceInfo info;
  info.handle = handle;
  info.length = length();
  info.durable_length = DurableLength(store);
  info.writer_epoch = epoch;
  info.spec = spec;
  info.block_tokens = static_cast<int>(block_tokens());
  for (const std::atomic<int64_t>& layer : layer_length) info.layer_lengths.push_back(layer);
  return info;
}

}  // namespace terrace::engine
