// A store under a steady load for a while, with many times more sequences than its tiers hold:
// memory and hit rate stay where they are, tiers within their budgets, rows as they were sent.
//
//   e2e_soak_test                some 20 seconds
//   e2e_soak_test --minutes 30   as long as that
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "tests/e2e/cluster.h"
#include "tests/e2e/sent_sequence.h"
#include "tests/e2e/store_client.h"

namespace terrace::testing {
namespace {

absl::Duration duration = absl::Seconds(20);

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kHostBytes = 16 * kMiB;
constexpr uint64_t kDiskBytes = 64 * kMiB;
// What all sequences together must have brought, in rows alone: more than both tiers hold.
constexpr uint64_t kTurnoverBytes = kHostBytes + kDiskBytes;
constexpr int kThreads = 3;
// Together some 40 MiB of rows and index: more than memory, and less than the disk.
constexpr size_t kSequencesMax = 6;
constexpr uint64_t kTokensMax = 1000;
const Shape kShape = {.layers = 4, .query_heads = 4, .kv_heads = 2, .head_dim = 64};

// After the first third of the time, memory may grow by so much, and the hit rate fall by so much.
constexpr double kGrowthMaxMiB = 8;
constexpr double kHitRateLossMax = 0.1;

struct Work {
  std::atomic<bool> stop = false;
  std::atomic<uint64_t> bytes = 0;
  std::atomic<uint64_t> steps = 0;
  std::atomic<uint64_t> host_rows = 0;
  std::atomic<uint64_t> disk_rows = 0;
  std::atomic<uint64_t> checked_rows = 0;
};

// One client: sequences come, are used, the young ones most, and go.
class Tenant {
 public:
  Tenant(const std::string& address, uint64_t seed, Work& work)
      : client_(address), seed_(seed), random_(seed), work_(work) {}

  void Run() {
    while (!work_.stop && !::testing::Test::HasFailure()) {
      Begin();
      if (sequences_.empty()) return;
      for (int i = 0; i < 60 && !work_.stop; ++i) Use();
      if (sequences_.size() == kSequencesMax) End();
    }
  }

 private:
  uint64_t Draw(uint64_t below) { return random_() % below; }

  void Begin() {
    v1::SequenceInfo info;
    ASSERT_REPLY_OK(client_.Create(kShape, &info));
    SentSequence& sequence =
        sequences_.emplace_back(kShape, seed_ + (++created_ << 32), std::move(info));
    const uint64_t tokens = kTokensMax / 2 + Draw(kTokensMax / 2 - 100);
    sequence.Send(tokens);
    v1::AppendKvResponse response;
    const auto rows = [&](uint64_t position) { return sequence.RowsAt(position); };
    ASSERT_REPLY_OK(client_.Append(sequence.info(), rows, 0, tokens, &response));
    Brought(tokens);
  }
  void Brought(uint64_t tokens) {
    work_.bytes += tokens * kShape.layers * kShape.kv_heads * kShape.row_bytes();
  }
  void Use() {
    const bool young = Draw(10) < 7;
    const uint64_t age = Draw(young ? std::min<size_t>(3, sequences_.size()) : sequences_.size());
    SentSequence& sequence = sequences_[sequences_.size() - 1 - age];
    switch (Draw(20)) {
      case 0:
        ASSERT_REPLY_OK(client_.Flush(sequence.mutable_info()));
        return;
      case 1: {
        // A branch that goes again, as speculation does.
        v1::SequenceInfo fork;
        ASSERT_REPLY_OK(client_.Fork(sequence.info(), Draw(sequence.length() + 1), &fork));
        ASSERT_REPLY_OK(client_.Close(fork.handle()));
        return;
      }
      case 2: {
        const uint64_t length = sequence.length() - Draw(20);
        sequence.SendCut(length);
        ASSERT_REPLY_OK(client_.Truncate(sequence.mutable_info(), length));
        sequence.HearCut();
        return;
      }
      default:
        return Step(sequence, sequence.length() < kTokensMax && Draw(2) == 0);
    }
  }
  void Step(SentSequence& sequence, bool appends) {
    if (appends) sequence.Send(1);
    const uint64_t position = sequence.length() - 1;
    for (uint32_t layer = 0; layer < kShape.layers; ++layer) {
      v1::StoreStepResult result;
      ASSERT_REPLY_OK(client_.Step(sequence.info(), sequence.RowsAt(position), layer, position,
                                   appends, Sparq(16, 64, 16), &result));
      for (const v1::TierRead& read : result.account().reads()) {
        (read.tier() == v1::TIER_DISK ? work_.disk_rows : work_.host_rows) += read.rows();
      }
      ++work_.steps;
    }
    if (appends) Brought(1);
  }
  // The oldest.
  void End() {
    uint64_t rows = 0;
    if (Draw(2) == 0) sequences_.front().CheckRows(client_, &rows);
    work_.checked_rows += rows;
    ASSERT_REPLY_OK(client_.Close(sequences_.front().info().handle()));
    sequences_.pop_front();
  }

