#include "services/policy_check/stored_case.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "tests/services/policy_check/vector_case.h"
#include "tests/status_matchers.h"

namespace terrace::policy_check {
namespace {

using attention::Dtype;
using attention::IndexFormat;
using attention::reference::Problem;
using ::terrace::testing::CaseShape;
using ::terrace::testing::IsOk;
using ::terrace::testing::RandomCase;
using ::terrace::testing::StatusIs;
using ::testing::HasSubstr;

Problem RandomProblem(const CaseShape& shape, uint64_t seed) {
  return RandomCase(shape, attention::DensePolicy(), seed).problem;
}

double LargestError(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

TEST(StoredCase, RoundsToTheStorageDtypeAndNoFurther) {
  const Problem given = RandomProblem({}, 1);
  double previous = 0;
  for (const auto& [dtype, relative] :
       {std::pair{Dtype::kFloat32, 0x1p-24}, std::pair{Dtype::kFloat16, 0x1p-11},
        std::pair{Dtype::kBFloat16, 0x1p-8}}) {
    const auto stored = Store(given, {.storage = dtype});
    ASSERT_OK(stored);
    // Normal numbers up to 8.
    const double error = std::max(LargestError(stored->problem.k, given.k),
                                  LargestError(stored->problem.v, given.v));
    EXPECT_LE(error, 8 * relative);
    EXPECT_GT(error, 4 * previous) << "a coarser type errs more";
    previous = error;
    EXPECT_LE(LargestError(stored->problem.q, given.q), 8 * 0x1p-24) << "q is not stored";
  }
}

TEST(StoredCase, AnExactIndexHoldsTheStoredKeys) {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16}) {
    const auto stored = Store(RandomProblem({}, 2), {.storage = dtype});
    ASSERT_OK(stored);
    EXPECT_EQ(stored->index_k, stored->problem.k);
  }
}

TEST(StoredCase, AnInt8IndexErrsInFullBlocksOnly) {
  const CaseShape shape = {.kv_heads = 1, .tokens = 37};
  const auto stored = Store(RandomProblem(shape, 3), {.index = IndexFormat::kInt8});
  ASSERT_OK(stored);
  const auto full = static_cast<std::ptrdiff_t>(32) * shape.head_dim;
  const auto compare = [&stored](std::ptrdiff_t first, std::ptrdiff_t end) {
    const auto cut = [first, end](const std::vector<double>& values) {
      return std::vector<double>(values.begin() + first, values.begin() + end);
    };
    return LargestError(cut(stored->index_k), cut(stored->problem.k));
  };
  EXPECT_GT(compare(0, full), 1e-3);
  EXPECT_LT(compare(0, full), 2e-2);
  EXPECT_EQ(compare(full, static_cast<std::ptrdiff_t>(stored->problem.k.size())), 0);
}

TEST(StoredCase, CountsFullBlocksAtTheirEdges) {
  for (const int tokens : {1, 15, 16, 17, 63, 64, 65}) {
    const CaseShape shape = {.tokens = tokens};
    const auto stored = Store(RandomProblem(shape, 4), {.index = IndexFormat::kInt8});
    ASSERT_OK(stored);
    ASSERT_EQ(stored->pieces.size(), 2U);
    EXPECT_EQ(stored->pieces[1].size(), tokens / 16 * stored->layout().piece_bytes());
    EXPECT_EQ(stored->rows[1].size(), tokens * stored->shape().row_bytes());
  }
}

TEST(StoredCase, ConstantAndFarAwayKeysKeepWithinTheIndexError) {
  Problem given = RandomProblem({}, 5);
  for (size_t i = 0; i < given.k.size(); ++i) {
    const size_t channel = i % given.head_dim;
    if (channel == 0) given.k[i] = 0.1;
    if (channel == 1) given.k[i] = -1000 + given.k[i];
    if (channel == 2) given.k[i] *= 1e-6;
  }
  EXPECT_OK(Store(given, {.index = IndexFormat::kInt8}));
}

TEST(StoredCase, NamesAnElementThatTheFormatCannotHold) {
  const struct {
    Dtype dtype;
    double value;
    bool fits;
  } cases[] = {{Dtype::kFloat16, 65504, true},  {Dtype::kFloat16, 65536, false},
               {Dtype::kFloat16, 1e-6, true},   {Dtype::kBFloat16, 65536, true},
               {Dtype::kBFloat16, 1e39, false}, {Dtype::kFloat32, 3e38, true},
               {Dtype::kFloat32, 1e39, false},  {Dtype::kFloat32, -1e39, false},
               {Dtype::kFloat32, 1e-42, true}};
  for (const auto& c : cases) {
    Problem given = RandomProblem({}, 6);
    given.v[2 * 16 + 3] = c.value;
    const auto stored = Store(given, {.storage = c.dtype});
    if (c.fits) {
      EXPECT_OK(stored) << c.value;
    } else {
      EXPECT_THAT(stored,
                  StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("v row 2, element 3: ")));
    }
  }
}

TEST(StoredCase, NamesAHeadDimensionThatTheKernelsDoNotTake) {
  const CaseShape shape = {.head_dim = 12};
  EXPECT_THAT(Store(RandomProblem(shape, 7), {}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("got 12 elements per head")));
}

}  // namespace
}  // namespace terrace::policy_check
