// I5 under a crowd: 64 sequences of two geometries on as many threads, memory for a part of them,
// and a disk that is written over ten times. Budgets hold at every moment, every call comes back,
// and no answer has wrong bits.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::Caller;
using engine::SequenceInfo;
using engine::StepResult;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kHostBytes = 24 * kMiB;
constexpr uint64_t kDiskBytes = 64 * kMiB;
constexpr uint64_t kTurnover = 10;
// What kvstore/DESIGN.md allows beside the memory budget: scratch, buffers, block cache, the rest.
constexpr uint64_t kOverheadBytes = (64 + 3 * 1 + 4 + 48) * kMiB;
constexpr int kSequences = 64;
constexpr uint64_t kSeeds = 4;
constexpr int64_t kLengthMax = 224;
// Far beyond what a call should take, and short enough to see that one hangs.
constexpr absl::Duration kPatience = absl::Seconds(5);
constexpr absl::Duration kSlack = absl::Seconds(20);
constexpr absl::Duration kRunMax = absl::Seconds(120);

// Physical bytes of a folder's files.
uint64_t DiskUse(const std::string& folder) {
  uint64_t bytes = 0;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder, ignored)) {
    struct stat status = {};
    // It may just have been deleted.
    if (stat(entry.path().c_str(), &status) == 0) bytes += uint64_t{512} * status.st_blocks;
  }
  return bytes;
}

