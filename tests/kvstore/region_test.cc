#include "kvstore/region.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <thread>

#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

bool IsPresent(const Region& region, size_t offset) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  unsigned char present = 0;
  EXPECT_EQ(mincore(region.data() + offset / page * page, page, &present), 0);
  return (present & 1) != 0;
}

TEST(Region, IsZeroAndWritableToItsLastByte) {
  for (const size_t bytes :
       {size_t{1}, size_t{4096}, 2 * kMiB - 1, 2 * kMiB, 2 * kMiB + 1, 200 * kMiB}) {
    const auto region = Region::Create(bytes);
    ASSERT_OK(region);
    EXPECT_EQ((*region)->bytes(), bytes);
    for (const size_t at : {size_t{0}, bytes / 2, bytes - 1}) {
      std::byte& byte = (*region)->data()[at];
      byte |= std::byte{1};
      EXPECT_EQ(byte, std::byte{1}) << at << " of " << bytes;
    }
  }
}

TEST(Region, WhatWasWrittenStaysWhenItIsMadePresent) {
  const auto region = Region::Create(300 * kMiB);
  ASSERT_OK(region);
  for (size_t at = 0; at < 300 * kMiB; at += kMiB) (*region)->data()[at] = std::byte{7};
  (*region)->Advance(300 * kMiB);
  for (size_t at = 0; at < 300 * kMiB; at += kMiB) {
    ASSERT_EQ((*region)->data()[at], std::byte{7}) << at;
  }
}

TEST(Region, MoreThanTheSystemHasIsRefused) {
  EXPECT_THAT(Region::Create(size_t{1} << 60),
              ::terrace::testing::StatusIs(absl::StatusCode::kResourceExhausted));
}

#ifdef MADV_POPULATE_WRITE
TEST(Region, PagesArePresentAheadOfTheirUseAndNoFurther) {
  const auto region = Region::Create(1024 * kMiB);
  ASSERT_OK(region);
  const auto wait_for = [&](size_t offset) {
    while (!IsPresent(**region, offset)) std::this_thread::yield();
  };
  wait_for(128 * kMiB - 1);
  EXPECT_FALSE(IsPresent(**region, 160 * kMiB));
  (*region)->Advance(64 * kMiB);
  wait_for(192 * kMiB - 1);
  EXPECT_FALSE(IsPresent(**region, 224 * kMiB));
  // Less than before changes nothing.
  (*region)->Advance(kMiB);
  EXPECT_FALSE(IsPresent(**region, 224 * kMiB));
}
#endif

}  // namespace
}  // namespace terrace::kvstore
