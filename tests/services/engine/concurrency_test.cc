// One writer, and beside it readers, forks, flushes, parks and reports on one engine that evicts.
//
// The writer appends the rows of one seed, cuts some off and appends the same again, so that an
// answer at a position is always the same bits, or that the position is not there.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::SequenceInfo;
using engine::StepResult;

constexpr uint64_t kSeed = 1;
constexpr int kBlock = 16;
constexpr int64_t kLength = 300;
constexpr int kOperations = 150;

class ConcurrencyTest : public ::testing::Test {
 protected:
  ConcurrencyTest() {
    engine::EmbeddedOptions options = DiskOptions(folder_);
    options.block_tokens = kBlock;
    options.index_tokens = 4 * kBlock;
    options.compute_threads = 3;
    options.store.reader_threads = 2;
    options.store.host_bytes = uint64_t{1} << 20;
    options.store.durability = kvstore::Durability::kAsync;
    engine_ = OpenEngine(options);
    geometry_.head_dim = 64;
    // What every position answers, from an engine of its own.
    engine::EmbeddedOptions in_memory = MemoryOptions();
    in_memory.block_tokens = kBlock;
    const auto judge = OpenEngine(in_memory);
    const SequenceInfo info = *judge->Create({}, Spec(geometry_));
    EXPECT_OK(AppendSeed(*judge, info, kSeed, 0, kLength));
    for (const attention::Policy& policy : policies_) {
      expected_.emplace_back();
      for (int64_t position = 0; position < kLength; ++position) {
        expected_.back().push_back(
            RunOne(*judge, 0, ReadStep(info, kSeed, 0, position, 1, policy)).output);
      }
    }
  }

  // OK with the right bits, or not there.
  bool Check(const SequenceInfo& info, int64_t position, size_t policy) {
    const StepResult result =
        RunOne(*engine_, 0, ReadStep(info, kSeed, 0, position, 1, policies_[policy]));
    if (absl::IsOutOfRange(result.status)) return false;
    EXPECT_OK(result.status);
    EXPECT_EQ(result.output, expected_[policy][position]) << "position " << position;
    return true;
  }

  void Write(const SequenceInfo& info) {
    std::mt19937_64 random(7);
    int64_t length = 0;
    for (int i = 0; i < kOperations; ++i) {
      if (random() % 10 == 0 || length >= kLength - 8) {
        length = static_cast<int64_t>(random() % (length + 1));
        ASSERT_OK(engine_->Truncate({}, info.handle, info.writer_epoch, length));
      }
      const int64_t end = length + 1 + static_cast<int64_t>(random() % 8);
      ASSERT_OK(AppendSeed(*engine_, info, kSeed, length, end));
      length = end;
      // Its own rows are there.
      ASSERT_TRUE(Check(info, length - 1, i % policies_.size()));
    }
  }

  void Read(const SequenceInfo& info, uint64_t seed) {
    std::mt19937_64 random(seed);
    while (!written_) {
      const int64_t length = std::max<int64_t>(1, engine_->Get({}, info.handle)->length);
      Check(info, static_cast<int64_t>(random() % length), random() % policies_.size());
    }
  }

  void Fork(const SequenceInfo& info) {
    std::mt19937_64 random(9);
    while (!written_) {
      const int64_t length = engine_->Get({}, info.handle)->length;
      if (length == 0) continue;
      const int64_t position = 1 + static_cast<int64_t>(random() % length);
      const absl::StatusOr<SequenceInfo> child = engine_->Fork({}, info.handle, position, "");
      if (absl::IsOutOfRange(child.status())) continue;  // a truncate was faster
      ASSERT_OK(child);
      ASSERT_OK(AppendSeed(*engine_, *child, kSeed + 1, position, position + 20));
      ASSERT_TRUE(Check(*child, position - 1, random() % policies_.size()));
      ASSERT_OK(engine_->Delete({}, child->handle));
    }
  }

  void Report(const SequenceInfo& info) {
    while (!written_) {
      ASSERT_OK(engine_->Describe(info.handle));
      ASSERT_OK(engine_->ListSequences("", "", 10));
      ASSERT_OK(engine_->ListTiers());
      ASSERT_OK(engine_->Flush({}, info.handle));
    }
  }

  void Park(const SequenceInfo& info) {
    while (!written_) ASSERT_OK(engine_->Park({}, info.handle));
  }

  const std::vector<attention::Policy> policies_ = {
      attention::DensePolicy(), Sparq(16, 20, 4, 1),
      Sparq(16, 20, 1, 0, attention::ValueMean::kResidual)};
  engine::Geometry geometry_ = SmallGeometry();
  TempFolder folder_;
  std::unique_ptr<engine::EmbeddedEngine> engine_;
  // [policies][positions].
  std::vector<std::vector<std::vector<float>>> expected_;
  std::atomic<bool> written_ = false;
};