uint64_t ResidentBytes() {
  uint64_t size = 0;
  uint64_t resident = 0;
  std::ifstream("/proc/self/statm") >> size >> resident;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// What sequences of one geometry and seed answer, by policy and position.
using Answers = std::array<std::vector<std::vector<float>>, 2>;

const attention::Policy& PolicyAt(size_t i) {
  static const std::array<attention::Policy, 2> policies = {
      attention::Policy(attention::DensePolicy()),
      Sparq(16, 24, 4, 1, attention::ValueMean::kResidual)};
  return policies[i];
}

class BudgetTest : public ::testing::Test {
 protected:
  BudgetTest() {
    options_.block_tokens = 16;
    options_.index_tokens = 64;
    options_.compute_threads = 2;
    options_.store.host_bytes = kHostBytes;
    options_.store.disk_bytes = kDiskBytes;
    options_.store.durability = kvstore::Durability::kAsync;
    geometries_[0].head_dim = 64;
    geometries_[1].layers = 3;
    geometries_[1].query_heads = 3;
    geometries_[1].kv_heads = 1;
    geometries_[1].head_dim = 128;
    for (size_t g = 0; g < geometries_.size(); ++g) {
      for (uint64_t seed = 0; seed < kSeeds; ++seed) Learn(g, seed);
    }
  }

  void Learn(size_t geometry, uint64_t seed) {
    engine::EmbeddedOptions in_memory = MemoryOptions();
    in_memory.block_tokens = options_.block_tokens;
    const auto judge = OpenEngine(in_memory);
    const SequenceInfo info = *judge->Create({}, Spec(geometries_[geometry]));
    EXPECT_OK(AppendSeed(*judge, info, seed, 0, kLengthMax));
    for (size_t policy = 0; policy < 2; ++policy) {
      for (int64_t position = 0; position < kLengthMax; ++position) {
        answers_[geometry][seed][policy].push_back(
            RunOne(*judge, 0, ReadStep(info, seed, 0, position, 1, PolicyAt(policy))).output);
      }
    }
  }

  // One thread's sequence, and what is known of it.
  struct Owner {
    std::mt19937_64 random;
    size_t geometry = 0;
    uint64_t seed = 0;
    SequenceInfo info = {};
    int64_t length = 0;

    int64_t Pick(int64_t below) { return static_cast<int64_t>(random() % below); }
  };

  // Counts it, and expects that it came back in time with an error that a full store may give.
  bool Settle(const absl::Status& status, absl::Time begun) {
    EXPECT_LT(absl::Now(), begun + kPatience + kSlack);
    ++calls_;
    if (status.ok()) return true;
    ++refused_;
    EXPECT_TRUE(absl::IsResourceExhausted(status) || absl::IsDeadlineExceeded(status)) << status;
    return false;
  }
  template <typename Call>
  bool Try(const Call& call) {
    const absl::Time begun = absl::Now();
    const Caller caller = {.deadline = begun + kPatience};
    return Settle(call(caller), begun);
  }

  bool Check(Owner& owner, const SequenceInfo& info, int64_t length) {
    if (length == 0) return true;
    const int64_t position = owner.Pick(length);
    const size_t policy = owner.Pick(2);
    StepResult result;
    const bool ran = Try([&](const Caller& caller) {
      result = RunOne(*engine_, 0, ReadStep(info, owner.seed, 0, position, 1, PolicyAt(policy)),
                      {.strict = true}, caller);
      return result.status;
    });
    if (ran) {
      EXPECT_EQ(result.output, answers_[owner.geometry][owner.seed][policy][position])
          << "wrong bits at " << position << " of " << length;
    }
    return ran;
  }
  // All layers up to the same length, or what stands of it.
  int64_t Append(Owner& owner, const SequenceInfo& info, int64_t from, int64_t count) {
    const int64_t end = std::min(kLengthMax, from + count);
    for (int layer = 0; layer < info.spec.geometry.layers && end > from; ++layer) {
      const KvRows rows = MakeRows(info.spec.geometry, owner.seed, layer, from, end - from);
      const bool done = Try([&](const Caller& caller) {
        return AppendRowsOf(*engine_, info, layer, from, rows, caller).status();
      });
      if (!done) return from;
    }
    return std::max(from, end);
  }
  void Fork(Owner& owner) {
    absl::StatusOr<SequenceInfo> child;
    const int64_t position = owner.Pick(owner.length + 1);
    if (!Try([&](const Caller& caller) {
          child = engine_->Fork(caller, owner.info.handle, position, "");
          return child.status();
        })) {
      return;
    }
    Check(owner, *child, Append(owner, *child, position, 1 + owner.Pick(40)));
    Try([&](const Caller& caller) { return engine_->Delete(caller, child->handle); });
  }
  void Replace(Owner& owner) {
    if (!owner.info.handle.empty() &&
        !Try([&](const Caller& caller) { return engine_->Delete(caller, owner.info.handle); })) {
      return;
    }
    owner.info = SequenceInfo();
    owner.length = 0;
    owner.seed = owner.Pick(kSeeds);
    Try([&](const Caller& caller) {
      absl::StatusOr<SequenceInfo> info =
          engine_->Create(caller, Spec(geometries_[owner.geometry]));
      if (info.ok()) owner.info = *info;
      return info.status();
    });
  }
  void Truncate(Owner& owner) {
    const int64_t length = owner.Pick(owner.length + 1);
    if (Try([&](const Caller& caller) {
          return engine_->Truncate(caller, owner.info.handle, owner.info.writer_epoch, length)
              .status();
        })) {
      owner.length = length;
    }
  }
  void Act(Owner& owner) {
    if (owner.info.handle.empty()) return Replace(owner);
    switch (owner.Pick(16)) {
      case 0:
        return Replace(owner);
      case 1:
        return Fork(owner);
      case 2:
        return Truncate(owner);
      case 3:
        Try([&](const Caller& caller) {
          return engine_->Park(caller, owner.info.handle).status();
        });
        break;
      case 4:
      case 5:
      case 6:
      case 7:
        owner.length = Append(owner, owner.info, owner.length, 1 + owner.Pick(64));
        break;
      default:
        break;
    }
    Check(owner, owner.info, owner.length);
    if (owner.length == kLengthMax) Replace(owner);
  }

  void ExpectWithinBudgets(uint64_t resident_before) {
    const auto tiers = engine_->ListTiers();
    for (const engine::TierReport& tier : *tiers) {
      EXPECT_LE(tier.stats.used_bytes, tier.stats.capacity_bytes);
    }
    uint64_t disk = DiskUse(options_.store.disk_path);
    // Files that give way to others while they are counted may count twice.
    if (disk > kDiskBytes) disk = DiskUse(options_.store.disk_path);
    EXPECT_LE(disk, kDiskBytes);
    const uint64_t resident = ResidentBytes();
    if (resident > resident_before) {
      resident_most_ = std::max(resident_most_, resident - resident_before);
    }
    disk_most_ = std::max(disk_most_, disk);
  }
  uint64_t written_bytes() const { return (*engine_->ListTiers())[1].stats.written_bytes; }

  const TempFolder folder_;
  engine::EmbeddedOptions options_ = DiskOptions(folder_);
  std::array<engine::Geometry, 2> geometries_ = {SmallGeometry(), SmallGeometry()};
  std::array<std::array<Answers, kSeeds>, 2> answers_;
  std::unique_ptr<engine::EmbeddedEngine> engine_;
  std::atomic<uint64_t> calls_ = 0;
  std::atomic<uint64_t> refused_ = 0;
  uint64_t resident_most_ = 0;
  uint64_t disk_most_ = 0;
};

TEST_F(BudgetTest, HoldUnderSixtyFourSequencesThroughTenTurnovers) {
  const uint64_t resident_before = ResidentBytes();
  engine_ = OpenEngine(options_);
  std::atomic<bool> enough = false;
  std::vector<std::thread> owners;
  for (uint64_t i = 0; i < kSequences; ++i) {
    owners.emplace_back([&, i] {
      Owner owner = {.random = std::mt19937_64(i), .geometry = i % 2};
      while (!enough && !HasFailure()) Act(owner);
    });
  }
  const absl::Time start = absl::Now();
  while (written_bytes() < kTurnover * kDiskBytes && absl::Now() < start + kRunMax &&
         !HasFailure()) {
    ExpectWithinBudgets(resident_before);
    absl::SleepFor(absl::Milliseconds(1));
  }
  enough = true;
  for (std::thread& owner : owners) owner.join();
  ExpectWithinBudgets(resident_before);
  EXPECT_GE(written_bytes(), kTurnover * kDiskBytes);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LE(resident_most_, kHostBytes + kOverheadBytes);
#endif
  EXPECT_LT(refused_, calls_ / 4) << "the load should fit";
  std::printf(
      "%.0f s, %llu calls, %llu refused, %llu MiB written, disk at most %llu MiB of %llu, "
      "process %llu MiB above its start with %llu MiB of memory\n",
      absl::ToDoubleSeconds(absl::Now() - start), static_cast<unsigned long long>(calls_.load()),
      static_cast<unsigned long long>(refused_.load()),
      static_cast<unsigned long long>(written_bytes() / kMiB),
      static_cast<unsigned long long>(disk_most_ / kMiB),
      static_cast<unsigned long long>(kDiskBytes / kMiB),
      static_cast<unsigned long long>(resident_most_ / kMiB),
      static_cast<unsigned long long>(kHostBytes / kMiB));
}

}  // namespace
}  // namespace terrace::testing
