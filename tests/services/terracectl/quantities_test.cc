#include "services/terracectl/quantities.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <string>

namespace terrace::terracectl {
namespace {

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();
constexpr uint64_t kKi = 1024;

TEST(Quantities, BytesHaveOneDecimalAndStayBelow1024OfAUnit) {
  struct Case {
    uint64_t bytes;
    const char* text;
  };
  const Case cases[] = {
      {0, "0 B"},
      {1, "1 B"},
      {1023, "1023 B"},
      {1024, "1.0 KiB"},
      {1025, "1.0 KiB"},
      {1536, "1.5 KiB"},
      // 51 bytes are 0.0498 KiB, 52 are 0.0508.
      {1024 + 51, "1.0 KiB"},
      {1024 + 52, "1.1 KiB"},
      {kKi * kKi - 52, "1023.9 KiB"},
      {kKi * kKi - 51, "1.0 MiB"},
      {kKi * kKi - 1, "1.0 MiB"},
      {kKi * kKi, "1.0 MiB"},
      {kKi * kKi * kKi, "1.0 GiB"},
      {kKi * kKi * kKi * kKi - 1, "1.0 TiB"},
      {kKi * kKi * kKi * kKi * kKi, "1.0 PiB"},
      {uint64_t{1} << 60, "1.0 EiB"},
      {uint64_t{3} << 59, "1.5 EiB"},
      {kMax, "16.0 EiB"},
  };
  for (const Case& c : cases) EXPECT_EQ(FormatBytes(c.bytes), c.text) << c.bytes;
}

TEST(Quantities, BytesReadBackWithinHalfOfTheLastDigit) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  const std::string units = "KMGTPE";
  for (int i = 0; i < 20000; ++i) {
    const uint64_t bytes = (random() >> (random() % 54)) | 1024;
    const std::string text = FormatBytes(bytes);
    const size_t space = text.find(' ');
    const size_t unit = units.find(text[space + 1]);
    ASSERT_NE(unit, std::string::npos) << text;
    const long double size = static_cast<long double>(uint64_t{1} << (10 * (unit + 1)));
    const long double value = std::stold(text.substr(0, space));
    EXPECT_GE(value, 1.0L) << bytes;
    EXPECT_LT(value, 1024.0L) << bytes;
    EXPECT_LE(std::abs(value - bytes / size), 0.05L + 1e-9L) << bytes << " as " << text;
  }
}

TEST(Quantities, CountsAreGroupedByThousands) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1000), "1,000");
  EXPECT_EQ(FormatCount(999999), "999,999");
  EXPECT_EQ(FormatCount(1000000), "1,000,000");
  EXPECT_EQ(FormatCount(kMax), "18,446,744,073,709,551,615");
  EXPECT_EQ(FormatCountOf(0, "shard"), "0 shards");
  EXPECT_EQ(FormatCountOf(1, "shard"), "1 shard");
  EXPECT_EQ(FormatCountOf(2, "shard"), "2 shards");
}

TEST(Quantities, PercentIsEmptyOrFullOnlyWhenExact) {
  struct Case {
    uint64_t part;
    uint64_t whole;
    const char* text;
  };
  const Case cases[] = {
      {0, 0, "-"},
      {5, 0, "-"},
      {0, 1, "0.0%"},
      {1, 1, "100.0%"},
      {2, 1, ">100%"},
      {1, 2, "50.0%"},
      {1, 3, "33.3%"},
      {2, 3, "66.7%"},
      // 0.05 % is the first that rounds to a tenth.
      {1, 2001, "<0.1%"},
      {1, 2000, "0.1%"},
      {1999, 2000, ">99.9%"},
      {1998, 2000, "99.9%"},
      {1, kMax, "<0.1%"},
      {kMax - 1, kMax, ">99.9%"},
      {kMax, kMax, "100.0%"},
      {kMax / 2, kMax, "50.0%"},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(FormatPercent(c.part, c.whole), c.text) << c.part << " of " << c.whole;
  }
}

TEST(Quantities, BarShowsAnyPartAndIsFullOnlyWhenFull) {
  EXPECT_EQ(FormatBar(0, 0, 4), "");
  EXPECT_EQ(FormatBar(0, 100, 4), "[....]");
  EXPECT_EQ(FormatBar(1, 100, 4), "[#...]");
  EXPECT_EQ(FormatBar(49, 100, 4), "[#...]");
  EXPECT_EQ(FormatBar(50, 100, 4), "[##..]");
  EXPECT_EQ(FormatBar(99, 100, 4), "[###.]");
  EXPECT_EQ(FormatBar(100, 100, 4), "[####]");
  EXPECT_EQ(FormatBar(101, 100, 4), "[####]");
  EXPECT_EQ(FormatBar(kMax - 1, kMax, 4), "[###.]");
  EXPECT_EQ(FormatBar(kMax, kMax, 4), "[####]");
}

TEST(Quantities, AgeChangesUnitAtEachLimit) {
  struct Case {
    absl::Duration age;
    const char* text;
  };
  const absl::Duration day = absl::Hours(24);
  const Case cases[] = {
      {absl::ZeroDuration(), "0s ago"},
      {absl::Milliseconds(999), "0s ago"},
      {absl::Seconds(1), "1s ago"},
      {absl::Seconds(59), "59s ago"},
      {absl::Minutes(1), "1m ago"},
      {absl::Minutes(60) - absl::Nanoseconds(1), "59m ago"},
      {absl::Hours(1), "1h ago"},
      {day - absl::Seconds(1), "23h ago"},
      {day, "1d ago"},
      {365 * day - absl::Seconds(1), "364d ago"},
      {365 * day, "1y ago"},
      {800 * day, "2y ago"},
      {-absl::Milliseconds(999), "0s ago"},
      {-absl::Seconds(1), "in 1s"},
      {-absl::Hours(3), "in 3h"},
  };
  for (const Case& c : cases) EXPECT_EQ(FormatAge(c.age), c.text) << c.age;
}

TEST(Quantities, SumsStopAtTheLargestNumber) {
  EXPECT_EQ(SaturatingAdd(0, 0), 0u);
  EXPECT_EQ(SaturatingAdd(kMax - 1, 1), kMax);
  EXPECT_EQ(SaturatingAdd(kMax, 1), kMax);
  EXPECT_EQ(SaturatingAdd(kMax, kMax), kMax);
}

}  // namespace
}  // namespace terrace::terracectl
