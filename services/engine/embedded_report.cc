// What an EmbeddedEngine tells people: tiers, sequences, residency.
#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "services/engine/embedded_engine.h"
#include "services/engine/error.h"
#include "services/engine/sequence_record.h"

namespace terrace::engine {
namespace {

// How long a list waits for one sequence.
constexpr absl::Duration kListPatience = absl::Milliseconds(100);

}  // namespace

absl::StatusOr<std::vector<TierReport>> EmbeddedEngine::ListTiers(const Listing& /*listing*/) {
  std::vector<TierReport> tiers;
  tiers.push_back({.shard = shard(), .tier = Tier::kHost, .stats = store_->HostStats()});
  if (!options_.store.disk_path.empty()) {
    tiers.push_back({.shard = shard(), .tier = Tier::kDisk, .stats = store_->DiskStats()});
  }
  return tiers;
}

SequenceSummary EmbeddedEngine::Summarize(Sequence& sequence, std::vector<LayerResidency>* layers) {
  SequenceSummary summary = {.handle = sequence.handle,
                             .tenant = sequence.tenant,
                             .model_fingerprint = sequence.spec.model_fingerprint,
                             .length = sequence.length(),
                             .durable_length = sequence.DurableLength(*store_),
                             .parked = sequence.parked,
                             .created = sequence.created,
                             .last_used = absl::FromUnixMicros(sequence.last_used_us)};
  for (int layer = 0; layer < sequence.spec.geometry.layers; ++layer) {
    LayerResidency total = {.layer = layer, .length = sequence.layer_length[layer].load()};
    for (const kvstore::SegmentRange& range : sequence.ranges) {
      const kvstore::Residency part = store_->Describe(*range.segment, static_cast<uint16_t>(layer),
                                                       range.first_block, range.end_block);
      total.blocks += part.sealed_blocks;
      total.host_blocks += part.host_blocks;
      total.disk_blocks += part.disk_blocks;
      total.host_row_bytes += part.host_row_bytes;
      total.host_index_bytes += part.host_index_bytes;
      total.disk_bytes += part.disk_bytes;
    }
    summary.host_bytes += total.host_row_bytes + total.host_index_bytes;
    summary.disk_bytes += total.disk_bytes;
    if (layers != nullptr) layers->push_back(total);
  }
  return summary;
}

SequenceSummary EmbeddedEngine::SummarizeBusy(const Sequence& sequence) {
  return {.handle = sequence.handle,
          .tenant = sequence.tenant,
          .model_fingerprint = sequence.spec.model_fingerprint,
          .length = sequence.length(),
          .created = sequence.created,
          .last_used = absl::FromUnixMicros(sequence.last_used_us),
          .problem = "busy: nobody else may look at it now"};
}

std::shared_ptr<Sequence> EmbeddedEngine::NextSequence(absl::string_view tenant,
                                                       absl::string_view after) const {
  const kvstore::MutexLock lock(mu_);
  for (auto it = sequences_.upper_bound(after); it != sequences_.end(); ++it) {
    if (it->second->retained()) continue;
    if (tenant.empty() || it->second->tenant == tenant) return it->second;
  }
  return nullptr;
}

std::optional<SequenceSummary> EmbeddedEngine::NextAside(absl::string_view tenant,
                                                         absl::string_view after) const {
  const kvstore::MutexLock lock(mu_);
  for (auto it = set_aside_.upper_bound(after); it != set_aside_.end(); ++it) {
    const SetAside& aside = it->second;
    if (aside.retained || (!tenant.empty() && aside.tenant != tenant)) continue;
    SequenceSummary summary = {.handle = it->first,
                               .tenant = aside.tenant,
                               .model_fingerprint = {},
                               .created = absl::UnixEpoch(),
                               .last_used = absl::UnixEpoch(),
                               .problem = aside.why.ToString()};
    const absl::StatusOr<SequenceRecord> record = DecodeRecord(aside.manifest.attributes);
    if (record.ok()) {
      summary.model_fingerprint = record->spec.model_fingerprint;
      summary.created = summary.last_used = record->created;
    }
    return summary;
  }
  return std::nullopt;
}

absl::StatusOr<std::vector<SequenceSummary>> EmbeddedEngine::ListSequences(absl::string_view tenant,
                                                                           absl::string_view after,
                                                                           int limit,
                                                                           const Listing& listing) {
  std::vector<SequenceSummary> summaries;
  std::string last(after);
  while (static_cast<int>(summaries.size()) < limit) {
    const std::shared_ptr<Sequence> sequence = NextSequence(tenant, last);
    std::optional<SequenceSummary> aside = NextAside(tenant, last);
    if (aside.has_value() && (sequence == nullptr || aside->handle < sequence->handle)) {
      last = aside->handle;
      summaries.push_back(*std::move(aside));
      continue;
    }
    if (sequence == nullptr) break;
    last = sequence->handle;
    const SharedHold gate(sequence->gate, std::min(listing.deadline, absl::Now() + kListPatience));
    if (!gate.held()) {
      if (absl::Now() >= listing.deadline) return NotBegun("list of sequences");
      summaries.push_back(SummarizeBusy(*sequence));
    } else if (!sequence->closed) {
      // One that is closed meanwhile makes no page short: a short page is the last.
      summaries.push_back(Summarize(*sequence, nullptr));
    }
  }
  return summaries;
}

absl::StatusOr<SequenceDescription> EmbeddedEngine::Describe(absl::string_view handle,
                                                             absl::Time deadline) {
  std::shared_ptr<Sequence> sequence;
  {
    const kvstore::MutexLock lock(mu_);
    const auto found = sequences_.find(handle);
    if (found == sequences_.end()) {
      const auto aside = set_aside_.find(handle);
      return aside == set_aside_.end() || aside->second.retained ? SequenceNotFound(handle)
                                                                 : aside->second.why;
    }
    sequence = found->second;
  }
  const SharedHold gate(sequence->gate, WaitEnd(deadline, kCallPatience));
  if (!gate.held()) return NotBegun("description");
  if (sequence->closed) return SequenceNotFound(handle);
  SequenceDescription description;
  description.summary = Summarize(*sequence, &description.layers);
  description.info = sequence->Info(*store_);
  for (const kvstore::SegmentRange& range : sequence->ranges) {
    const bool open = range.end_block == kvstore::kOpenEnd;
    description.segments.push_back({.segment = static_cast<uint64_t>(store_->id(*range.segment)),
                                    .first_block = range.first_block,
                                    .end_block = open ? 0 : range.end_block});
  }
  return description;
}

absl::StatusOr<std::vector<std::byte>> EmbeddedEngine::ReadRows(
    const Caller& caller, absl::string_view handle, int layer, int head,
    absl::Span<const uint32_t> positions) {
  absl::StatusOr<std::shared_ptr<Sequence>> found = Find(caller, handle);
  if (!found.ok()) return found.status();
  Sequence& sequence = **found;
  const SharedHold gate(sequence.gate, caller.wait_end());
  if (!gate.held()) return NotBegun("read");
  if (sequence.closed) return SequenceNotFound(handle);
  Unpark(sequence);
  const Geometry& geometry = sequence.spec.geometry;
  if (layer < 0 || layer >= geometry.layers || head < 0 || head >= geometry.kv_heads) {
    return absl::OutOfRangeError("layer or kv_head beyond the sequence's geometry");
  }
  const kvstore::BlockLayout& layout = sequence.layout.block;
  const int64_t length = sequence.layer_length[layer].load();
  std::vector<kvstore::ReadRequest> requests;
  for (const uint32_t position : positions) {
    if (position >= length) {
      return absl::OutOfRangeError("positions: got one beyond the layer's length");
    }
    const uint32_t block = position / layout.block_tokens;
    if (requests.empty() || requests.back().index != block) {
      requests.push_back({.segment = sequence.RangeOf(block).segment.get(),
                          .layer = static_cast<uint16_t>(layer),
                          .head = static_cast<uint16_t>(head),
                          .index = block,
                          .cells = 0});
    }
    if (absl::Status status =
            RestoreTail(sequence, layer, int64_t{position} + 1, caller.wait_end());
        !status.ok()) {
      return status;
    }
    requests.back().cells |= uint64_t{1} << position % layout.block_tokens / layout.granule_tokens;
  }
  const kvstore::Pins pins = store_->PinRows(requests, caller.wait_end());
  std::vector<std::byte> rows;
  rows.reserve(positions.size() * layout.row_bytes);
  size_t request = 0;
  for (const uint32_t position : positions) {
    while (requests[request].index != position / layout.block_tokens) ++request;
    const kvstore::PinnedExtent& extent = pins.extents()[request];
    if (extent.missing != 0) return extent.status;
    const std::byte* row = extent.data + size_t{position % layout.block_tokens} * layout.row_bytes;
    rows.insert(rows.end(), row, row + layout.row_bytes);
  }
  return rows;
}

}  // namespace terrace::engine
