#include "services/terracectl/tables.h"

#include <cstdint>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "services/terracectl/quantities.h"
#include "services/terracectl/text_table.h"

namespace terrace::terracectl {
namespace {

using google::protobuf::Timestamp;

constexpr size_t kBarCells = 10;
constexpr size_t kModelWidth = 24;

absl::Time ToTime(const Timestamp& stamp) {
  return absl::FromUnixSeconds(stamp.seconds()) + absl::Nanoseconds(stamp.nanos());
}

std::string Age(bool known, const Timestamp& stamp, const View& view) {
  return known ? FormatAge(view.now - ToTime(stamp)) : "-";
}

// An enum value's name without its prefix, in lower case: TIER_HOST is "host". A number that this
// program does not know is printed as such.
std::string EnumText(const std::string& name, absl::string_view prefix, int number) {
  if (name.empty()) return absl::StrCat("#", number);
  return absl::AsciiStrToLower(absl::StripPrefix(name, prefix));
}

std::string TierText(v1::Tier tier) { return EnumText(v1::Tier_Name(tier), "TIER_", tier); }

// Usage of one tier, all shards together.
struct TierSum {
  uint64_t used_bytes = 0;
  uint64_t capacity_bytes = 0;
};

std::string TiersSummary(const v1::ListTiersResponse& answer) {
  std::set<uint32_t> shards;
  std::map<int, TierSum> sums;
  uint64_t errors = 0;
  uint64_t corrupt = 0;
  for (const v1::TierInfo& tier : answer.tiers()) {
    shards.insert(tier.shard());
    TierSum& sum = sums[tier.tier()];
    sum.used_bytes = SaturatingAdd(sum.used_bytes, tier.used_bytes());
    sum.capacity_bytes = SaturatingAdd(sum.capacity_bytes, tier.capacity_bytes());
    errors = SaturatingAdd(errors, tier.error_count());
    corrupt = SaturatingAdd(corrupt, tier.corrupt_granules());
  }
  std::vector<std::string> parts = {FormatCountOf(shards.size(), "shard")};
  for (const auto& [tier, sum] : sums) {
    parts.push_back(absl::StrCat(TierText(static_cast<v1::Tier>(tier)), " ",
                                 FormatBytes(sum.used_bytes), " of ",
                                 FormatBytes(sum.capacity_bytes), " used (",
                                 FormatPercent(sum.used_bytes, sum.capacity_bytes), ")"));
  }
  parts.push_back(FormatCountOf(errors, "error"));
  parts.push_back(FormatCountOf(corrupt, "corrupt granule"));
  return absl::StrJoin(parts, ", ") + "\n";
}

TextTable UsageRows(const v1::ListTiersResponse& answer, bool bars) {
  TextTable table({{"SHARD", Align::kRight},
                   {"TIER"},
                   {"USED", Align::kRight},
                   {"CAPACITY", Align::kRight},
                   {"USE%", Align::kRight},
                   {""},
                   {"PINNED", Align::kRight},
                   {"INDEX", Align::kRight},
                   {"BLOCKS", Align::kRight}});
  for (const v1::TierInfo& tier : answer.tiers()) {
    const uint64_t used = tier.used_bytes();
    const uint64_t capacity = tier.capacity_bytes();
    table.AddRow({absl::StrCat(tier.shard()), TierText(tier.tier()), FormatBytes(used),
                  FormatBytes(capacity), FormatPercent(used, capacity),
                  bars ? FormatBar(used, capacity, kBarCells) : "",
                  FormatBytes(tier.pinned_bytes()), FormatBytes(tier.index_bytes()),
                  FormatCount(tier.resident_blocks())});
  }
  return table;
}

TextTable TrafficRows(const v1::ListTiersResponse& answer) {
  TextTable table({{"SHARD", Align::kRight},
                   {"TIER"},
                   {"ADMITTED", Align::kRight},
                   {"EVICTED", Align::kRight},
                   {"DELETED", Align::kRight},
                   {"READ", Align::kRight},
                   {"WRITTEN", Align::kRight},
                   {"ERRORS", Align::kRight},
                   {"CORRUPT", Align::kRight},
                   {"QUARANTINED", Align::kRight}});
  for (const v1::TierInfo& tier : answer.tiers()) {
    table.AddRow({absl::StrCat(tier.shard()), TierText(tier.tier()),
                  FormatCount(tier.admitted_blocks()), FormatCount(tier.evicted_blocks()),
                  FormatCount(tier.deleted_blocks()), FormatBytes(tier.read_bytes()),
                  FormatBytes(tier.written_bytes()), FormatCount(tier.error_count()),
                  FormatCount(tier.corrupt_granules()), FormatCount(tier.quarantined_cells())});
  }
  return table;
}

// Tiers that read ahead.
TextTable ReadAheadRows(const v1::ListTiersResponse& answer) {
  TextTable table({{"SHARD", Align::kRight},
                   {"TIER"},
                   {"READ AHEAD", Align::kRight},
                   {"USEFUL", Align::kRight},
                   {"LATE", Align::kRight},
                   {"WASTED", Align::kRight}});
  for (const v1::TierInfo& tier : answer.tiers()) {
    if (tier.read_ahead_blocks() == 0) continue;
    table.AddRow(
        {absl::StrCat(tier.shard()), TierText(tier.tier()), FormatCount(tier.read_ahead_blocks()),
         FormatCount(tier.read_ahead_useful_blocks()), FormatCount(tier.read_ahead_late_blocks()),
         FormatCount(tier.read_ahead_wasted_blocks())});
  }
  return table;
}

// INDEX_FORMAT_UNSPECIFIED stands for int8.
std::string IndexText(v1::IndexFormat format) {
  if (format == v1::INDEX_FORMAT_UNSPECIFIED) return "int8";
  return EnumText(v1::IndexFormat_Name(format), "INDEX_FORMAT_", format);
}

std::string GeometryText(const v1::Geometry& geometry) {
  std::string text = absl::StrCat(
      FormatCountOf(geometry.layers(), "layer"), ", ",
      FormatCountOf(geometry.query_heads(), "query head"), ", ",
      FormatCountOf(geometry.kv_heads(), "KV head"), ", head_dim ", geometry.head_dim(), ", ",
      EnumText(v1::Dtype_Name(geometry.storage_dtype()), "DTYPE_", geometry.storage_dtype()));
  if (geometry.softmax_scale() != 0) {
    absl::StrAppend(&text, ", softmax scale ", geometry.softmax_scale());
  }
  return text;
}

std::string Moment(bool known, const Timestamp& stamp, const View& view) {
  if (!known) return "-";
  constexpr char kFormat[] = "%Y-%m-%dT%H:%M:%SZ";
  return absl::StrCat(absl::FormatTime(kFormat, ToTime(stamp), absl::UTCTimeZone()), " (",
                      Age(true, stamp, view), ")");
}

std::string StateText(const v1::SequenceSummary& summary) {
  if (!summary.problem().empty()) return "problem";
  return summary.parked() ? "parked" : "active";
}

std::string Facts(const v1::DescribeSequenceResponse& answer, const View& view) {
  const v1::SequenceSummary& summary = answer.summary();
  const v1::SequenceInfo& info = answer.sequence();
  const v1::SequenceSpec& spec = info.spec();
  const bool known = answer.has_sequence() && info.has_spec();
  const std::pair<const char*, std::string> facts[] = {
      {"Handle", Printable(summary.handle())},
      {"Tenant", Printable(summary.tenant())},
      {"Model", Printable(summary.model_fingerprint())},
      {"Adapter", Printable(spec.adapter_id())},
      {"Geometry", known ? GeometryText(spec.geometry()) : "-"},
      {"Index", known ? IndexText(spec.index_format()) : "-"},
      {"Block", known ? FormatCountOf(info.block_tokens(), "token") : "-"},
      {"Length", absl::StrCat(FormatCountOf(summary.length(), "token"), ", ",
                              FormatCount(summary.durable_length()), " durable")},
      {"Epoch", known ? FormatCount(info.writer_epoch()) : "-"},
      {"State", StateText(summary)},
      {"Host", FormatBytes(summary.host_bytes())},
      {"Disk", FormatBytes(summary.disk_bytes())},
      {"Created", Moment(summary.has_created(), summary.created(), view)},
      {"Last used", Moment(summary.has_last_used(), summary.last_used(), view)}};
  std::string text;
  for (const auto& [name, value] : facts) {
    const std::string label = absl::StrCat(name, ":");
    absl::StrAppend(&text, label, std::string(12 - label.size(), ' '), value, "\n");
  }
  return text;
}

TextTable LayerRows(const v1::DescribeSequenceResponse& answer) {
  TextTable table({{"LAYER", Align::kRight},
                   {"TOKENS", Align::kRight},
                   {"BLOCKS", Align::kRight},
                   {"IN HOST", Align::kRight},
                   {"ON DISK", Align::kRight},
                   {"HOST ROWS", Align::kRight},
                   {"HOST INDEX", Align::kRight},
                   {"DISK BYTES", Align::kRight}});
  for (const v1::LayerResidency& layer : answer.layers()) {
    table.AddRow({absl::StrCat(layer.layer()), FormatCount(layer.length()),
                  FormatCount(layer.blocks()), FormatCount(layer.host_blocks()),
                  FormatCount(layer.disk_blocks()), FormatBytes(layer.host_row_bytes()),
                  FormatBytes(layer.host_index_bytes()), FormatBytes(layer.disk_bytes())});
  }
  return table;
}

TextTable SegmentRows(const v1::DescribeSequenceResponse& answer) {
  TextTable table({{"SEGMENT", Align::kRight}, {"BLOCKS"}});
  for (const v1::SegmentRange& range : answer.segments()) {
    const std::string blocks =
        range.end_block() == 0
            ? absl::StrCat("[", range.first_block(), ", ...) being written")
            : absl::StrCat("[", range.first_block(), ", ", range.end_block(), ")");
    table.AddRow({absl::StrCat(range.segment()), blocks});
  }
  return table;
}

std::string ResidencySummary(const v1::DescribeSequenceResponse& answer) {
  uint64_t blocks = 0;
  uint64_t host = 0;
  uint64_t disk = 0;
  for (const v1::LayerResidency& layer : answer.layers()) {
    blocks = SaturatingAdd(blocks, layer.blocks());
    host = SaturatingAdd(host, layer.host_blocks());
    disk = SaturatingAdd(disk, layer.disk_blocks());
  }
  return absl::StrCat(FormatCountOf(answer.layers_size(), "layer"), ", ",
                      FormatCountOf(blocks, "block"), ": ", FormatPercent(host, blocks),
                      " in host memory, ", FormatPercent(disk, blocks), " on disk\n");
}

// What is not in the list because its shard does not answer.
template <typename Answer>
std::string Missing(const Answer& answer) {
  std::string text;
  for (const google::rpc::Status& error : answer.unreachable()) {
    absl::StrAppend(&text, "Missing: ", Printable(error.message()), "\n");
  }
  return text;
}

}  // namespace

std::string TiersTable(const v1::ListTiersResponse& answer, const View& view) {
  if (answer.tiers().empty()) return absl::StrCat("No tiers.\n", Missing(answer));
  TextTable usage = UsageRows(answer, view.bars);
  if (view.bars && view.width > 0 && usage.Width() > view.width) {
    usage = UsageRows(answer, /*bars=*/false);
  }
  std::string text = absl::StrCat(usage.Render(), "\n", TrafficRows(answer).Render());
  if (const std::string rows = ReadAheadRows(answer).Render(); !rows.empty()) {
    absl::StrAppend(&text, "\n", rows);
  }
  for (const v1::TierInfo& tier : answer.tiers()) {
    if (tier.last_error().empty()) continue;
    absl::StrAppend(&text, "\nLast error of ", TierText(tier.tier()), " on shard ", tier.shard(),
                    ": ", Printable(tier.last_error()), "\n");
  }
  return absl::StrCat(text, "\n", TiersSummary(answer), Missing(answer));
}

std::string SequencesTable(const v1::ListSequencesResponse& answer, const View& view) {
  const bool more = !answer.next_page_token().empty();
  if (answer.sequences().empty() && !more) {
    return absl::StrCat("No sequences.\n", Missing(answer));
  }
  TextTable table({{"HANDLE"},
                   {"TENANT"},
                   {"MODEL"},
                   {"TOKENS", Align::kRight},
                   {"DURABLE", Align::kRight},
                   {"STATE"},
                   {"HOST", Align::kRight},
                   {"DISK", Align::kRight},
                   {"LAST USED", Align::kRight}});
  uint64_t tokens = 0;
  uint64_t host = 0;
  uint64_t disk = 0;
  for (const v1::SequenceSummary& sequence : answer.sequences()) {
    tokens = SaturatingAdd(tokens, sequence.length());
    host = SaturatingAdd(host, sequence.host_bytes());
    disk = SaturatingAdd(disk, sequence.disk_bytes());
    table.AddRow({Printable(sequence.handle()), Printable(sequence.tenant()),
                  Elide(Printable(sequence.model_fingerprint()), kModelWidth),
                  FormatCount(sequence.length()), FormatCount(sequence.durable_length()),
                  StateText(sequence), FormatBytes(sequence.host_bytes()),
                  FormatBytes(sequence.disk_bytes()),
                  Age(sequence.has_last_used(), sequence.last_used(), view)});
  }
  std::string problems;
  for (const v1::SequenceSummary& sequence : answer.sequences()) {
    if (sequence.problem().empty()) continue;
    absl::StrAppend(&problems, Printable(sequence.handle()), ": ", Printable(sequence.problem()),
                    "\n");
  }
  // Rows that forks share count for each of them, so that the bytes can exceed what tiers hold.
  return absl::StrCat(table.Render(), "\n", FormatCountOf(answer.sequences_size(), "sequence"),
                      ", ", FormatCountOf(tokens, "token"), ", ", FormatBytes(host), " host, ",
                      FormatBytes(disk), " disk", more ? "; there are more (--limit)\n" : "\n",
                      problems, Missing(answer));
}

std::string SequenceTable(const v1::DescribeSequenceResponse& answer, const View& view) {
  std::string text = Facts(answer, view);
  for (const TextTable& table : {LayerRows(answer), SegmentRows(answer)}) {
    const std::string rows = table.Render();
    if (!rows.empty()) absl::StrAppend(&text, "\n", rows);
  }
  return absl::StrCat(text, "\n", ResidencySummary(answer));
}

}  // namespace terrace::terracectl
