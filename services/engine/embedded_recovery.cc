// How an EmbeddedEngine comes back after a restart: every sequence at its durable length (I6).
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/engine/embedded_engine.h"
#include "services/engine/error.h"
#include "services/engine/value_record.h"

namespace terrace::engine {
namespace {

// DataLoss unless all segments hold blocks of that sequence: its record may be another's.
absl::Status CheckLayouts(const kvstore::BlockStore& store, const SequenceSpec& spec,
                          const kvstore::Manifest& manifest) {
  if (manifest.ranges.empty()) return absl::DataLossError("its manifest names no segment");
  const kvstore::BlockLayout& first = store.layout(*manifest.ranges.front().segment);
  const auto block_tokens = static_cast<int>(first.block_tokens);
  const kvstore::BlockLayout expected =
      SequenceLayout::Make(spec, block_tokens, block_tokens * static_cast<int>(first.stripe_blocks))
          .block;
  bool fits = expected.layers == first.layers && expected.heads == first.heads &&
              expected.row_bytes == first.row_bytes && expected.planes == first.planes;
  for (const kvstore::SegmentRange& range : manifest.ranges) {
    fits = fits && store.layout(*range.segment) == first;
  }
  return fits ? absl::OkStatus() : absl::DataLossError("its segments hold other blocks than it");
}

// What whoever asks for the sequence is told. Only what another try may mend keeps its code.
absl::Status WhyAside(absl::string_view handle, const absl::Status& status) {
  if (status.ok()) return status;
  const std::string why =
      absl::StrCat("sequence ", handle, " could not be recovered: ", status.message());
  const bool passing = absl::IsResourceExhausted(status) || absl::IsUnavailable(status) ||
                       absl::IsDeadlineExceeded(status);
  return passing ? absl::Status(status.code(), why) : absl::DataLossError(why);
}

}  // namespace

void EmbeddedEngine::Recover() {
  for (kvstore::Manifest& manifest : store_->TakeRecovered()) {
    if (IsValueManifest(manifest.name)) {
      RecoverValue(manifest);
      continue;
    }
    std::vector<int64_t> durable;
    const absl::Status status = RecoverOne(manifest, durable, absl::InfiniteFuture());
    if (status.ok()) continue;
    const absl::StatusOr<SequenceRecord> record = DecodeRecord(manifest.attributes);
    const std::string handle = manifest.name;
    SetAside aside = {.manifest = std::move(manifest),
                      .tenant = {},
                      .retained = false,
                      .durable = std::move(durable),
                      .why = WhyAside(handle, status)};
    if (record.ok()) {
      aside.tenant = record->tenant;
      aside.retained = record->retained_until != absl::InfiniteFuture();
    }
    const kvstore::MutexLock lock(mu_);
    set_aside_.emplace(handle, std::move(aside));
  }
}

// A value can be put again, so what is left of one is no use to anybody.
void EmbeddedEngine::RecoverValue(const kvstore::Manifest& manifest) {
  absl::Status status = values_->Recover(manifest);
  if (status.ok()) return;
  if (absl::IsDataLoss(status))
    store_->DeleteManifest(manifest.name, absl::InfiniteFuture()).IgnoreError();
  const kvstore::MutexLock lock(mu_);
  lost_values_.push_back(absl::StrCat(manifest.name, ": ", status.message()));
}

absl::StatusOr<EmbeddedEngine::SetAside> EmbeddedEngine::FindAside(const Caller& caller,
                                                                   absl::string_view handle) const {
  const auto found = set_aside_.find(handle);
  if (found == set_aside_.end() || found->second.retained ||
      (!found->second.tenant.empty() && found->second.tenant != caller.tenant)) {
    return SequenceNotFound(handle);
  }
  return found->second;
}

absl::Status EmbeddedEngine::RecoverLate(const std::string& handle, absl::Time deadline) {
  const SoleHold recovery(recovery_, deadline);
  if (!recovery.held()) return NotBegun("recovery");
  SetAside aside;
  {
    const kvstore::MutexLock lock(mu_);
    const auto found = set_aside_.find(handle);
    // Somebody else was first.
    if (found == set_aside_.end()) return absl::OkStatus();
    aside = found->second;
  }
  absl::Status status = WhyAside(handle, RecoverOne(aside.manifest, aside.durable, deadline));
  const kvstore::MutexLock lock(mu_);
  if (status.ok()) {
    set_aside_.erase(handle);
  } else {
    set_aside_.find(handle)->second.why = status;
  }
  return status;
}

absl::StatusOr<bool> EmbeddedEngine::DeleteAside(const std::string& handle, absl::Time deadline) {
  const SoleHold recovery(recovery_, deadline);
  if (!recovery.held()) return NotBegun("delete");
  {
    const kvstore::MutexLock lock(mu_);
    // Somebody else was first: it is gone, or served.
    if (!set_aside_.contains(handle)) return false;
  }
  absl::Status status = store_->DeleteManifest(handle, deadline);
  if (!status.ok()) return status;
  const kvstore::MutexLock lock(mu_);
  set_aside_.erase(handle);
  return true;
}

absl::Status EmbeddedEngine::RecoverOne(const kvstore::Manifest& manifest,
                                        std::vector<int64_t>& durable, absl::Time deadline) {
  if (!manifest.damage.ok()) return manifest.damage;
  absl::StatusOr<SequenceRecord> record = DecodeRecord(manifest.attributes);
  if (!record.ok()) return record.status();
  if (absl::Status status = CheckLayouts(*store_, record->spec, manifest); !status.ok()) {
    return status;
  }
  const kvstore::BlockLayout& block = store_->layout(*manifest.ranges.front().segment);
  auto sequence =
      std::make_shared<Sequence>(manifest.name, SequenceLayout::FromBlock(record->spec, block),
                                 *record, options_.prefix_digest);
  sequence->Touch(options_.clock());
  const SoleHold gate(sequence->gate, absl::InfiniteFuture());
  sequence->parked = true;
  sequence->ranges = manifest.ranges;
  for (std::atomic<int64_t>& length : sequence->layer_length) length = INT64_MAX;
  const bool late = !durable.empty();
  for (int layer = 0; !late && layer < record->spec.geometry.layers; ++layer) {
    durable.push_back(sequence->DurableLayerLength(*store_, layer));
  }
  int64_t shortest = *std::min_element(durable.begin(), durable.end());
  for (size_t layer = 0; layer < durable.size(); ++layer) {
    sequence->layer_length[layer] = durable[layer];
    sequence->tail_on_disk[layer] = durable[layer] % sequence->block_tokens() != 0;
  }
  // A sequence that goes on in a segment although an earlier one, which another may be writing, is
  // not all there. Of that one only full blocks are still what the start found.
  const bool gap =
      shortest < int64_t{sequence->ranges.back().first_block} * sequence->block_tokens();
  if (late && gap) shortest -= shortest % sequence->block_tokens();
  absl::Status status = CutToDurable(*sequence, shortest, deadline);
  // A cut that would need flushed rows that are corrupt waits until somebody makes one that does
  // not: rows below them are served. But not while those rows lie in a segment that another
  // sequence may go on writing.
  if (absl::IsDataLoss(status) && !gap) status = absl::OkStatus();
  if (!status.ok()) {
    // The room that it has taken is for others.
    store_->Park(manifest.name).status().IgnoreError();
    return status;
  }
  // A retained one of which nothing is left.
  if (sequence->ranges.empty()) return absl::OkStatus();
  if (!sequence->retained()) sequence->live = live_.TakeBack(sequence->tenant);
  {
    const kvstore::MutexLock lock(mu_);
    sequences_.emplace(sequence->handle, sequence);
  }
  const kvstore::MutexLock lock(sequence->tokens_mu);
  const TokenChain::Hashes& hashes = sequence->tokens.blocks();
  prefixes_.Add(*sequence, hashes.Copy(0, hashes.size()));
  return absl::OkStatus();
}

absl::Status EmbeddedEngine::CutToDurable(Sequence& sequence, int64_t length, absl::Time deadline) {
  sequence.CutTokens(length);
  if (!sequence.retained()) {
    {
      const kvstore::MutexLock lock(sequence.tokens_mu);
      // Nobody knows what attention gave the rows whose tokens were not recorded.
      if (sequence.tokens.end() < length) sequence.tokens.MarkSparse(sequence.tokens.end());
    }
    return TruncateLocked(sequence, length, deadline);
  }
  const int64_t hashed = sequence.HashedTokens();
  const int64_t named = int64_t{sequence.ranges.back().end_block} * sequence.block_tokens();
  return hashed == named && hashed == sequence.recorded_tokens ? absl::OkStatus()
                                                               : KeepHashed(sequence, deadline);
}

absl::Status EmbeddedEngine::RestoreTail(Sequence& sequence, int layer, int64_t end,
                                         absl::Time deadline) {
  // Steps that only read, and do so all the time, must not wait for a writer in vain.
  if (!sequence.NeedsTail(layer, end)) return absl::OkStatus();
  const SoleHold writer(sequence.writer, deadline);
  if (!writer.held()) return NotBegun("reading flushed rows");
  return RestoreTailLocked(sequence, layer, end, deadline);
}

absl::Status EmbeddedEngine::RestoreTailLocked(Sequence& sequence, int layer, int64_t end,
                                               absl::Time deadline) {
  if (!sequence.NeedsTail(layer, end)) return absl::OkStatus();
  const int64_t length = sequence.layer_length[layer].load();
  const auto block = static_cast<uint32_t>(length / sequence.block_tokens());
  Unpark(sequence);
  absl::Status status =
      store_->RestoreTail(*sequence.RangeOf(block).segment, static_cast<uint16_t>(layer), deadline);
  if (absl::IsDataLoss(status)) {
    return absl::DataLossError(absl::StrCat("layer ", layer, ", positions [",
                                            int64_t{block} * sequence.block_tokens(), ", ", length,
                                            "): ", status.message()));
  }
  if (absl::IsResourceExhausted(status)) return NoRoom(status.message());
  if (status.ok()) sequence.tail_on_disk[layer] = false;
  return status;
}

}  // namespace terrace::engine
