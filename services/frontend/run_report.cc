#include "services/frontend/run_report.h"

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"

namespace terrace::frontend {
namespace {

using nlohmann::ordered_json;

// Score and generation together.
PhaseResult BothPhases(const PolicyResult& result) {
  PhaseResult both = result.score;
  both.Add(result.generate);
  return both;
}

double PerStep(uint64_t value, const PhaseResult& phase) {
  return phase.steps == 0 ? 0.0 : static_cast<double>(value) / static_cast<double>(phase.steps);
}

// "12.3 KiB".
std::string BytesText(double bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(units)) {
    bytes /= 1024;
    ++unit;
  }
  return absl::StrFormat("%.*f %s", unit == 0 ? 0 : 1, bytes, units[unit]);
}

struct TableRow {
  std::string label;
  std::vector<std::string> cells;
};

// Rows of one tier, left out when no policy read from it.
void AddTierRows(const std::vector<PhaseResult>& phases, const char* name,
                 TierTotals ReadAccount::*tier, std::vector<TableRow>& rows) {
  const bool used = std::any_of(phases.begin(), phases.end(), [tier](const PhaseResult& phase) {
    const TierTotals& totals = phase.account.*tier;
    return totals.rows > 0 || totals.logical_bytes() > 0 || totals.physical_bytes > 0;
  });
  if (!used) return;
  TableRow count{absl::StrCat("rows per step, ", name), {}};
  TableRow logical{absl::StrCat("bytes per step, ", name), {}};
  TableRow physical{absl::StrCat("moved per step, ", name), {}};
  for (const PhaseResult& phase : phases) {
    const TierTotals& totals = phase.account.*tier;
    count.cells.push_back(absl::StrFormat("%.1f", PerStep(totals.rows, phase)));
    logical.cells.push_back(BytesText(PerStep(totals.logical_bytes(), phase)));
    physical.cells.push_back(BytesText(PerStep(totals.physical_bytes, phase)));
  }
  rows.push_back(std::move(count));
  rows.push_back(std::move(logical));
  rows.push_back(std::move(physical));
}

std::string Render(const std::vector<TableRow>& rows) {
  std::vector<size_t> widths;
  size_t label_width = 0;
  for (const TableRow& row : rows) {
    label_width = std::max(label_width, row.label.size());
    widths.resize(std::max(widths.size(), row.cells.size()));
    for (size_t i = 0; i < row.cells.size(); ++i) {
      widths[i] = std::max(widths[i], row.cells[i].size());
    }
  }
  std::string text;
  for (const TableRow& row : rows) {
    absl::StrAppendFormat(&text, "%-*s", static_cast<int>(label_width), row.label);
    for (size_t i = 0; i < row.cells.size(); ++i) {
      absl::StrAppendFormat(&text, "  %*s", static_cast<int>(widths[i]), row.cells[i]);
    }
    text += '\n';
  }
  return text;
}

// Length of the UTF-8 sequence that begins at `at`; 0 if there is none.
size_t Utf8Length(absl::string_view text, size_t at) {
  auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(at);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xf0 ? 4 : (lead >= 0xe0 ? 3 : 2);
  if (lead < 0xc2 || lead > 0xf4 || at + length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(at + i) & 0xc0) != 0x80) return 0;
  }
  const unsigned char second = byte(at + 1);
  const bool overlong = (lead == 0xe0 && second < 0xa0) || (lead == 0xf0 && second < 0x90);
  const bool surrogate = lead == 0xed && second >= 0xa0;
  const bool beyond = lead == 0xf4 && second >= 0x90;
  return overlong || surrogate || beyond ? 0 : length;
}

bool IsUtf8(absl::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t length = Utf8Length(text, at);
    if (length == 0) return false;
    at += length;
  }
  return true;
}

// Every byte as the character of its number.
std::string Latin1ToUtf8(absl::string_view text) {
  std::string utf8;
  for (const char c : text) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if (byte < 0x80) {
      utf8.push_back(c);
    } else {
      utf8.push_back(static_cast<char>(0xc0 | (byte >> 6)));
      utf8.push_back(static_cast<char>(0x80 | (byte & 0x3f)));
    }
  }
  return utf8;
}

ordered_json ByTier(const PhaseResult& phase,
                    const std::function<uint64_t(const TierTotals&)>& value) {
  const ReadAccount& account = phase.account;
  ordered_json tiers;
  tiers["gpu"] = PerStep(value(account.gpu), phase);
  tiers["host"] = PerStep(value(account.host), phase);
  tiers["disk"] = PerStep(value(account.disk), phase);
  tiers["total"] = PerStep(value(account.gpu) + value(account.host) + value(account.disk), phase);
  return tiers;
}

