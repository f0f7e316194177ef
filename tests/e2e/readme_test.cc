// The README's C++ program, cut out of it when the build is configured, does what it says.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/e2e/cluster.h"

namespace terrace::testing {
namespace {

using ::testing::HasSubstr;

TEST(ReadmeTest, ExampleAttendsOverAHundredTokens) {
  Cluster cluster;
  ASSERT_TRUE(cluster.serving());
  const Outcome example = RunProgram("readme_example", {cluster.worker().address()});
  EXPECT_EQ(example.exit_code, 0) << example.err;
  EXPECT_THAT(example.out, HasSubstr("position 0: captured mass 1\n"));
  EXPECT_THAT(example.out, HasSubstr("position 31: captured mass 1\n"));
  EXPECT_THAT(example.out, HasSubstr("position 99: captured mass 0."));
}

}  // namespace
}  // namespace terrace::testing
