#include "services/terracectl/text_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace terrace::terracectl {
namespace {

TEST(Printable, EscapesWhatCouldMoveTheCursor) {
  EXPECT_EQ(Printable(""), "-");
  EXPECT_EQ(Printable("plain ~text~"), "plain ~text~");
  EXPECT_EQ(Printable("a\nb\tc\r"), "a\\x0ab\\x09c\\x0d");
  EXPECT_EQ(Printable("\x1b[2J"), "\\x1b[2J");
  EXPECT_EQ(Printable("\x7f"), "\\x7f");
  EXPECT_EQ(Printable(std::string("\0", 1)), "\\x00");
  // U+009B, the one-character form of ESC [.
  EXPECT_EQ(Printable("\xc2\x9b"), "\\xc2\\x9b");
  // U+202E turns the rest of the line around.
  EXPECT_EQ(Printable("\xe2\x80\xae"), "\\xe2\\x80\\xae");
}

TEST(Printable, KeepsUtf8AndEscapesWhatIsNot) {
  EXPECT_EQ(Printable("\xc2\xa0"), "\xc2\xa0");
  EXPECT_EQ(Printable("Zürich"), "Zürich");
  EXPECT_EQ(Printable("模型"), "模型");
  EXPECT_EQ(Printable("\xf0\x9f\x98\x80"), "\xf0\x9f\x98\x80");
  EXPECT_EQ(Printable("\xf4\x8f\xbf\xbf"), "\xf4\x8f\xbf\xbf");
  EXPECT_EQ(Printable("\x80"), "\\x80");
  EXPECT_EQ(Printable("\xc3"), "\\xc3");
  EXPECT_EQ(Printable("\xc3("), "\\xc3(");
  // Overlong '/', a surrogate, and one past U+10FFFF.
  EXPECT_EQ(Printable("\xc0\xaf"), "\\xc0\\xaf");
  EXPECT_EQ(Printable("\xe0\x80\xaf"), "\\xe0\\x80\\xaf");
  EXPECT_EQ(Printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");
  EXPECT_EQ(Printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");
}

TEST(Elide, KeepsBothEndsAndNeverSplitsACharacter) {
  EXPECT_EQ(Elide("", 5), "");
  EXPECT_EQ(Elide("abcde", 5), "abcde");
  EXPECT_EQ(Elide("abcdef", 5), "a...f");
  EXPECT_EQ(Elide("abcdef", 6), "abcdef");
  EXPECT_EQ(Elide("abcdefg", 6), "ab...g");
  EXPECT_EQ(Elide("äöüÄÖÜ", 5), "ä...Ü");
  for (size_t width = 5; width < 12; ++width) {
    EXPECT_EQ(DisplayWidth(Elide("äöü-ÄÖÜ-ñÑ-çÇ", width)), width);
  }
}

TEST(TextTable, IsEmptyWithoutRows) {
  EXPECT_EQ(TextTable({{"A"}, {"B"}}).Render(), "");
  EXPECT_EQ(TextTable({{"A"}, {"B"}}).Width(), 0u);
}

TEST(TextTable, AlignsByCharactersAndLeavesNoTrailingSpace) {
  TextTable table({{"NAME"}, {"N", Align::kRight}, {"NOTE"}});
  table.AddRow({"Zürich", "7", ""});
  table.AddRow({"Ur", "12345", "old"});
  EXPECT_EQ(table.Render(),
            "NAME        N  NOTE\n"
            "Zürich      7\n"
            "Ur      12345  old\n");
  EXPECT_EQ(table.Width(), 19u);
}

TEST(TextTable, GivesAnEmptyColumnNoRoom) {
  TextTable table({{"A"}, {""}, {"B"}});
  table.AddRow({"1", "", "2"});
  EXPECT_EQ(table.Render(), "A  B\n1  2\n");
}

}  // namespace
}  // namespace terrace::terracectl
