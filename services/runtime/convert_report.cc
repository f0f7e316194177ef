// Sequences and tiers.
#include <string>

#include "services/runtime/convert.h"

namespace terrace::runtime {
namespace {

void SetTime(absl::Time time, google::protobuf::Timestamp* proto) {
  const int64_t nanos = absl::ToUnixNanos(time);
  proto->set_seconds(nanos / 1'000'000'000);
  proto->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
}

absl::Time FromTimestamp(const google::protobuf::Timestamp& proto) {
  return absl::FromUnixSeconds(proto.seconds()) + absl::Nanoseconds(proto.nanos());
}

}  // namespace

void ToProto(const engine::SequenceInfo& info, v1::SequenceInfo* proto) {
  proto->set_handle(info.handle);
  proto->set_length(static_cast<uint64_t>(info.length));
  proto->set_durable_length(static_cast<uint64_t>(info.durable_length));
  proto->set_writer_epoch(info.writer_epoch);
  ToProto(info.spec, proto->mutable_spec());
  proto->set_block_tokens(static_cast<uint32_t>(info.block_tokens));
  for (const int64_t length : info.layer_lengths) {
    proto->add_layer_lengths(static_cast<uint64_t>(length));
  }
}

absl::StatusOr<engine::SequenceInfo> FromProto(const v1::SequenceInfo& proto) {
  absl::StatusOr<engine::SequenceSpec> spec = FromProto(proto.spec());
  if (!spec.ok()) return spec.status();
  engine::SequenceInfo info = {.handle = proto.handle(),
                               .length = static_cast<int64_t>(proto.length()),
                               .durable_length = static_cast<int64_t>(proto.durable_length()),
                               .writer_epoch = proto.writer_epoch(),
                               .spec = *std::move(spec),
                               .block_tokens = static_cast<int>(proto.block_tokens()),
                               .layer_lengths = {}};
  for (const uint64_t length : proto.layer_lengths()) {
    info.layer_lengths.push_back(static_cast<int64_t>(length));
  }
  return info;
}

absl::StatusOr<engine::PrefixQuery> FromProto(const v1::SequencePrefix& prefix) {
  absl::StatusOr<engine::SequenceSpec> spec = FromProto(prefix.spec());
  if (!spec.ok()) return spec.status();
  return engine::PrefixQuery{
      .spec = *std::move(spec),
      .token_ids = {prefix.token_ids().data(), static_cast<size_t>(prefix.token_ids_size())},
      .accept_sparse = prefix.accept_sparse()};
}

void ToProto(const engine::PrefixQuery& query, v1::SequencePrefix* proto) {
  ToProto(query.spec, proto->mutable_spec());
  proto->mutable_token_ids()->Add(query.token_ids.begin(), query.token_ids.end());
  proto->set_accept_sparse(query.accept_sparse);
}

void ToProto(const engine::PrefixFound& found, v1::LookupPrefixResponse* proto) {
  proto->set_length(static_cast<uint64_t>(found.tokens));
  if (found.lease.empty()) return;
  proto->set_lease(found.lease);
  SetTime(found.lease_expires, proto->mutable_lease_expires());
}

engine::PrefixFound FromProto(const v1::LookupPrefixResponse& proto) {
  return {.tokens = static_cast<int64_t>(proto.length()),
          .lease = proto.lease(),
          .lease_expires = FromTimestamp(proto.lease_expires())};
}

void ToProto(const engine::ParkReport& report, v1::ParkResponse* proto) {
  ToProto(report.info, proto->mutable_sequence());
  proto->set_freed_row_bytes(report.freed_row_bytes);
  proto->set_freed_index_bytes(report.freed_index_bytes);
  proto->set_kept_bytes(report.kept_bytes);
}

absl::StatusOr<engine::ParkReport> FromProto(const v1::ParkResponse& proto) {
  absl::StatusOr<engine::SequenceInfo> info = FromProto(proto.sequence());
  if (!info.ok()) return info.status();
  return engine::ParkReport{.info = *std::move(info),
                            .freed_row_bytes = proto.freed_row_bytes(),
                            .freed_index_bytes = proto.freed_index_bytes(),
                            .kept_bytes = proto.kept_bytes()};
}

void ToProto(const engine::TierReport& report, v1::TierInfo* proto) {
  const kvstore::TierStats& stats = report.stats;
  proto->set_shard(report.shard);
  proto->set_tier(static_cast<v1::Tier>(report.tier));
  proto->set_capacity_bytes(stats.capacity_bytes);
  proto->set_used_bytes(stats.used_bytes);
  proto->set_pinned_bytes(stats.pinned_bytes);
  proto->set_resident_blocks(stats.resident_blocks);
  proto->set_admitted_blocks(stats.admitted_blocks);
  proto->set_evicted_blocks(stats.evicted_blocks);
  proto->set_deleted_blocks(stats.deleted_blocks);
  proto->set_resident_bytes(stats.resident_bytes);
  proto->set_admitted_bytes(stats.admitted_bytes);
  proto->set_evicted_bytes(stats.evicted_bytes);
  proto->set_deleted_bytes(stats.deleted_bytes);
  proto->set_index_bytes(stats.index_bytes);
  proto->set_read_bytes(stats.read_bytes);
  proto->set_written_bytes(stats.written_bytes);
  proto->set_error_count(stats.error_count);
  proto->set_last_error(stats.last_error);
  proto->set_corrupt_granules(stats.corrupt_granules);
  proto->set_read_ahead_blocks(stats.ahead_blocks);
  proto->set_read_ahead_useful_blocks(stats.ahead_useful_blocks);
  proto->set_read_ahead_late_blocks(stats.ahead_late_blocks);
  proto->set_read_ahead_wasted_blocks(stats.ahead_wasted_blocks);
  proto->set_quarantined_cells(stats.quarantined_cells);
}

engine::TierReport FromProto(const v1::TierInfo& proto) {
  return {.shard = proto.shard(),
          .tier = static_cast<engine::Tier>(proto.tier()),
          .stats = {.capacity_bytes = proto.capacity_bytes(),
                    .used_bytes = proto.used_bytes(),
                    .pinned_bytes = proto.pinned_bytes(),
                    .resident_blocks = proto.resident_blocks(),
                    .admitted_blocks = proto.admitted_blocks(),
                    .evicted_blocks = proto.evicted_blocks(),
                    .deleted_blocks = proto.deleted_blocks(),
                    .resident_bytes = proto.resident_bytes(),
                    .admitted_bytes = proto.admitted_bytes(),
                    .evicted_bytes = proto.evicted_bytes(),
                    .deleted_bytes = proto.deleted_bytes(),
                    .ahead_blocks = proto.read_ahead_blocks(),
                    .ahead_useful_blocks = proto.read_ahead_useful_blocks(),
                    .ahead_late_blocks = proto.read_ahead_late_blocks(),
                    .ahead_wasted_blocks = proto.read_ahead_wasted_blocks(),
                    .index_bytes = proto.index_bytes(),
                    .read_bytes = proto.read_bytes(),
                    .written_bytes = proto.written_bytes(),
                    .error_count = proto.error_count(),
                    .last_error = proto.last_error(),
                    .corrupt_granules = proto.corrupt_granules(),
                    .quarantined_cells = proto.quarantined_cells()}};
}

void ToProto(const engine::SequenceSummary& summary, v1::SequenceSummary* proto) {
  proto->set_handle(summary.handle);
  proto->set_tenant(summary.tenant);
  proto->set_model_fingerprint(summary.model_fingerprint);
  proto->set_length(static_cast<uint64_t>(summary.length));
  proto->set_durable_length(static_cast<uint64_t>(summary.durable_length));
  proto->set_host_bytes(summary.host_bytes);
  proto->set_disk_bytes(summary.disk_bytes);
  proto->set_parked(summary.parked);
  SetTime(summary.created, proto->mutable_created());
  SetTime(summary.last_used, proto->mutable_last_used());
  proto->set_problem(summary.problem);
}

engine::SequenceSummary FromProto(const v1::SequenceSummary& proto) {
  return {.handle = proto.handle(),
          .tenant = proto.tenant(),
          .model_fingerprint = proto.model_fingerprint(),
          .length = static_cast<int64_t>(proto.length()),
          .durable_length = static_cast<int64_t>(proto.durable_length()),
          .host_bytes = proto.host_bytes(),
          .disk_bytes = proto.disk_bytes(),
          .parked = proto.parked(),
          .created = FromTimestamp(proto.created()),
          .last_used = FromTimestamp(proto.last_used()),
          .problem = proto.problem()};
}

void ToProto(const engine::SequenceDescription& description, v1::DescribeSequenceResponse* proto) {
  ToProto(description.summary, proto->mutable_summary());
  ToProto(description.info, proto->mutable_sequence());
  for (const engine::LayerResidency& layer : description.layers) {
    v1::LayerResidency* out = proto->add_layers();
    out->set_layer(static_cast<uint32_t>(layer.layer));
    out->set_length(static_cast<uint64_t>(layer.length));
    out->set_blocks(layer.blocks);
    out->set_host_blocks(layer.host_blocks);
    out->set_disk_blocks(layer.disk_blocks);
    out->set_host_row_bytes(layer.host_row_bytes);
    out->set_host_index_bytes(layer.host_index_bytes);
    out->set_disk_bytes(layer.disk_bytes);
  }
  for (const engine::SegmentSpan& segment : description.segments) {
    v1::SegmentRange* out = proto->add_segments();
    out->set_segment(segment.segment);
    out->set_first_block(segment.first_block);
    out->set_end_block(segment.end_block);
  }
}

absl::StatusOr<engine::SequenceDescription> FromProto(const v1::DescribeSequenceResponse& proto) {
  engine::SequenceDescription description;
  description.summary = FromProto(proto.summary());
  absl::StatusOr<engine::SequenceInfo> info = FromProto(proto.sequence());
  if (!info.ok()) return info.status();
  description.info = *std::move(info);
  for (const v1::LayerResidency& layer : proto.layers()) {
    description.layers.push_back({.layer = static_cast<int>(layer.layer()),
                                  .length = static_cast<int64_t>(layer.length()),
                                  .blocks = layer.blocks(),
                                  .host_blocks = layer.host_blocks(),
                                  .disk_blocks = layer.disk_blocks(),
                                  .host_row_bytes = layer.host_row_bytes(),
                                  .host_index_bytes = layer.host_index_bytes(),
                                  .disk_bytes = layer.disk_bytes()});
  }
  for (const v1::SegmentRange& segment : proto.segments()) {
    description.segments.push_back({.segment = segment.segment(),
                                    .first_block = segment.first_block(),
                                    .end_block = segment.end_block()});
  }
  return description;
}

}  // namespace terrace::runtime
