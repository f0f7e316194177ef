// How many sequences there may be, in all and of one tenant, what gives way for a new one, and how
// long a call waits that has no deadline.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "services/engine/error.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/prefix_client.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::Caller;
using engine::SequenceInfo;

constexpr int64_t kMax = 8;

TEST(WaitEndTest, OnlyWhoSetNoDeadlineGetsOne) {
  const absl::Time now = absl::FromUnixSeconds(1'000'000);
  EXPECT_EQ(engine::WaitEnd(absl::InfiniteFuture(), absl::Seconds(30), now),
            now + absl::Seconds(30));
  for (const absl::Time set : {absl::InfinitePast(), now, now + absl::Hours(1)}) {
    EXPECT_EQ(engine::WaitEnd(set, absl::Seconds(30), now), set);
  }
  const absl::Time before = absl::Now();
  const absl::Time end = Caller().wait_end();
  EXPECT_GE(end, before + engine::kCallPatience);
  EXPECT_LE(end, absl::Now() + engine::kCallPatience);
  EXPECT_EQ(Caller{.deadline = now}.wait_end(), now);
}

class SequenceLimitTest : public ::testing::Test {
 protected:
  void Open() {
    engine_.reset();
    engine::EmbeddedOptions options = DiskOptions(folder_);
    options.sweep_interval = sweep_interval_;
    options.limits.max_sequences = kMax;
    options.limits.max_tenant_sequences = tenant_max_;
    options.clock = [this] { return absl::FromUnixMicros(now_us_.load()); };
    engine_ = OpenEngine(options);
  }
  absl::StatusOr<SequenceInfo> Create(const Caller& caller = {}, absl::Duration retention = {},
                                      absl::Duration ttl = {}) {
    engine::SequenceSpec spec = Spec(SmallGeometry());
    spec.retention = retention;
    spec.idle_ttl = ttl;
    return engine_->Create(caller, spec);
  }

  TempFolder folder_;
  absl::Duration sweep_interval_ = absl::ZeroDuration();
  int64_t tenant_max_ = kMax;
  std::atomic<int64_t> now_us_ = 1'000'000'000'000;
  std::unique_ptr<engine::EmbeddedEngine> engine_;
};

TEST_F(SequenceLimitTest, ATenantGetsItsShareAndOthersTheirs) {
  tenant_max_ = 3;
  Open();
  std::vector<SequenceInfo> open;
  for (int64_t i = 0; i < tenant_max_; ++i) {
    const absl::StatusOr<SequenceInfo> info = Create({}, absl::Hours(1));
    ASSERT_OK(info) << i;
    open.push_back(*info);
  }
  const absl::Status refused = Create().status();
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_NE(refused.message().find("3 open ones of this tenant, expected at most 3"),
            std::string::npos)
      << refused;
  EXPECT_EQ(engine::DetailOf(refused)->reason, "LIMIT_EXCEEDED");
  EXPECT_THAT(engine_->Fork({}, open[0].handle, 0, ""),
              StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_OK(Create({.tenant = "other"}));
  // Neither a lease nor one that is closed and retained is open.
  ASSERT_OK(AppendIds(*engine_, open[0], 1, 0, TextIds(1, 64)));
  ASSERT_OK(engine_->Flush({}, open[0].handle));
  EXPECT_OK(engine_->LookupPrefix({}, QueryOf(TextIds(1, 64)), absl::Minutes(1)));
  ASSERT_OK(engine_->Delete({}, open[0].handle));
  EXPECT_OK(Create());
  EXPECT_THAT(Create(), StatusIs(absl::StatusCode::kResourceExhausted));
  // What a start brings back counts.
  Open();
  EXPECT_THAT(Create(), StatusIs(absl::StatusCode::kResourceExhausted));
  ASSERT_OK(engine_->Delete({}, open[1].handle));
  EXPECT_OK(Create());
}

TEST_F(SequenceLimitTest, RetainedOnesGiveWayToANewOne) {
  Open();
  for (uint32_t text = 1; text <= kMax; ++text) {
    const absl::StatusOr<SequenceInfo> info = Create({}, absl::Hours(1));
    ASSERT_OK(info);
    ASSERT_OK(AppendIds(*engine_, *info, 1, 0, TextIds(text, 64)));
    ASSERT_OK(engine_->Delete({}, info->handle));
    now_us_ += 1;
  }
  ASSERT_EQ(engine_->sequence_count(), static_cast<size_t>(kMax));
  for (int64_t i = 0; i < kMax; ++i) ASSERT_OK(Create()) << i;
  EXPECT_EQ(FoundTokens(*engine_, TextIds(kMax, 64)), 0);
  EXPECT_THAT(Create({.tenant = "other"}), StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(SequenceLimitTest, AtTheLimitASweepComesSoonForWhatIsIdle) {
  // Not by itself within the test's time.
  sweep_interval_ = absl::Hours(1);
  Open();
  for (int64_t i = 0; i < kMax; ++i) ASSERT_OK(Create({}, {}, absl::Seconds(10)));
  EXPECT_THAT(Create(), StatusIs(absl::StatusCode::kResourceExhausted));
  now_us_ += absl::ToInt64Microseconds(absl::Seconds(10));
  const absl::Time patience = absl::Now() + absl::Seconds(30);
  absl::Status status;
  do {
    status = Create().status();
    std::this_thread::yield();
  } while (!status.ok() && absl::Now() < patience);
  EXPECT_OK(status);
}

TEST_F(SequenceLimitTest, ATenantMayHaveAtLeastOne) {
  engine::EmbeddedOptions options = MemoryOptions();
  for (const int64_t max : {-1, 0, 1}) {
    options.limits.max_tenant_sequences = max;
    EXPECT_EQ(options.Validate().ok(), max == 1) << max;
  }
}

}  // namespace
}  // namespace terrace::testing
