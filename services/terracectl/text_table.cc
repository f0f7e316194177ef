#include "services/terracectl/text_table.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"

namespace terrace::terracectl {
namespace {

constexpr char kGap[] = "  ";

bool IsContinuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

// Bytes of the printable character at the front of `text`; 0 if it is a control character or not
// UTF-8. Requires: text is not empty.
size_t PrintableLength(absl::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return lead >= 0x20 && lead != 0x7F ? 1 : 0;
  const size_t length = lead >= 0xF0 && lead <= 0xF4   ? 4
                        : lead >= 0xE0 && lead <= 0xEF ? 3
                        : lead >= 0xC2 && lead <= 0xDF ? 2
                                                       : 0;
  if (length == 0 || text.size() < length) return 0;
  uint32_t code = lead & (0xFFu >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    if (!IsContinuation(text[i])) return 0;
    code = (code << 6) | (static_cast<unsigned char>(text[i]) & 0x3F);
  }
  constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
  const bool control = code >= 0x80 && code <= 0x9F;
  // Line and paragraph separators, and the marks that reverse the order of what follows.
  const bool unruly = code == 0x2028 || code == 0x2029 || (code >= 0x202A && code <= 0x202E) ||
                      (code >= 0x2066 && code <= 0x2069);
  const bool valid = code >= kLeast[length] && code <= 0x10FFFF && !surrogate;
  return valid && !control && !unruly ? length : 0;
}

// The first byte of the character that is `count` characters from the start.
size_t OffsetOf(absl::string_view text, size_t count) {
  size_t offset = 0;
  while (offset < text.size()) {
    if (!IsContinuation(text[offset]) && count-- == 0) break;
    ++offset;
  }
  return offset;
}

}  // namespace

std::string Printable(absl::string_view text) {
  if (text.empty()) return "-";
  std::string out;
  while (!text.empty()) {
    const size_t length = PrintableLength(text);
    if (length == 0) {
      absl::StrAppendFormat(&out, "\\x%02x", static_cast<unsigned char>(text[0]));
      text.remove_prefix(1);
    } else {
      absl::StrAppend(&out, text.substr(0, length));
      text.remove_prefix(length);
    }
  }
  return out;
}

size_t DisplayWidth(absl::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return !IsContinuation(c); });
}

std::string Elide(absl::string_view text, size_t width) {
  const size_t have = DisplayWidth(text);
  if (have <= width) return std::string(text);
  const size_t tail = (width - 3) / 2;
  const size_t head = width - 3 - tail;
  return absl::StrCat(text.substr(0, OffsetOf(text, head)), "...",
                      text.substr(OffsetOf(text, have - tail)));
}

TextTable::TextTable(std::vector<Column> columns) : columns_(std::move(columns)) {}

void TextTable::AddRow(std::vector<std::string> cells) {
  if (cells.size() != columns_.size()) std::abort();
  rows_.push_back(std::move(cells));
}

std::vector<size_t> TextTable::ColumnWidths() const {
  std::vector<size_t> widths;
  for (size_t i = 0; i < columns_.size(); ++i) {
    size_t width = DisplayWidth(columns_[i].header);
    for (const auto& row : rows_) width = std::max(width, DisplayWidth(row[i]));
    widths.push_back(width);
  }
  return widths;
}

std::string TextTable::Render() const {
  if (rows_.empty()) return "";
  const std::vector<size_t> widths = ColumnWidths();
  std::vector<std::string> headers;
  for (const Column& column : columns_) headers.push_back(column.header);

  std::string out;
  const auto append_line = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (size_t i = 0; i < cells.size(); ++i) {
      if (widths[i] == 0) continue;
      if (!line.empty()) line += kGap;
      const std::string padding(widths[i] - DisplayWidth(cells[i]), ' ');
      line += columns_[i].align == Align::kRight ? padding + cells[i] : cells[i] + padding;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  };
  append_line(headers);
  for (const auto& row : rows_) append_line(row);
  return out;
}

size_t TextTable::Width() const {
  size_t width = 0;
  for (const absl::string_view line : absl::StrSplit(Render(), '\n')) {
    width = std::max(width, DisplayWidth(line));
  }
  return width;
}

}  // namespace terrace::terracectl