  StoreClient client_;
  const uint64_t seed_;
  std::mt19937_64 random_;
  Work& work_;
  uint64_t created_ = 0;
  std::deque<SentSequence> sequences_;
};

struct Sample {
  double seconds = 0;
  double rss_mib = 0;
  double hit_rate = 0;
};

double RssMiB(const Process& process) {
  std::ifstream status(absl::StrCat("/proc/", process.pid(), "/status"));
  std::string word;
  while (status >> word) {
    if (word != "VmRSS:") continue;
    double kib = 0;
    status >> kib;
    return kib / 1024;
  }
  return 0;
}

uint64_t FolderBytes(const std::string& path) {
  uint64_t sum = 0;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
    // A file may vanish in between.
    const uint64_t bytes = entry.file_size(error);
    if (!error) sum += bytes;
  }
  return sum;
}

// By least squares: what a second adds to memory.
double SlopePerSecond(const std::vector<Sample>& samples) {
  double mean_x = 0;
  double mean_y = 0;
  for (const Sample& each : samples) {
    mean_x += each.seconds / static_cast<double>(samples.size());
    mean_y += each.rss_mib / static_cast<double>(samples.size());
  }
  double covariance = 0;
  double variance = 0;
  for (const Sample& each : samples) {
    covariance += (each.seconds - mean_x) * (each.rss_mib - mean_y);
    variance += (each.seconds - mean_x) * (each.seconds - mean_x);
  }
  return variance == 0 ? 0 : covariance / variance;
}

double MeanHitRate(const std::vector<Sample>& samples, size_t first, size_t end) {
  double sum = 0;
  for (size_t i = first; i < end; ++i) sum += samples[i].hit_rate;
  return sum / static_cast<double>(std::max<size_t>(1, end - first));
}

class SoakTest : public ::testing::Test {
 protected:
  void Watch() {
    const absl::Time start = absl::Now();
    const absl::Duration pause = std::max(absl::Milliseconds(500), duration / 180);
    uint64_t host_before = 0;
    uint64_t disk_before = 0;
    while ((absl::Now() - start < duration || work_.bytes < kTurnoverBytes) && !HasFailure()) {
      absl::SleepFor(pause);
      CheckTiers();
      const uint64_t host = work_.host_rows;
      const uint64_t disk = work_.disk_rows;
      const uint64_t hits = host - std::exchange(host_before, host);
      const uint64_t misses = disk - std::exchange(disk_before, disk);
      samples_.push_back({.seconds = absl::ToDoubleSeconds(absl::Now() - start),
                          .rss_mib = RssMiB(store_.process()),
                          .hit_rate = static_cast<double>(hits) /
                                      static_cast<double>(std::max<uint64_t>(1, hits + misses))});
      if (pause < absl::Seconds(5)) continue;
      std::printf("%5.0f s: RSS %.1f MiB, hit rate %.3f, %llu MiB brought\n",
                  samples_.back().seconds, samples_.back().rss_mib, samples_.back().hit_rate,
                  static_cast<unsigned long long>(work_.bytes / kMiB));
      std::fflush(stdout);
    }
  }
  // I5 and I8, from outside.
  void CheckTiers() {
    for (const char* name : {"TIER_HOST", "TIER_DISK"}) {
      const nlohmann::json tier = TierOf(store_, name);
      const auto number = [&](const char* field) {
        return tier.contains(field) ? Number(tier[field]) : 0;
      };
      EXPECT_LE(number("used_bytes"), number("capacity_bytes")) << "I5: " << name;
      EXPECT_EQ(number("admitted_blocks"),
                number("resident_blocks") + number("evicted_blocks") + number("deleted_blocks"))
          << "I8: " << name;
      EXPECT_EQ(number("corrupt_granules"), 0u);
      EXPECT_EQ(number("error_count"), 0u) << tier.value("last_error", "");
    }
    EXPECT_LE(FolderBytes(folder_.File("disk")), kDiskBytes) << "I5";
  }
  void Judge() {
    const size_t third = samples_.size() / 3;
    const std::vector<Sample> steady(samples_.begin() + static_cast<int64_t>(third),
                                     samples_.end());
    const double growth = SlopePerSecond(steady) * (steady.back().seconds - steady.front().seconds);
    const double middle = MeanHitRate(samples_, third, 2 * third);
    const double last = MeanHitRate(samples_, 2 * third, samples_.size());
    std::printf(
        "%.0f s, %llu steps, %llu MiB brought, %llu rows checked; RSS %.1f MiB after a third, %.1f "
        "after two, %.1f at the end, growth %.2f MiB; hit rate %.3f in the second third, %.3f in "
        "the last\n",
        samples_.back().seconds, static_cast<unsigned long long>(work_.steps),
        static_cast<unsigned long long>(work_.bytes / kMiB),
        static_cast<unsigned long long>(work_.checked_rows), samples_[third].rss_mib,
        samples_[2 * third].rss_mib, samples_.back().rss_mib, growth, middle, last);
    EXPECT_LE(growth, kGrowthMaxMiB) << "memory grows";
    EXPECT_GE(last, middle - kHitRateLossMax) << "the hit rate decays";
  }

  const Folder folder_;
  Daemon store_{
      kStoreProgram,
      {"--host-bytes", std::to_string(kHostBytes), "--disk-path", folder_.File("disk"),
       "--disk-bytes", std::to_string(kDiskBytes), "--index-tokens", "256", "--log-level", "warn"}};
  Work work_;
  std::vector<Sample> samples_;
};

TEST_F(SoakTest, MemoryAndHitRateStayWhereTheyAre) {
  ASSERT_TRUE(store_.serving());
  std::deque<Tenant> tenants;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    tenants.emplace_back(store_.address(), TestSeed() + static_cast<uint64_t>(i), work_);
    threads.emplace_back([&tenant = tenants.back()] { tenant.Run(); });
  }
  Watch();
  work_.stop = true;
  for (std::thread& thread : threads) thread.join();
  ASSERT_GE(samples_.size(), 6u);
  Judge();
}

}  // namespace
}  // namespace terrace::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleMock(&argc, argv);
  int minutes = 0;
  if (argc == 3 && std::string(argv[1]) == "--minutes" && absl::SimpleAtoi(argv[2], &minutes)) {
    terrace::testing::duration = absl::Minutes(minutes);
  } else if (argc != 1) {
    std::fprintf(stderr, "usage: %s [--minutes N]\n", argv[0]);
    return 2;
  }
  return RUN_ALL_TESTS();
}
