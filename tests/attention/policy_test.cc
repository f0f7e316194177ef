#include "attention/policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>

#include "tests/status_matchers.h"

namespace terrace::attention {
namespace {

using ::terrace::testing::StatusIs;
using ::testing::HasSubstr;

constexpr int kHeadDim = 64;

SparqPolicy Valid() { return {.r = 16, .k = 128}; }

struct RangeCase {
  const char* name;
  int SparqPolicy::*parameter;
  int value;
  bool valid;
};

class PolicyRange : public ::testing::TestWithParam<RangeCase> {};

TEST_P(PolicyRange, IsEnforcedByName) {
  SparqPolicy policy = Valid();
  policy.*GetParam().parameter = GetParam().value;
  const absl::Status status = ValidatePolicy(policy, kHeadDim);
  if (GetParam().valid) {
    EXPECT_OK(status);
  } else {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument,
                                 HasSubstr(std::to_string(GetParam().value))));
  }
}

constexpr int kIntMax = std::numeric_limits<int>::max();
INSTANTIATE_TEST_SUITE_P(
    Limits, PolicyRange,
    ::testing::Values(RangeCase{"r_negative", &SparqPolicy::r, -1, false},
                      RangeCase{"r_0", &SparqPolicy::r, 0, false},
                      RangeCase{"r_1", &SparqPolicy::r, 1, true},
                      RangeCase{"r_63", &SparqPolicy::r, kHeadDim - 1, true},
                      RangeCase{"r_64", &SparqPolicy::r, kHeadDim, true},
                      RangeCase{"r_65", &SparqPolicy::r, kHeadDim + 1, false},
                      RangeCase{"k_0", &SparqPolicy::k, 0, false},
                      RangeCase{"k_1", &SparqPolicy::k, 1, true},
                      RangeCase{"k_max", &SparqPolicy::k, kIntMax, true},
                      RangeCase{"window_0", &SparqPolicy::window, 0, false},
                      RangeCase{"window_1", &SparqPolicy::window, 1, true},
                      RangeCase{"window_max", &SparqPolicy::window, kIntMax, true},
                      RangeCase{"sinks_negative", &SparqPolicy::sinks, -1, false},
                      RangeCase{"sinks_0", &SparqPolicy::sinks, 0, true},
                      RangeCase{"sinks_max", &SparqPolicy::sinks, kIntMax, true}),
    [](const auto& test) { return test.param.name; });

TEST(Policy, DenseIsAlwaysValid) { EXPECT_OK(ValidatePolicy(DensePolicy{}, kHeadDim)); }

TEST(Policy, UndefinedEnumsAreRefused) {
  SparqPolicy policy = Valid();
  policy.group_score = static_cast<GroupScore>(0);
  EXPECT_THAT(ValidatePolicy(policy, kHeadDim),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("group")));
  policy = Valid();
  policy.value_mean = static_cast<ValueMean>(4);
  EXPECT_THAT(ValidatePolicy(policy, kHeadDim),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("mean")));
}

TEST(Policy, ParsesEveryParameterInAnyOrder) {
  const auto policy =
      ParsePolicy("sparq:mean=residual,group=max_prob,sinks=4,window=32,k=128,r=16");
  ASSERT_OK(policy);
  const auto& sparq = std::get<SparqPolicy>(*policy);
  EXPECT_EQ(sparq.r, 16);
  EXPECT_EQ(sparq.k, 128);
  EXPECT_EQ(sparq.window, 32);
  EXPECT_EQ(sparq.sinks, 4);
  EXPECT_EQ(sparq.group_score, GroupScore::kMaxProb);
  EXPECT_EQ(sparq.value_mean, ValueMean::kResidual);
}

struct BadText {
  const char* text;
  const char* named;
};

class PolicyText : public ::testing::TestWithParam<BadText> {};

TEST_P(PolicyText, IsRefusedByTheWrongPart) {
  EXPECT_THAT(ParsePolicy(GetParam().text),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(GetParam().named)));
}

INSTANTIATE_TEST_SUITE_P(
    Bad, PolicyText,
    ::testing::Values(
        BadText{"", "policy"}, BadText{"Dense", "\"Dense\""}, BadText{"dense:", "\"dense:\""},
        BadText{"sparq", "\"sparq\""}, BadText{"sparq:", "\"\""}, BadText{"sparq:r=16", "k: got 0"},
        BadText{"sparq:k=16", "r: got 0"}, BadText{"sparq:r=16,k=", "k: got \"\""},
        BadText{"sparq:r=16,k=12x", "\"12x\""}, BadText{"sparq:r,k=1", "\"r\""},
        BadText{"sparq:r=99999999999,k=1", "\"99999999999\""},
        BadText{"sparq:r=1,k=1,r=2", "r: given twice"}, BadText{"sparq:r=1,k=1,", "\"\""},
        BadText{"sparq:r=1,k=1,x=1", "\"x\""}, BadText{"sparq:r=1,k=1,group=mean", "\"mean\""},
        BadText{"sparq:r=1,k=1,mean=on", "\"on\""}, BadText{"sparq:r=1,k=1,window=0", "window"},
        BadText{"sparq:r=1,k=1,sinks=-1", "sinks"}));

TEST(Policy, DefaultsAreLeftOutOfTheName) {
  EXPECT_EQ(PolicyName(DensePolicy{}), "dense");
  EXPECT_EQ(PolicyName(Valid()), "sparq:r=16,k=128");
  SparqPolicy policy = Valid();
  policy.value_mean = ValueMean::kMean;
  EXPECT_EQ(PolicyName(policy), "sparq:r=16,k=128,mean=mean");
}

TEST(Policy, NameParsesBackToThePolicy) {
  constexpr uint64_t kSeed = 7;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  std::mt19937_64 random(kSeed);
  for (int i = 0; i < 200; ++i) {
    SparqPolicy policy;
    policy.r = 1 + static_cast<int>(random() % 128);
    policy.k = 1 + static_cast<int>(random() % 4096);
    policy.window = 1 + static_cast<int>(random() % 3);
    policy.sinks = static_cast<int>(random() % 3);
    policy.group_score = static_cast<GroupScore>(1 + random() % 3);
    policy.value_mean = static_cast<ValueMean>(1 + random() % 3);
    const std::string name = PolicyName(policy);
    const auto parsed = ParsePolicy(name);
    ASSERT_OK(parsed) << name;
    const auto& back = std::get<SparqPolicy>(*parsed);
    EXPECT_EQ(std::tie(back.r, back.k, back.window, back.sinks, back.group_score, back.value_mean),
              std::tie(policy.r, policy.k, policy.window, policy.sinks, policy.group_score,
                       policy.value_mean))
        << name;
  }
}

}  // namespace
}  // namespace terrace::attention
