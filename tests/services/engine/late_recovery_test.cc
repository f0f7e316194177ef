// Sequences that a start could not bring back come back when somebody asks for them, as the start
// found them, whatever went on meanwhile.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/synchronization/notification.h"
#include "kvstore/block_store_impl.h"
#include "tests/services/engine/prefix_client.h"

namespace terrace::testing {
namespace {

using engine::SequenceInfo;

constexpr uint64_t kSeed = 1;
constexpr uint64_t kOtherSeed = 2;

// Until a thread waits for something.
void AwaitAsleep(const std::atomic<pid_t>& thread) {
  while (true) {
    std::ifstream stat("/proc/self/task/" + std::to_string(thread) + "/stat");
    const std::string text{std::istreambuf_iterator<char>(stat), {}};
    const size_t name_end = text.rfind(')');
    if (name_end != std::string::npos && text.substr(name_end + 2, 1) == "S") return;
    std::this_thread::yield();
  }
}

class LateRecoveryTest : public ::testing::Test {
 protected:
  LateRecoveryTest() {
    options_.sweep_interval = absl::ZeroDuration();
    options_.clock = [this] { return now_; };
    Open();
  }

  // As after a kill: what is not on disk is lost.
  void Open() {
    engine_.reset();
    auto store = kvstore::OpenBlockStore(options_.store, [this](kvstore::DiskOperation operation) {
      if (operation != kvstore::DiskOperation::kWrite) return absl::OkStatus();
      if (const auto hook = std::exchange(on_write_, nullptr)) hook();
      return writes_fail_ ? absl::UnavailableError("injected") : absl::OkStatus();
    });
    ASSERT_OK(store);
    engine_ = engine::EmbeddedEngine::OpenOn(options_, *std::move(store));
  }
  void OpenWithoutWrites() {
    writes_fail_ = true;
    Open();
    writes_fail_ = false;
  }
  // A child goes on at 640, in a parent that has 404 tokens on disk.
  void LoseWhatAChildGoesOnFrom() {
    parent_ = *engine_->Create({}, Spec(SmallGeometry()));
    ASSERT_OK(AppendSeed(*engine_, parent_, kSeed, 0, 404));
    ASSERT_OK(engine_->Flush({}, parent_.handle));
    ASSERT_OK(AppendSeed(*engine_, parent_, kSeed, 404, 650));
    child_ = *engine_->Fork({}, parent_.handle, 640, "");
    ASSERT_OK(AppendSeed(*engine_, child_, kSeed, 640, 700));
    OpenWithoutWrites();
    ASSERT_EQ(engine_->damaged().size(), 1u);
    ASSERT_EQ(engine_->Get({}, parent_.handle)->length, 404);
  }
  void ExpectRowsOfSeed(const SequenceInfo& sequence, int64_t length) {
    ASSERT_EQ(engine_->Get({}, sequence.handle)->length, length);
    const SequenceInfo expected = *engine_->Create({}, Spec(SmallGeometry()));
    ASSERT_OK(AppendSeed(*engine_, expected, kSeed, 0, length));
    ExpectSameBits(*engine_, expected, *engine_, sequence);
    ASSERT_OK(engine_->Delete({}, expected.handle));
  }

