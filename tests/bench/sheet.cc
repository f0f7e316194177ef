#include "tests/bench/sheet.h"

#include <algorithm>
#include <fstream>
#include <iostream>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace terrace::bench {
namespace {

std::string CpuModel() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    return std::string(absl::StripAsciiWhitespace(line.substr(line.find(':') + 1)));
  }
  return "unknown CPU";
}

// Processes that ran or wanted to, over the last minute.
double Load() {
  double load = 0;
  std::ifstream("/proc/loadavg") >> load;
  return load;
}

std::string Text(const nlohmann::ordered_json& value) {
  if (value.is_null()) return "-";
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_number_float()) return value.dump();
  return FormatFigure(value.get<double>());
}

}  // namespace

std::string FormatFigure(double figure) {
  return absl::StrFormat("%.*f",
                         figure >= 100   ? 0
                         : figure >= 10  ? 1
                         : figure >= 0.1 ? 2
                                         : 4,
                         figure);
}

std::string Sheet::Table() const {
  std::vector<std::vector<std::string>> lines(1);
  std::vector<bool> is_text;
  for (const auto& column : rows_.front().items()) {
    lines[0].push_back(column.key());
    is_text.push_back(column.value().is_string());
  }
  for (const SheetRow& row : rows_) {
    std::vector<std::string>& cells = lines.emplace_back();
    for (const auto& column : row.items()) cells.push_back(Text(column.value()));
  }
  std::vector<size_t> widths(is_text.size());
  for (const std::vector<std::string>& cells : lines) {
    for (size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], cells[i].size());
  }
  std::string table;
  for (const std::vector<std::string>& cells : lines) {
    std::string line;
    for (size_t i = 0; i < cells.size(); ++i) {
      const std::string space(widths[i] - cells[i].size(), ' ');
      absl::StrAppend(&line, i == 0 ? "" : "  ", is_text[i] ? cells[i] + space : space + cells[i]);
    }
    absl::StrAppend(&table, absl::string_view(absl::StripTrailingAsciiWhitespace(line)), "\n");
  }
  return table;
}

void Sheet::Print(const BenchArgs& args) const {
  if (args.json) {
    const nlohmann::ordered_json all = {
        {"cpu", CpuModel()},   {"cores", std::thread::hardware_concurrency()},
        {"load", Load()},      {"runs", args.runs},
        {"quick", args.quick}, {"rows", rows_}};
    std::cout << all.dump(2) << std::endl;
    return;
  }
  std::cout << (empty() ? "nothing measured\n" : Table())
            << absl::StrFormat("%s, %u cores, load %.1f; medians of %d interleaved runs%s\n",
                               CpuModel(), std::thread::hardware_concurrency(), Load(), args.runs,
                               args.quick ? "; --quick: no measurement" : "")
            << std::flush;
}

}  // namespace terrace::bench
