// Recovery of the manifest table from the index of the disk. No block is read.
#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/manifest_table.h"

namespace terrace::kvstore {

absl::Status ManifestTable::Recover(const MakeSegment& make_segment) {
  absl::StatusOr<DiskIndex> index = core_.disk->LoadIndex();
  if (!index.ok()) return index.status();
  DiskBatch batch;
  std::map<SegmentId, SegmentRef> recovering;
  {
    MutexLock lock(core_.mu);
    if (absl::Status status = CheckExtents(*index); !status.ok()) return status;
    for (auto& [name, record] : index->manifests) {
      const absl::Status status = RecoverManifest(name, std::move(record), make_segment);
      if (!status.ok()) index->damage.push_back(status);
    }
    for (const absl::Status& status : index->damage) core_.CountDiskError(status);
    MarkUnreadable(*index);
    for (const auto& [id, layers] : index->watermarks) {
      const auto it = recovering_.find(id);
      if (it != recovering_.end()) {
        RecoverWatermark(*it->second, layers, index->damage.empty(), batch);
      } else if (index->damage.empty()) {
        // Written, but never named: the process died in between. Unless a manifest is
        // unreadable: then it may be the one that names it.
        batch.DeleteSegment(id);
      }
    }
    for (Manifest& manifest : recovered_) {
      for (const SegmentRange& range : manifest.ranges) {
        if (!range.segment->unreadable) continue;
        manifest.damage = absl::DataLossError(absl::StrCat("how much is on disk of segment ",
                                                           static_cast<uint64_t>(range.segment->id),
                                                           " is not known any more"));
      }
    }
    recovering.swap(recovering_);
  }
  if (batch.empty()) return absl::OkStatus();
  return core_.disk->Write(batch, /*sync=*/false, DiskTier::Growth::kFrees);
}

absl::Status ManifestTable::CheckExtents(const DiskIndex& index) const {
  size_t needed = 0;
  for (const auto& [name, record] : index.manifests) {
    for (const RangeRecord& range : record.ranges) {
      needed = std::max({needed, range.layout.rows_bytes(), range.layout.stripe_bytes()});
    }
  }
  const size_t largest = core_.host.largest_extent();
  if (needed <= largest) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("what is on this disk needs extents of ", needed, " bytes; ",
                   core_.options.host_bytes, " bytes of host memory allow ", largest,
                   " each, and as many as it was written with allow enough"));
}

absl::Status ManifestTable::RecoverManifest(const std::string& name, ManifestRecord record,
                                            const MakeSegment& make_segment) {
  const size_t stored_bytes = EncodeManifest(record).size();
  Manifest manifest{.name = name, .attributes = std::move(record.attributes), .ranges = {}};
  for (const RangeRecord& range : record.ranges) {
    SegmentRef& segment = recovering_[range.segment];
    if (segment == nullptr) {
      segment = make_segment(range.segment, range.layout, range.segment_first_block);
    }
    if (segment->layout != range.layout || segment->first_block != range.segment_first_block) {
      return absl::DataLossError(
          absl::StrCat("manifests disagree on segment ", static_cast<uint64_t>(range.segment)));
    }
    manifest.ranges.push_back({segment, range.first_block, range.end_block});
  }
  if (absl::Status status = Check(manifest); !status.ok()) {
    return absl::DataLossError(status.message());
  }
  CountRanges(manifest.ranges, /*parked=*/true);
  // Perhaps: its watermark may be damaged.
  for (const SegmentRange& range : manifest.ranges) range.segment->stored = true;
  manifests_.emplace(
      name, Entry{.ranges = manifest.ranges, .parked = true, .stored_bytes = stored_bytes});
  recovered_.push_back(std::move(manifest));
  return absl::OkStatus();
}

void ManifestTable::MarkUnreadable(const DiskIndex& index) {
  bool incomplete = index.incomplete;
  for (const SegmentId id : index.unreadable) {
    const auto it = recovering_.find(id);
    if (it != recovering_.end()) {
      it->second->unreadable = true;
    } else {
      // Its key may be what rotted.
      incomplete = true;
    }
  }
  if (!incomplete) return;
  // Of the others nobody knows whether there was anything.
  std::set<SegmentId> readable;
  for (const auto& [id, layers] : index.watermarks) readable.insert(id);
  for (auto& [id, segment] : recovering_) {
    segment->unreadable = segment->unreadable || !readable.contains(id);
  }
}

void ManifestTable::RecoverWatermark(Segment& segment, const std::vector<DurableExtent>& layers,
                                     bool may_cut, DiskBatch& batch) {
  const BlockLayout& layout = segment.layout;
  // Named by a manifest that is damaged: left alone.
  if (segment.named_ends.empty()) return;
  if (layers.size() != layout.layers) {
    core_.CountDiskError(absl::DataLossError(
        absl::StrCat("watermark of segment ", static_cast<uint64_t>(segment.id), " has ",
                     layers.size(), " layers, ", layout.layers, " expected")));
    segment.unreadable = true;
    return;
  }
  const uint32_t named_end = *segment.named_ends.rbegin();
  TierStats& stats = core_.disk_stats;
  bool cut = false;
  for (uint16_t layer = 0; layer < layout.layers; ++layer) {
    const DurableExtent& found = layers[layer];
    cut = cut || found.end_block > named_end;
    for (uint16_t head = 0; head < layout.heads; ++head) {
      Lane& lane = segment.lane(layer, head);
      const uint32_t end = std::max(found.end_block, segment.first_block);
      lane.durable_end = lane.sealed_end = lane.reserved_end = lane.pieces_end = lane.flush_end =
          end;
      const uint64_t blocks = end - segment.first_block;
      stats.admitted_blocks += blocks;
      stats.resident_blocks += blocks;
      stats.admitted_bytes += blocks * layout.rows_bytes();
      stats.resident_bytes += blocks * layout.rows_bytes();
      stats.index_bytes += blocks * layout.piece_bytes();
    }
    segment.tail_rows[layer] = std::min(found.tail_rows, layout.block_tokens);
  }
  segment.trim_end = segment.deleted_end = named_end;
  if (!cut || !may_cut) return;
  // Blocks that no manifest came to name.
  const Cut excess{.segment = &segment, .keep_end = named_end};
  Put(excess, batch);
  Apply(excess);
}

}  // namespace terrace::kvstore
