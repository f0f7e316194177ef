// How sequences of an EmbeddedEngine become durable, leave memory, and are in use again.
#include <vector>

#include "services/engine/embedded_engine.h"
#include "services/engine/error.h"

namespace terrace::engine {

absl::StatusOr<SequenceInfo> EmbeddedEngine::Flush(const Caller& caller, absl::string_view handle) {
  absl::StatusOr<std::shared_ptr<Sequence>> found = Find(caller, handle);
  if (!found.ok()) return found.status();
  Sequence& sequence = **found;
  const SharedHold gate(sequence.gate, caller.wait_end());
  if (!gate.held()) return NotBegun("flush");
  if (sequence.closed) return SequenceNotFound(handle);
  if (absl::Status status = FlushLocked(sequence, caller.wait_end()); !status.ok()) return status;
  return sequence.Info(*store_);
}

absl::Status EmbeddedEngine::FlushLocked(Sequence& sequence, absl::Time deadline) {
  const SoleHold writer(sequence.writer, deadline);
  if (!writer.held()) return NotBegun("flush");
  // What was flushed before a restart or a park, and has not grown since, need not come back.
  std::vector<uint32_t> tail_rows;
  if (!IsWritten(sequence)) {
    for (int layer = 0; layer < sequence.spec.geometry.layers; ++layer) {
      absl::Status status = RestoreTailLocked(sequence, layer, INT64_MAX, deadline);
      if (!status.ok()) return status;
      const int64_t length = sequence.layer_length[layer].load();
      tail_rows.push_back(static_cast<uint32_t>(length % sequence.block_tokens()));
    }
  }
  // The flush of the last syncs for all.
  for (size_t i = 0; i + 1 < sequence.ranges.size(); ++i) {
    absl::Status status = store_->AwaitDurable(*sequence.ranges[i].segment, deadline);
    if (!status.ok()) return status;
  }
  if (absl::Status status = store_->Flush(sequence.open_segment(), tail_rows, deadline);
      !status.ok()) {
    return status;
  }
  const int64_t length = sequence.length();
  return sequence.KnowsMoreThanRecorded(length) ? Commit(sequence, length, deadline)
                                                : absl::OkStatus();
}

bool EmbeddedEngine::IsWritten(const Sequence& sequence) const {
  for (int layer = 0; layer < sequence.spec.geometry.layers; ++layer) {
    if (sequence.DurableLayerLength(*store_, layer) < sequence.layer_length[layer]) return false;
  }
  return true;
}

absl::StatusOr<ParkReport> EmbeddedEngine::Park(const Caller& caller, absl::string_view handle) {
  // Beside the steps that run, so that they wait only for what is left to write.
  if (absl::Status status = Flush(caller, handle).status(); !status.ok()) return status;
  absl::StatusOr<std::shared_ptr<Sequence>> found = Find(caller, handle);
  if (!found.ok()) return found.status();
  Sequence& sequence = **found;
  const SoleHold gate(sequence.gate, caller.wait_end());
  if (!gate.held()) return NotBegun("park");
  if (sequence.closed) return SequenceNotFound(handle);
  if (absl::Status status = FlushLocked(sequence, caller.wait_end()); !status.ok()) return status;
  if (prefetcher_ != nullptr) prefetcher_->Forget(sequence, caller.wait_end());
  const absl::StatusOr<kvstore::ParkedBytes> parked = store_->Park(sequence.handle);
  if (!parked.ok()) return parked.status();
  sequence.parked = true;
  for (size_t layer = 0; layer < sequence.tail_on_disk.size(); ++layer) {
    sequence.tail_on_disk[layer] = sequence.layer_length[layer] % sequence.block_tokens() != 0;
  }
  const kvstore::MutexLock sums(sequence.sums_mu);
  for (PrefixSum& prefix : sequence.prefix_sums) prefix = PrefixSum();
  return ParkReport{.info = sequence.Info(*store_),
                    .freed_row_bytes = parked->freed_rows,
                    .freed_index_bytes = parked->freed_index,
                    .kept_bytes = parked->kept};
}

void EmbeddedEngine::Unpark(Sequence& sequence) {
  if (sequence.parked && sequence.parked.exchange(false)) store_->Unpark(sequence.handle);
}

}  // namespace terrace::engine
