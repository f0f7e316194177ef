// How an EmbeddedEngine comes back after a restart: every sequence at its durable length (I6).
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/engine/embedded_engine.h"

namespace terrace::engine {

void EmbeddedEngine::Recover() {
  for (const kvstore::Manifest& manifest : store_->TakeRecovered()) {
    const absl::Status status = RecoverOne(manifest);
    if (status.ok()) continue;
    const absl::MutexLock lock(&mu_);
    sequences_.erase(manifest.name);
    damaged_.emplace(manifest.name, absl::DataLossError(absl::StrCat(
                                        "sequence ", manifest.name,
                                        " could not be recovered: ", status.message())));
  }
}

absl::Status EmbeddedEngine::RecoverOne(const kvstore::Manifest& manifest) {
  absl::StatusOr<SequenceRecord> record = DecodeRecord(manifest.attributes);
  if (!record.ok()) return record.status();
  if (manifest.ranges.empty()) return absl::DataLossError("its manifest names no segment");
  const kvstore::BlockLayout& block = store_->layout(*manifest.ranges.front().segment);
  auto sequence = std::make_shared<Sequence>(
      manifest.name, SequenceLayout::FromBlock(record->spec, block), *record);
  const absl::WriterMutexLock gate(&sequence->gate);
  sequence->ranges = manifest.ranges;
  for (std::atomic<int64_t>& length : sequence->layer_length) length = INT64_MAX;
  std::vector<int64_t> durable;
  for (int layer = 0; layer < record->spec.geometry.layers; ++layer) {
    durable.push_back(sequence->DurableLayerLength(*store_, layer));
  }
  const int64_t shortest = *std::min_element(durable.begin(), durable.end());
  const int64_t longest = *std::max_element(durable.begin(), durable.end());
  for (size_t layer = 0; layer < durable.size(); ++layer) {
    sequence->layer_length[layer] = durable[layer];
  }
  {
    const absl::MutexLock writer(&sequence->writer);
    sequence->tail_on_disk =
        longest % sequence->block_tokens() != 0 || shortest % sequence->block_tokens() != 0;
  }
  {
    const absl::MutexLock lock(&mu_);
    sequences_.emplace(sequence->handle, sequence);
  }
  // Layers that got further than others are cut back, and so is a sequence that goes on in a
  // segment although an earlier one is not all there.
  const bool gap =
      shortest < int64_t{sequence->ranges.back().first_block} * sequence->block_tokens();
  if (longest == shortest && !gap) return absl::OkStatus();
  if (gap) {
    const absl::MutexLock writer(&sequence->writer);
    absl::StatusOr<std::vector<kvstore::SegmentRange>> ranges =
        Branch(*sequence, shortest, absl::InfiniteFuture());
    if (!ranges.ok()) return ranges.status();
    sequence->ranges = *std::move(ranges);
    for (std::atomic<int64_t>& length : sequence->layer_length) length = shortest;
    return store_->CommitManifest(sequence->MakeManifest());
  }
  if (absl::Status status = TruncateLocked(*sequence, shortest, absl::InfiniteFuture());
      !status.ok()) {
    return status;
  }
  // What was acknowledged as durable stays so in the new segment.
  return shortest % sequence->block_tokens() == 0 ? absl::OkStatus()
                                                  : FlushLocked(*sequence, absl::InfiniteFuture());
}

}  // namespace terrace::engine
