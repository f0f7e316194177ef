// Text for a terminal: cells that cannot harm it, and columns that line up.
#ifndef TERRACE_SERVICES_TERRACECTL_TEXT_TABLE_H_
#define TERRACE_SERVICES_TERRACECTL_TEXT_TABLE_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace terrace::terracectl {

// `text` with control characters and bytes that are not UTF-8 written as \xNN, so that what a
// client named a tenant can neither move the cursor nor break a line. "-" when empty.
std::string Printable(absl::string_view text);

// Code points of UTF-8 text: its columns, wide and combining characters aside.
size_t DisplayWidth(absl::string_view text);

// `text` if it is at most `width` columns wide, else its beginning and end with "..." between.
// Requires: width >= 5.
std::string Elide(absl::string_view text, size_t width);

enum class Align { kLeft, kRight };

// TextTable lines up rows under headers, two spaces apart. Cells are never cut nor wrapped, and
// lines carry no trailing spaces. A column without header and text takes no room. Not thread-safe.
class TextTable {
 public:
  struct Column {
    std::string header;
    Align align = Align::kLeft;
  };

  explicit TextTable(std::vector<Column> columns);

  // Requires: one cell per column, each Printable().
  void AddRow(std::vector<std::string> cells);

  // Headers and rows, a line each. Empty without rows.
  std::string Render() const;

  // Columns of the widest line.
  size_t Width() const;

 private:
  std::vector<size_t> ColumnWidths() const;

  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace terrace::terracectl

#endif  // TERRACE_SERVICES_TERRACECTL_TEXT_TABLE_H_
