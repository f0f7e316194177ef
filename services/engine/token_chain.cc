#include "services/engine/token_chain.h"

#include <algorithm>

namespace terrace::engine {
namespace {

// What a crash cuts is mostly less; beyond it, the chain ends where it cuts.
constexpr int64_t kCutTokensMax = 4096;

}  // namespace

bool TokenChain::Add(int64_t position, absl::Span<const uint32_t> ids) {
  const int64_t known = end() - position;
  if (known < 0 || known >= static_cast<int64_t>(ids.size())) return false;
  tokens_.Append(ids.subspan(known));
  return true;
}

void TokenChain::MarkSparse(int64_t position) { sparse_from_ = std::min(sparse_from_, position); }

void TokenChain::Advance(int64_t length) {
  const int64_t block_tokens = hasher_.block_tokens();
  const int64_t complete = std::min(length, end()) / block_tokens;
  while (static_cast<int64_t>(blocks_.size()) < complete) {
    const int64_t position = static_cast<int64_t>(blocks_.size()) * block_tokens;
    const Provenance provenance =
        position + block_tokens > sparse_from_ ? Provenance::kSparse : Provenance::kDense;
    const BlockHash hash = hasher_.Next(blocks_.empty() ? hasher_.root() : blocks_.back(),
                                        provenance, tokens_.Run(position - first_, block_tokens));
    blocks_.Append({&hash, 1});
  }
}

void TokenChain::Cut(int64_t length) {
  const int64_t block_tokens = hasher_.block_tokens();
  const int64_t whole = length / block_tokens;
  if (static_cast<int64_t>(blocks_.size()) > whole) blocks_.Cut(whole);
  if (length < first_) {
    // Ids of the cut block are not known any more: all that goes on from its start.
    first_ = static_cast<int64_t>(blocks_.size()) * block_tokens;
    tokens_.Cut(0);
  } else if (length < end()) {
    tokens_.Cut(length - first_);
  }
  if (length <= sparse_from_) sparse_from_ = INT64_MAX;
}

TokenRecord TokenChain::Record(int64_t length, int64_t durable) const {
  const int64_t block_tokens = hasher_.block_tokens();
  const int64_t whole = std::min(static_cast<int64_t>(blocks_.size()), length / block_tokens);
  TokenRecord record;
  record.blocks = blocks_.Copy(0, whole);
  const int64_t last = std::min(length, end());
  if (last < first_) {
    record.first_position = whole * block_tokens;
  } else {
    const int64_t cut = std::max(durable, length - kCutTokensMax) / block_tokens;
    record.first_position = std::max({int64_t{0}, first_, std::min(cut, whole - 1) * block_tokens});
    record.tokens = tokens_.Copy(record.first_position - first_, last - first_);
  }
  record.sparse_from = SparseFrom(length);
  return record;
}

void TokenChain::Restore(const TokenRecord& record) {
  const int64_t hashed = static_cast<int64_t>(record.blocks.size()) * hasher_.block_tokens();
  if (record.first_position < 0 || record.first_position > hashed || record.end() < hashed ||
      record.first_position % hasher_.block_tokens() != 0) {
    return;
  }
  blocks_.Append(record.blocks);
  first_ = record.first_position;
  tokens_.Append(record.tokens);
  sparse_from_ = record.sparse_from;
}

}  // namespace terrace::engine
