// Many threads on few keys: whatever is read was put, and as a whole.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/e2e/await.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/value_client.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

constexpr int kThreads = 4;
constexpr int kKeys = 12;
constexpr int kVersions = 2;
constexpr int kRounds = 150;

uint64_t SizeOf(int key) { return 1 + uint64_t{61'000} * key; }

class ValueThreadsTest : public ::testing::TestWithParam<bool> {
 protected:
  ValueThreadsTest() {
    if (GetParam()) {
      options_ = DiskOptions(folder_);
      options_.store.durability = kvstore::Durability::kAsync;
    }
    // Room for half of it.
    options_.retained_bytes_max = 2 << 20;
    options_.sweep_interval = absl::Milliseconds(1);
    engine_ = OpenEngine(options_);
    for (int key = 0; key < kKeys; ++key) {
      for (int version = 0; version < kVersions; ++version) {
        bytes_.push_back(ValueBytes(static_cast<uint64_t>(key * kVersions + version), SizeOf(key)));
      }
    }
  }

  const std::string& BytesOf(int key, int version) const {
    return bytes_[key * kVersions + version];
  }
  kvstore::TierStats Host() { return (*engine_->ListTiers())[0].stats; }
  void Run(int thread) {
    std::mt19937 random(static_cast<unsigned>(thread));
    for (int round = 0; round < kRounds; ++round) {
      const int key = static_cast<int>(random() % kKeys);
      const int version = static_cast<int>(random() % kVersions);
      const std::string name = std::to_string(key);
      switch (random() % 8) {
        case 0:
          EXPECT_OK(engine_->values().Delete({}, {name}));
          break;
        case 1:
          EXPECT_OK(engine_->values().Lookup({}, {name}, absl::Microseconds(random() % 1000)));
          break;
        case 2:
        case 3:
        case 4: {
          const absl::Status put =
              PutValue(*engine_, name, BytesOf(key, version), absl::Milliseconds(random() % 50));
          puts_ += put.ok();
          EXPECT_TRUE(put.ok() || absl::IsAlreadyExists(put) || absl::IsResourceExhausted(put))
              << put;
          break;
        }
        default: {
          const absl::StatusOr<std::string> got = GetValue(*engine_, name);
          if (!got.ok()) {
            EXPECT_THAT(got, StatusIs(absl::StatusCode::kNotFound));
            break;
          }
          ++gets_;
          EXPECT_TRUE(*got == BytesOf(key, 0) || *got == BytesOf(key, 1)) << key;
        }
      }
    }
  }

  TempFolder folder_;
  engine::EmbeddedOptions options_ = MemoryOptions();
  std::vector<std::string> bytes_;
  std::unique_ptr<engine::EmbeddedEngine> engine_;
  std::atomic<int> puts_ = 0;
  std::atomic<int> gets_ = 0;
};

TEST_P(ValueThreadsTest, ReadsSeeWholeValues) {
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([this, thread] { Run(thread); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(puts_, 0);
  EXPECT_GT(gets_, 0);
  // Nothing is left behind by whoever came to nothing.
  for (int key = 0; key < kKeys; ++key) {
    EXPECT_OK(engine_->values().Delete({}, {std::to_string(key)}));
  }
  engine_->Sweep();
  EXPECT_EQ(engine_->values().size(), 0u);
  // Who writes behind may hold the last of them.
  EXPECT_TRUE(Await([this] { return Host().resident_blocks == 0; }));
  const kvstore::TierStats host = Host();
  EXPECT_EQ(host.admitted_blocks, host.evicted_blocks + host.deleted_blocks) << "I8";
}

INSTANTIATE_TEST_SUITE_P(Tiers, ValueThreadsTest, ::testing::Bool(), [](const auto& test) {
  return test.param ? std::string("Disk") : std::string("Memory");
});

}  // namespace
}  // namespace terrace::testing
