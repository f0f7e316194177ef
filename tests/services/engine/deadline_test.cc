// A verb whose deadline comes while it waits has changed nothing; reads wait for no writer.
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "kvstore/block_store_impl.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::Caller;
using engine::SequenceInfo;

constexpr uint64_t kSeed = 1;
constexpr int64_t kLength = 100;

absl::StatusCode CodeOf(const absl::Status& status) { return status.code(); }
template <typename T>
absl::StatusCode CodeOf(const absl::StatusOr<T>& result) {
  return result.status().code();
}

// An engine whose disk writes can be made to hang.
class DeadlineTest : public ::testing::Test {
 protected:
  struct Verb {
    const char* name;
    std::function<absl::StatusCode(const Caller&)> call;
  };

  DeadlineTest() {
    options_.block_tokens = 16;
    options_.index_tokens = 16;
    Open();
    info_ = *engine_->Create({}, Spec(SmallGeometry()));
    EXPECT_OK(AppendSeed(*engine_, info_, kSeed, 0, kLength));
  }

  void Open() {
    engine_.reset();
    auto store = kvstore::OpenBlockStore(options_.store, [this](kvstore::DiskOperation operation) {
      if (operation == kvstore::DiskOperation::kRead && reads_hang_) go_on_.WaitForNotification();
      if (operation == kvstore::DiskOperation::kWrite && hangs_.exchange(false)) {
        hanging_.Notify();
        go_on_.WaitForNotification();
      }
      return absl::OkStatus();
    });
    EXPECT_OK(store);
    engine_ = engine::EmbeddedEngine::OpenOn(options_, *std::move(store));
  }

  absl::StatusCode Append(const Caller& caller) {
    const KvRows rows = MakeRows(info_.spec.geometry, kSeed, 0, kLength, 1);
    const HostTensor k = MakeTensor(rows.k, 1, 2, 16);
    const HostTensor v = MakeTensor(rows.v, 1, 2, 16);
    return CodeOf(engine_->Append(caller, {.handle = info_.handle,
                                           .writer_epoch = info_.writer_epoch,
                                           .layer = 0,
                                           .position = kLength,
                                           .k = k.view(),
                                           .v = v.view()}));
  }
  absl::StatusCode Run(const Caller& caller, const Step& step) {
    const engine::StepResult result = RunOne(*engine_, 0, step, {}, caller);
    EXPECT_TRUE(result.status.ok() || !result.appended);
    return result.status.code();
  }

  // What waits for a flush: they write, or need the sequence to themselves.
  std::vector<Verb> Writers() {
    return {
        {"append", [this](const Caller& caller) { return Append(caller); }},
        {"step",
         [this](const Caller& caller) {
           return Run(caller, AppendStep(info_, kSeed, 0, kLength, 1, Sparq(4, 8)));
         }},
        {"truncate",
         [this](const Caller& caller) {
           return CodeOf(engine_->Truncate(caller, info_.handle, info_.writer_epoch, 80));
         }},
        {"resume",
         [this](const Caller& caller) {
           return CodeOf(engine_->Resume(caller, info_.handle, ""));
         }},
        {"flush",
         [this](const Caller& caller) { return CodeOf(engine_->Flush(caller, info_.handle)); }},
        {"park",
         [this](const Caller& caller) { return CodeOf(engine_->Park(caller, info_.handle)); }},
        {"delete",
         [this](const Caller& caller) { return CodeOf(engine_->Delete(caller, info_.handle)); }},
    };
  }
  std::vector<Verb> Readers() {
    return {
        {"get",
         [this](const Caller& caller) { return CodeOf(engine_->Get(caller, info_.handle)); }},
        {"dense step",
         [this](const Caller& caller) {
           return Run(caller, ReadStep(info_, kSeed, 0, kLength - 1, 1, attention::DensePolicy()));
         }},
        {"sparse step",
         [this](const Caller& caller) {
           return Run(caller, ReadStep(info_, kSeed, 0, kLength - 1, 1, Sparq(4, 8)));
         }},
        {"read rows",
         [this](const Caller& caller) {
           const uint32_t position = kLength - 1;
           return CodeOf(engine_->ReadRows(caller, info_.handle, 0, 0, {&position, 1}));
         }},
    };
  }

