// Values at the end of what storage and index can hold: refused when they come, never later.
#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <string>
#include <vector>

#include "services/engine/step.h"
#include "services/engine/work_pool.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using attention::Dtype;
using attention::IndexFormat;
using engine::SequenceInfo;
using ::testing::HasSubstr;

struct Case {
  Dtype storage;
  IndexFormat index;
  // Of k and of v: the largest that must be taken, and the smallest that must be refused; 0 for
  // none.
  float k_good, k_bad;
  float v_good, v_bad;
};

// Appends one block of rows whose elements all have that magnitude, with both signs.
absl::Status AppendBlock(const Case& c, float k, float v) {
  engine::Geometry geometry = SmallGeometry();
  geometry.layers = 1;
  geometry.storage = c.storage;
  const auto engine = OpenEngine(MemoryOptions());
  const SequenceInfo info = *engine->Create({}, Spec(geometry, c.index));
  KvRows rows = MakeRows(geometry, 1, 0, 0, 64);
  for (size_t i = 0; i < rows.k.size(); ++i) {
    rows.k[i] = i % 2 == 0 ? k : -k;
    rows.v[i] = i % 2 == 0 ? v : -v;
  }
  const absl::Status status = AppendRowsOf(*engine, info, 0, 0, rows).status();
  EXPECT_EQ(engine->Get({}, info.handle)->length, status.ok() ? 64 : 0);
  if (!status.ok()) return status;
  const attention::Policy policy = Sparq(4, 8, 1, 0, attention::ValueMean::kMean);
  const engine::StepResult result = RunOne(*engine, 0, ReadStep(info, 1, 0, 63, 1, policy));
  // The sum of the largest values overflows, and is not passed off as an answer.
  if (v > 1e38F) {
    EXPECT_THAT(result.status,
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("q: got query 0, head 0")));
  } else {
    EXPECT_OK(result.status);
  }
  return status;
}

// Threads share the look at a large tensor: wherever the number that is none lies, it is found.
TEST(MagnitudeTest, EachElementOfALargeTensorIsLookedAt) {
  constexpr size_t kElements = (size_t{512} << 10) / sizeof(float);
  engine::WorkPool pool(3);
  for (const size_t count : {kElements - 1, kElements, kElements + 1, 5 * kElements / 2}) {
    std::vector<float> elements(count, -1.0F);
    elements[count / 2] = 2.0F;
    const std::vector<uint32_t> shape = {static_cast<uint32_t>(count), 1, 1};
    const engine::TensorView tensor = {
        .dtype = Dtype::kFloat32,
        .shape = shape,
        .data = absl::MakeConstSpan(reinterpret_cast<const std::byte*>(elements.data()),
                                    count * sizeof(float))};
    const auto check = [&] {
      return CheckTensor("k", tensor, static_cast<int64_t>(count), 1, 1, &pool);
    };
    ASSERT_OK(check());
    EXPECT_EQ(check()->magnitude, 2.0F);
    for (const size_t at : {size_t{0}, kElements - 1, kElements, count - 1}) {
      if (at >= count) continue;
      for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
        elements[at] = bad;
        EXPECT_THAT(check().status(), StatusIs(absl::StatusCode::kInvalidArgument,
                                               HasSubstr("k: holds NaN or infinity")))
            << at << " of " << count;
      }
      elements[at] = -1.0F;
    }
  }
}

// A step whose q, k and v are finite and so large that logits or sums of values are not.
TEST(MagnitudeTest, AnAnswerThatIsNotFiniteIsNone) {
  const auto engine = OpenEngine(MemoryOptions());
  struct Size {
    float q, k, v;
  };
  for (const Size size : {Size{1e30F, 1e30F, 1}, Size{1, 1, FLT_MAX}, Size{FLT_MAX, 1, 1}}) {
    for (const attention::Policy& policy : {Sparq(16, 70), Sparq(4, 8), attention::Policy()}) {
      SCOPED_TRACE(::testing::Message() << size.q << ", " << size.k << ", " << size.v << ", "
                                        << attention::PolicyName(policy));
      const SequenceInfo info = *engine->Create({}, Spec(SmallGeometry()));
      KvRows rows = MakeRows(info.spec.geometry, 1, 0, 0, 70);
      std::fill(rows.k.begin(), rows.k.end(), size.k);
      std::fill(rows.v.begin(), rows.v.end(), size.v);
      Step step = ReadStep(info, 1, 0, 0, 70, policy);
      std::vector<float> q(size_t{70} * 4 * 16, 1.0F);
      // The last query's second head, where q is what is large.
      std::fill(q.end() - 48, q.end() - 32, size.q);
      step.q = MakeTensor(q, 70, 4, 16);
      step.k = MakeTensor(rows.k, 70, 2, 16);
      step.v = MakeTensor(rows.v, 70, 2, 16);
      const engine::StepResult result = RunOne(*engine, 0, step);
      const std::string who = size.v > 1 ? "q: got query " : "q: got query 69, head 1";
      EXPECT_THAT(result.status, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(who)));
      EXPECT_TRUE(result.appended);
      EXPECT_TRUE(result.output.empty());
      EXPECT_TRUE(result.account.alpha.empty());
      ASSERT_OK(engine->Delete({}, info.handle));
    }
  }
}

TEST(MagnitudeTest, WhatStorageOrIndexCannotHoldIsRefusedAtOnce) {
  const float small = 1.0F;
  for (const Case& c : {
           Case{Dtype::kFloat32, IndexFormat::kExact, 1e30F, 0, FLT_MAX, 0},
           Case{Dtype::kFloat32, IndexFormat::kInt8, 65504.0F, 65505.0F, FLT_MAX, 0},
           Case{Dtype::kFloat16, IndexFormat::kExact, 65504.0F, 65520.0F, 65504.0F, 65520.0F},
           Case{Dtype::kFloat16, IndexFormat::kInt8, 65504.0F, 65520.0F, 65504.0F, 65520.0F},
           // 65,504 becomes 65,536 in bf16, which no fp16 minimum reaches.
           Case{Dtype::kBFloat16, IndexFormat::kInt8, 65280.0F, 65504.0F, 3.3895e38F, FLT_MAX},
           // The largest fp32 becomes infinite in bf16.
           Case{Dtype::kBFloat16, IndexFormat::kExact, 1e30F, FLT_MAX, 3.3895e38F, FLT_MAX},
       }) {
    SCOPED_TRACE(::testing::Message()
                 << attention::DtypeName(c.storage) << ", index " << static_cast<int>(c.index));
    EXPECT_OK(AppendBlock(c, c.k_good, small));
    EXPECT_OK(AppendBlock(c, small, c.v_good));
    if (c.k_bad != 0) {
      EXPECT_THAT(AppendBlock(c, c.k_bad, small),
                  StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("k: got")));
    }
    if (c.v_bad != 0) {
      EXPECT_THAT(AppendBlock(c, small, c.v_bad),
                  StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("v: got")));
    }
  }
}

}  // namespace
}  // namespace terrace::testing
