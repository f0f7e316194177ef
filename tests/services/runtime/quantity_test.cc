#include "services/runtime/quantity.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/status_matchers.h"

namespace terrace::runtime {
namespace {

using ::terrace::testing::IsOk;
using ::terrace::testing::StatusIs;
using ::testing::HasSubstr;

TEST(ParseSizeTest, TakesBytesAndBinaryUnits) {
  struct Case {
    const char* text;
    uint64_t bytes;
  };
  for (const Case& c :
       {Case{"0", 0}, Case{"1", 1}, Case{"4096", 4096}, Case{"1KiB", 1024},
        Case{"20MiB", 20ull << 20}, Case{"4GiB", 4ull << 30}, Case{"3TiB", 3ull << 40},
        Case{"0TiB", 0}, Case{"16777215TiB", 16777215ull << 40},
        Case{"18446744073709551615", UINT64_MAX}}) {
    const absl::StatusOr<uint64_t> bytes = ParseSize(c.text);
    ASSERT_OK(bytes) << c.text;
    EXPECT_EQ(*bytes, c.bytes);
  }
}

TEST(ParseSizeTest, RefusesAllElseAndSaysWhatItGot) {
  for (const char* text : {"", "KiB", "-1", "1.5GiB", "1GB", "1gib", "1KiBKiB", "x", "1 2",
                           "16777216TiB", "18446744073709551616", "99999999999999999999GiB"}) {
    EXPECT_THAT(ParseSize(text), StatusIs(absl::StatusCode::kInvalidArgument,
                                          HasSubstr(std::string("got \"") + text + "\"")));
  }
}

TEST(FormatSizeTest, IsTheInverse) {
  for (const uint64_t bytes :
       {uint64_t{0}, uint64_t{1}, uint64_t{1023}, uint64_t{1024}, uint64_t{1025}, uint64_t{1} << 20,
        uint64_t{3} << 29, uint64_t{5} << 40, UINT64_MAX}) {
    const absl::StatusOr<uint64_t> back = ParseSize(FormatSize(bytes));
    ASSERT_OK(back);
    EXPECT_EQ(*back, bytes);
  }
  EXPECT_EQ(FormatSize(1536), "1536");
  EXPECT_EQ(FormatSize(1536 << 10), "1536KiB");
  EXPECT_EQ(FormatSize(uint64_t{2} << 40), "2TiB");
}

TEST(ParseDurationTest, TakesWhatPeopleWrite) {
  struct Case {
    const char* text;
    absl::Duration duration;
  };
  for (const Case& c : {Case{"0", absl::ZeroDuration()}, Case{"500ms", absl::Milliseconds(500)},
                        Case{"10s", absl::Seconds(10)}, Case{"1m30s", absl::Seconds(90)},
                        Case{"1.5h", absl::Minutes(90)}}) {
    const absl::StatusOr<absl::Duration> duration = ParseDuration(c.text);
    ASSERT_OK(duration) << c.text;
    EXPECT_EQ(*duration, c.duration);
  }
  for (const char* text : {"", "10", "-1s", "s", "1 s", "inf", "x"}) {
    EXPECT_THAT(ParseDuration(text), StatusIs(absl::StatusCode::kInvalidArgument)) << text;
  }
}

}  // namespace
}  // namespace terrace::runtime