  // A flush that hangs in its first write, with the sequence's writer in its hands.
  std::thread HangingFlush() {
    hangs_ = true;
    std::thread flush([this] { EXPECT_OK(engine_->Flush({}, info_.handle)); });
    hanging_.WaitForNotification();
    return flush;
  }

  void ExpectUnchanged() {
    const absl::StatusOr<SequenceInfo> info = engine_->Get({}, info_.handle);
    ASSERT_OK(info);
    EXPECT_EQ(info->layer_lengths, (std::vector<int64_t>{kLength, kLength}));
    EXPECT_EQ(info->writer_epoch, info_.writer_epoch);
    EXPECT_EQ(engine_->sequence_count(), 1u);
  }

  const TempFolder folder_;
  engine::EmbeddedOptions options_ = DiskOptions(folder_);
  // The next write does.
  std::atomic<bool> hangs_ = false;
  std::atomic<bool> reads_hang_ = false;
  absl::Notification hanging_;
  absl::Notification go_on_;
  std::unique_ptr<engine::EmbeddedEngine> engine_;
  SequenceInfo info_;
};

TEST_F(DeadlineTest, ADeadlineThatHasPassedChangesNothing) {
  const Caller late = {.deadline = absl::Now() - absl::Seconds(1)};
  std::vector<Verb> verbs = Writers();
  for (Verb& verb : Readers()) verbs.push_back(std::move(verb));
  verbs.push_back({"fork", [this](const Caller& caller) {
                     return CodeOf(engine_->Fork(caller, info_.handle, 10, ""));
                   }});
  for (const Verb& verb : verbs) {
    EXPECT_EQ(verb.call(late), absl::StatusCode::kDeadlineExceeded) << verb.name;
    ExpectUnchanged();
  }
}

TEST_F(DeadlineTest, AWriterWaitsForAnotherNoLongerThanItsDeadline) {
  std::thread flush = HangingFlush();
  for (const Verb& verb : Writers()) {
    EXPECT_EQ(verb.call({.deadline = absl::Now() + absl::Milliseconds(5)}),
              absl::StatusCode::kDeadlineExceeded)
        << verb.name;
    ExpectUnchanged();
  }
  go_on_.Notify();
  flush.join();
  for (const Verb& verb : Writers()) EXPECT_EQ(verb.call({}), absl::StatusCode::kOk) << verb.name;
}

