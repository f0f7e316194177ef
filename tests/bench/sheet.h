// Sheet: figures in rows of named columns, for people as a table and for scripts as JSON.
#ifndef TERRACE_TESTS_BENCH_SHEET_H_
#define TERRACE_TESTS_BENCH_SHEET_H_

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "tests/bench/bench_args.h"

namespace terrace::bench {

// Names and values of one line, in order: text, numbers, or null where there is none.
using SheetRow = nlohmann::ordered_json;

// With three digits or so.
std::string FormatFigure(double figure);

class Sheet {
 public:
  // Requires: the columns of the rows before.
  void Add(SheetRow row) { rows_.push_back(std::move(row)); }
  bool empty() const { return rows_.empty(); }

  // To standard output, with the machine that it was measured on and its load now.
  void Print(const BenchArgs& args) const;

 private:
  std::string Table() const;

  std::vector<SheetRow> rows_;
};

}  // namespace terrace::bench

#endif  // TERRACE_TESTS_BENCH_SHEET_H_