ordered_json PhaseJson(const PhaseResult& phase) {
  const ReadAccount& account = phase.account;
  ordered_json out;
  out["steps"] = phase.steps;
  out["seconds"] = absl::ToDoubleSeconds(phase.wall);
  out["tokens_per_second"] = phase.steps_per_second();
  out["rows_per_step"] = ByTier(phase, [](const TierTotals& t) { return t.rows; });
  out["bytes_per_step"] = ByTier(phase, [](const TierTotals& t) { return t.logical_bytes(); });
  out["row_bytes_per_step"] = ByTier(phase, [](const TierTotals& t) { return t.row_bytes; });
  out["index_bytes_per_step"] = ByTier(phase, [](const TierTotals& t) { return t.index_bytes; });
  out["sum_bytes_per_step"] = ByTier(phase, [](const TierTotals& t) { return t.sum_bytes; });
  out["physical_bytes_per_step"] =
      ByTier(phase, [](const TierTotals& t) { return t.physical_bytes; });
  out["dense_bytes_per_step"] = PerStep(phase.dense_bytes, phase);
  out["ratio_to_dense"] = phase.ratio_to_dense();
  out["wire_bytes_per_step"] = PerStep(account.wire_bytes, phase);
  out["service_us_per_step"] = PerStep(account.service_us, phase);
  out["alpha_mean"] = account.alpha_mean();
  out["alpha_min"] = account.alpha_min;
  out["missed_mass_mean"] = account.missed_mass_mean();
  out["missed_mass_max"] = account.missed_mass_max;
  out["missed_rows"] = account.missed_rows;
  out["rows_mode_answers"] = account.rows_mode_answers;
  out["partial_mode_answers"] = account.partial_mode_answers;
  return out;
}

ordered_json PolicyJson(const PolicyResult& result) {
  ordered_json out;
  out["policy"] = result.policy;
  out["bits_per_byte"] =
      result.bits_per_byte.has_value() ? ordered_json(*result.bits_per_byte) : ordered_json();
  // Both phases together stand at the top level: what most readers want.
  out.update(PhaseJson(BothPhases(result)));
  out["score"] = PhaseJson(result.score);
  out["generate"] = PhaseJson(result.generate);
  const bool utf8 = IsUtf8(result.text);
  out["text"] = utf8 ? result.text : Latin1ToUtf8(result.text);
  out["text_encoding"] = utf8 ? "utf-8" : "latin-1";
  out["ended_text"] = result.ended_text;
  out["handle"] = result.handle.empty() ? ordered_json() : ordered_json(result.handle);
  return out;
}

}  // namespace

std::string RunReport::Table() const {
  std::vector<PhaseResult> phases;
  for (const PolicyResult& result : policies) phases.push_back(BothPhases(result));
  std::vector<TableRow> rows;
  auto add = [&](const char* label, const auto& cell) {
    TableRow row{label, {}};
    for (size_t i = 0; i < policies.size(); ++i) row.cells.push_back(cell(policies[i], phases[i]));
    rows.push_back(std::move(row));
  };
  add("", [](const PolicyResult& r, const PhaseResult&) { return r.policy; });
  add("bits per byte", [](const PolicyResult& r, const PhaseResult&) {
    return r.bits_per_byte.has_value() ? absl::StrFormat("%.4f", *r.bits_per_byte) : "-";
  });
  add("tokens per second", [](const PolicyResult&, const PhaseResult& p) {
    return absl::StrFormat("%.1f", p.steps_per_second());
  });
  AddTierRows(phases, "gpu", &ReadAccount::gpu, rows);
  AddTierRows(phases, "host", &ReadAccount::host, rows);
  AddTierRows(phases, "disk", &ReadAccount::disk, rows);
  add("bytes per step, all", [](const PolicyResult&, const PhaseResult& p) {
    return BytesText(PerStep(p.account.logical_bytes(), p));
  });
  add("dense bytes per step", [](const PolicyResult&, const PhaseResult& p) {
    return BytesText(PerStep(p.dense_bytes, p));
  });
  add("ratio to dense", [](const PolicyResult&, const PhaseResult& p) {
    return absl::StrFormat("%.4f", p.ratio_to_dense());
  });
  add("alpha mean", [](const PolicyResult&, const PhaseResult& p) {
    return absl::StrFormat("%.4f", p.account.alpha_mean());
  });
  add("alpha minimum", [](const PolicyResult&, const PhaseResult& p) {
    return absl::StrFormat("%.4f", p.account.alpha_min);
  });
  add("missed mass, worst", [](const PolicyResult&, const PhaseResult& p) {
    return absl::StrFormat("%.4f", p.account.missed_mass_max);
  });
  return Render(rows);
}

std::string RunReport::Json() const {
  ordered_json out;
  out["model"] = model;
  out["model_fingerprint"] = fingerprint;
  out["address"] = address;
  out["service_version"] = service_version;
  out["storage"] = storage;
  out["index"] = index;
  out["mode"] = mode;
  const double seconds = absl::ToDoubleSeconds(prefill_wall);
  out["prefill"] = {
      {"tokens", prompt_tokens},
      {"chunk_tokens", chunk_tokens},
      {"seconds", seconds},
      {"tokens_per_second", seconds > 0 ? static_cast<double>(prompt_tokens) / seconds : 0.0}};
  out["handle"] = handle.empty() ? ordered_json() : ordered_json(handle);
  out["policies"] = ordered_json::array();
  for (const PolicyResult& result : policies) out["policies"].push_back(PolicyJson(result));
  // Only a path or an address could still be no UTF-8.
  return out.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace terrace::frontend