// A truncate that cuts durable rows holds the sequence alone while it writes.
TEST_F(DeadlineTest, ListsForPeopleWaitForASequenceNoLongerThanTheirDeadline) {
  ASSERT_OK(engine_->Flush({}, info_.handle));
  ASSERT_OK(engine_->Create({}, Spec(SmallGeometry())));
  hangs_ = true;
  std::thread truncate(
      [&] { EXPECT_OK(engine_->Truncate({}, info_.handle, info_.writer_epoch, 40)); });
  hanging_.WaitForNotification();
  const absl::Time soon = absl::Now() + absl::Milliseconds(5);
  EXPECT_THAT(engine_->Describe(info_.handle, soon), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(engine_->ListSequences("", "", 10, {.deadline = soon}),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  // One that has the time lists what is known of it.
  const auto listed = engine_->ListSequences("", "", 10);
  ASSERT_OK(listed);
  ASSERT_EQ(listed->size(), 2u);
  for (const engine::SequenceSummary& summary : *listed) {
    const bool busy = summary.handle == info_.handle;
    EXPECT_EQ(!summary.problem.empty(), busy) << summary.problem;
    EXPECT_EQ(summary.length, busy ? kLength : 0);
  }
  go_on_.Notify();
  truncate.join();
  EXPECT_OK(engine_->Describe(info_.handle, absl::Now() + absl::Seconds(30)));
}

TEST_F(DeadlineTest, ReadersWaitForNoWriter) {
  std::thread flush = HangingFlush();
  for (const Verb& verb : Readers()) EXPECT_EQ(verb.call({}), absl::StatusCode::kOk) << verb.name;
  go_on_.Notify();
  flush.join();
}

// Rows that come too late are left out of a dense step too, unless it is strict.
TEST_F(DeadlineTest, DenseLeavesOutRowsThatMissTheirDeadline) {
  ASSERT_OK(engine_->Flush({}, info_.handle));
  Open();
  Step step = ReadStep(info_, kSeed, 0, 15, 2, attention::DensePolicy());
  Step first = step;
  first.q = MakeTensor(MakeQueries(SmallGeometry(), kSeed, 0, 15, 1), 1, 4, 16);
  // Block 0 is in memory from here on, and block 1 is not.
  const engine::StepResult whole = RunOne(*engine_, 0, first);
  ASSERT_OK(whole.status);
  reads_hang_ = true;
  const auto soon = [] { return absl::Now() + absl::Milliseconds(5); };
  const engine::StepResult result = RunOne(*engine_, 0, step, {.row_deadline = soon()});
  ASSERT_OK(result.status);
  EXPECT_EQ(result.account.missed_rows, 2u) << "row 16, of two KV heads";
  EXPECT_EQ(result.account.missed_mass, 1.0F);
  EXPECT_EQ(result.account.alpha, (std::vector<float>{1, 1, 1, 1, 0, 0, 0, 0}));
  EXPECT_EQ(std::vector<float>(result.output.begin(), result.output.begin() + 64), whole.output);
  EXPECT_EQ(result.selections[2].positions, whole.selections[0].positions);
  EXPECT_THAT(RunOne(*engine_, 0, step, {.row_deadline = soon(), .strict = true}).status,
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(RunOne(*engine_, 0, step, {.deadline = soon()}).status,
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  go_on_.Notify();
  EXPECT_EQ(RunOne(*engine_, 0, step).account.missed_rows, 0u);
}

// A step whose own deadline passes is late, whatever it has by then.
TEST_F(DeadlineTest, ASparseStepIsLateRatherThanShortOfRows) {
  constexpr int64_t kPosition = 64;
  ASSERT_OK(engine_->Flush({}, info_.handle));
  Open();
  // The score index is in memory from here on, and the rows of block 0 are not.
  ASSERT_OK(RunOne(*engine_, 0, ReadStep(info_, kSeed, 0, kPosition, 1, Sparq(4, 1))).status);
  reads_hang_ = true;
  const Step step = ReadStep(info_, kSeed, 0, kPosition, 1, Sparq(4, 20));
  const auto soon = [] { return absl::Now() + absl::Milliseconds(5); };
  const engine::StepResult result = RunOne(*engine_, 0, step, {.row_deadline = soon()});
  ASSERT_OK(result.status);
  EXPECT_GT(result.account.missed_rows, 0u);
  EXPECT_THAT(RunOne(*engine_, 0, step, {.deadline = soon()}).status,
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  go_on_.Notify();
  EXPECT_EQ(RunOne(*engine_, 0, step).account.missed_rows, 0u);
}

TEST_F(DeadlineTest, ADiskThatHangsForOneSequenceKeepsNobodyBeyondHisDeadline) {
  const SequenceInfo other = *engine_->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendSeed(*engine_, other, kSeed, 0, 100));
  const std::vector<Verb> verbs = {
      {"create", [&](const Caller& caller) { return CodeOf(engine_->Create(caller, other.spec)); }},
      {"fork",
       [&](const Caller& caller) { return CodeOf(engine_->Fork(caller, other.handle, 10, "")); }},
      {"truncate",
       [&](const Caller& caller) {
         return CodeOf(engine_->Truncate(caller, other.handle, other.writer_epoch, 10));
       }},
      {"resume",
       [&](const Caller& caller) { return CodeOf(engine_->Resume(caller, other.handle, "")); }},
      {"delete",
       [&](const Caller& caller) { return CodeOf(engine_->Delete(caller, other.handle)); }},
  };
  std::thread flush = HangingFlush();
  for (const Verb& verb : verbs) {
    EXPECT_EQ(verb.call({.deadline = absl::Now() + absl::Milliseconds(5)}),
              absl::StatusCode::kDeadlineExceeded)
        << verb.name;
    const absl::StatusOr<SequenceInfo> info = engine_->Get({}, other.handle);
    ASSERT_OK(info);
    EXPECT_EQ(info->layer_lengths, (std::vector<int64_t>{100, 100}));
    EXPECT_EQ(info->writer_epoch, other.writer_epoch);
    EXPECT_EQ(engine_->sequence_count(), 2u);
  }
  go_on_.Notify();
  flush.join();
  for (const Verb& verb : verbs) EXPECT_EQ(verb.call({}), absl::StatusCode::kOk) << verb.name;
}

}  // namespace
}  // namespace terrace::testing