  const TempFolder folder_;
  engine::EmbeddedOptions options_ = DiskOptions(folder_);
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  std::atomic<bool> writes_fail_ = false;
  // Called by the next write.
  std::function<void()> on_write_;
  std::unique_ptr<engine::EmbeddedEngine> engine_;
  SequenceInfo parent_;
  SequenceInfo child_;
};

TEST_F(LateRecoveryTest, AtTheStartItHasTheTailOfItsParentToo) {
  LoseWhatAChildGoesOnFrom();
  Open();
  EXPECT_TRUE(engine_->damaged().empty());
  ExpectRowsOfSeed(child_, 404);
}

TEST_F(LateRecoveryTest, LaterItHasNoRowThatItsParentMayHaveWrittenAnew) {
  LoseWhatAChildGoesOnFrom();
  ASSERT_OK(AppendSeed(*engine_, parent_, kOtherSeed, 404, 650));
  ASSERT_OK(engine_->Flush({}, parent_.handle));
  ExpectRowsOfSeed(child_, 384);
  EXPECT_TRUE(engine_->damaged().empty());
  ASSERT_OK(AppendSeed(*engine_, child_, kSeed, 384, 500));
  ExpectRowsOfSeed(child_, 500);
  EXPECT_EQ(engine_->Get({}, parent_.handle)->length, 650);
  ASSERT_OK(engine_->Flush({}, child_.handle));
  Open();
  ExpectRowsOfSeed(child_, 500);
}

TEST_F(LateRecoveryTest, NorOneThatItsParentHasCut) {
  LoseWhatAChildGoesOnFrom();
  ASSERT_OK(engine_->Truncate({}, parent_.handle, parent_.writer_epoch, 100));
  ASSERT_OK(AppendSeed(*engine_, parent_, kOtherSeed, 100, 650));
  ASSERT_OK(engine_->Flush({}, parent_.handle));
  ExpectRowsOfSeed(child_, 384);
}

TEST_F(LateRecoveryTest, ListsSayWhatIsSetAsideAndWhy) {
  LoseWhatAChildGoesOnFrom();
  const auto of_tenant = engine_->ListSequences("default", "", 10);
  ASSERT_OK(of_tenant);
  ASSERT_EQ(of_tenant->size(), 2u);
  EXPECT_LT((*of_tenant)[0].handle, (*of_tenant)[1].handle);
  EXPECT_EQ(engine_->ListSequences("other", "", 10)->size(), 0u);
  // One to a page, in the same order.
  std::string after;
  for (const engine::SequenceSummary& expected : *of_tenant) {
    const auto page = engine_->ListSequences("", after, 1);
    ASSERT_OK(page);
    ASSERT_EQ(page->size(), 1u);
    const engine::SequenceSummary& summary = page->at(0);
    after = summary.handle;
    EXPECT_EQ(summary.handle, expected.handle);
    EXPECT_EQ(summary.tenant, "default");
    EXPECT_EQ(summary.model_fingerprint, "model");
    EXPECT_EQ(summary.created, now_);
    if (summary.handle == child_.handle) {
      EXPECT_THAT(summary.problem, ::testing::HasSubstr("injected"));
    } else {
      EXPECT_EQ(summary.problem, "");
    }
  }
  EXPECT_TRUE(engine_->ListSequences("", after, 1)->empty());
  EXPECT_THAT(engine_->Describe(child_.handle),
              StatusIs(absl::StatusCode::kUnavailable, ::testing::HasSubstr("injected")));
  ASSERT_OK(engine_->Get({}, child_.handle));
  const auto all = engine_->ListSequences("", "", 10);
  ASSERT_OK(all);
  EXPECT_EQ(all->size(), 2u);
  for (const engine::SequenceSummary& summary : *all) EXPECT_EQ(summary.problem, "");
  EXPECT_OK(engine_->Describe(child_.handle));
}

TEST_F(LateRecoveryTest, ADeleteThatWaitsForItEndsIt) {
  LoseWhatAChildGoesOnFrom();
  absl::Notification recovering;
  absl::Notification go_on;
  on_write_ = [&] {
    recovering.Notify();
    go_on.WaitForNotification();
  };
  // It finds the sequence, or that it is deleted by now.
  std::thread reader([&] {
    EXPECT_THAT(engine_->Get({}, child_.handle).status().code(),
                ::testing::AnyOf(absl::StatusCode::kOk, absl::StatusCode::kNotFound));
  });
  recovering.WaitForNotification();
  std::atomic<pid_t> tid = 0;
  std::thread deleter([&] {
    tid = gettid();
    EXPECT_OK(engine_->Delete({}, child_.handle));
  });
  AwaitAsleep(tid);
  go_on.Notify();
  reader.join();
  deleter.join();
  EXPECT_THAT(engine_->Get({}, child_.handle), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(engine_->sequence_count(), 1u);
  EXPECT_TRUE(engine_->damaged().empty());
  Open();
  EXPECT_EQ(engine_->sequence_count(), 1u);
}

TEST_F(LateRecoveryTest, WhatWasOnlyRetainedIsDeletedWhenThatIsPossible) {
  const Ids ids = TextIds(1, 650);
  parent_ = *engine_->Create({}, Spec(SmallGeometry()));
  ASSERT_OK(AppendIds(*engine_, parent_, kSeed, 0, Ids(ids.begin(), ids.begin() + 404)));
  ASSERT_OK(engine_->Flush({}, parent_.handle));
  ASSERT_OK(AppendIds(*engine_, parent_, kSeed, 404, ids));
  const auto lease = engine_->LookupPrefix({}, QueryOf(ids), absl::Minutes(1));
  ASSERT_OK(lease);
  ASSERT_EQ(lease->tokens, 640);
  OpenWithoutWrites();
  EXPECT_EQ(engine_->damaged().size(), 1u);
  // It is no sequence to anybody.
  EXPECT_THAT(engine_->Get({}, lease->lease), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(engine_->Delete({}, lease->lease), StatusIs(absl::StatusCode::kNotFound));
  writes_fail_ = true;
  engine_->Sweep();
  EXPECT_EQ(engine_->damaged().size(), 1u);
  writes_fail_ = false;
  engine_->Sweep();
  EXPECT_TRUE(engine_->damaged().empty());
  EXPECT_EQ(FoundTokens(*engine_, ids), 384);
  Open();
  EXPECT_EQ(engine_->sequence_count(), 1u);
}

}  // namespace
}  // namespace terrace::testing