// I4: steps that score by the index and read the rows of blocks while they seal.
TEST_F(ConcurrencyTest, ReadersAndForksSeeWholeRowsWhateverTheWriterDoes) {
  const SequenceInfo info = *engine_->Create({}, Spec(geometry_));
  std::vector<std::thread> others;
  for (uint64_t seed = 1; seed <= 2; ++seed) others.emplace_back([&, seed] { Read(info, seed); });
  others.emplace_back([&] { Fork(info); });
  others.emplace_back([&] { Report(info); });
  others.emplace_back([&] { Park(info); });
  Write(info);
  written_ = true;
  for (std::thread& other : others) other.join();
  EXPECT_EQ(engine_->sequence_count(), 1u);
}

// I7: of several clients that append the same rows, each is told that they stand.
TEST_F(ConcurrencyTest, WritersOfTheSameBytesAllSucceed) {
  const SequenceInfo info = *engine_->Create({}, Spec(geometry_));
  std::vector<std::thread> writers;
  for (int w = 0; w < 3; ++w) {
    writers.emplace_back([&, w] { EXPECT_OK(AppendSeed(*engine_, info, kSeed, 0, 200, 7 + w)); });
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(engine_->Get({}, info.handle)->length, 200);
  for (size_t policy = 0; policy < policies_.size(); ++policy) {
    EXPECT_TRUE(Check(info, 199, policy));
  }
}

// A delete amid steps: each of them answers rightly or that there is no such sequence.
TEST_F(ConcurrencyTest, ADeleteMayComeAtAnyTime) {
  for (int round = 0; round < 10; ++round) {
    const SequenceInfo info = *engine_->Create({}, Spec(geometry_));
    ASSERT_OK(AppendSeed(*engine_, info, kSeed, 0, 100));
    std::vector<std::thread> readers;
    for (int r = 0; r < 3; ++r) {
      readers.emplace_back([&, r] {
        for (int64_t position = 0; position < 100; ++position) {
          const StepResult result =
              RunOne(*engine_, 0, ReadStep(info, kSeed, 0, position, 1, policies_[r]));
          if (absl::IsNotFound(result.status)) return;
          ASSERT_OK(result.status);
          ASSERT_EQ(result.output, expected_[r][position]);
        }
      });
    }
    EXPECT_OK(engine_->Delete({}, info.handle));
    for (std::thread& reader : readers) reader.join();
    EXPECT_THAT(engine_->Get({}, info.handle), StatusIs(absl::StatusCode::kNotFound));
  }
}

// Sweeps, parks, cuts and forks amid steps of sequences whose time is up as soon as they rest: a
// step answers rightly, or that there is no such sequence or position.
TEST_F(ConcurrencyTest, ASequenceMayExpireAtAnyTime) {
  engine::SequenceSpec spec = Spec(geometry_);
  spec.idle_ttl = absl::Milliseconds(2);
  spec.retention = absl::Milliseconds(1);
  std::atomic<int> answered = 0;
  std::atomic<int> expired = 0;
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  const auto goes_on = [&] { return answered < 200 || expired < 20; };
  const auto live = [&](uint64_t seed) {
    std::mt19937_64 random(seed);
    while (goes_on() && absl::Now() < deadline && !HasFailure()) {
      const absl::StatusOr<SequenceInfo> created = engine_->Create({}, spec);
      ASSERT_OK(created);
      const SequenceInfo& info = *created;
      // What it tells, steps tell too.
      absl::Status gone = AppendSeed(*engine_, info, kSeed, 0, 60);
      for (int i = 0; i < 20 && !absl::IsNotFound(gone); ++i) {
        const auto position = static_cast<int64_t>(random() % 60);
        const size_t policy = random() % policies_.size();
        if (i % 5 == 1) engine_->Park({}, info.handle).IgnoreError();
        if (i % 5 == 2) engine_->Fork({}, info.handle, position, "").IgnoreError();
        if (i == 15) engine_->Truncate({}, info.handle, info.writer_epoch, 33).IgnoreError();
        const StepResult result =
            RunOne(*engine_, 0, ReadStep(info, kSeed, 0, position, 1, policies_[policy]));
        gone = result.status;
        if (!gone.ok()) continue;
        ++answered;
        EXPECT_EQ(result.output, expected_[policy][position]) << "position " << position;
      }
      // So small a memory may be full of open blocks.
      EXPECT_TRUE(gone.ok() || absl::IsNotFound(gone) || absl::IsOutOfRange(gone) ||
                  absl::IsResourceExhausted(gone))
          << gone;
      expired += absl::IsNotFound(gone) ? 1 : 0;
    }
  };
  std::vector<std::thread> threads;
  for (uint64_t seed = 1; seed <= 3; ++seed) threads.emplace_back(live, seed);
  while (goes_on() && absl::Now() < deadline && !HasFailure()) engine_->Sweep();
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(goes_on());
}

}  // namespace
}  // namespace terrace::testing
