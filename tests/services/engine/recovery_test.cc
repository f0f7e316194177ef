// A start over many sequences: it reads what names them and no rows, and takes memory by sequences,
// not by bytes on disk.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/prefix_client.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::SequenceInfo;

constexpr int kSequences = 3000;
// Rows, all of them in hashed blocks, of each.
constexpr int64_t kTokens = 32;
// What one may take at most while a start runs.
constexpr uint64_t kBytesOfSequence = 16 << 10;
// The database itself, and what the first touch of code and threads takes.
constexpr uint64_t kBytesOfStart = 24 << 20;

// A line of /proc/self/status, in bytes.
uint64_t StatusBytes(const std::string& name) {
  std::ifstream status("/proc/self/status");
  std::string word;
  uint64_t kib = 0;
  while (status >> word) {
    if (word == name + ":") status >> kib;
  }
  return kib << 10;
}

TEST(RecoveryTest, ReadsNamesOnlyAndTakesMemoryBySequence) {
  const TempFolder folder;
  engine::EmbeddedOptions options = DiskOptions(folder);
  options.block_tokens = 16;
  options.index_tokens = 64;
  options.store.disk_bytes = uint64_t{256} << 20;
  options.store.durability = kvstore::Durability::kAsync;
  std::vector<std::string> handles;
  {
    const auto engine = OpenEngine(options);
    for (uint32_t i = 0; i < kSequences; ++i) {
      const SequenceInfo info = *engine->Create({}, Spec(SmallGeometry()));
      ASSERT_OK(AppendIds(*engine, info, i, 0, TextIds(i, kTokens)));
      handles.push_back(info.handle);
    }
    engine->RecordTokens(absl::InfiniteFuture());
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    for (const std::string& handle : handles) {
      while (engine->Get({}, handle)->durable_length < kTokens && absl::Now() < deadline) {
        std::this_thread::yield();
      }
    }
  }
  // Makes the next reading of the peak count from here.
  std::ofstream("/proc/self/clear_refs") << "5";
  const uint64_t before = StatusBytes("VmRSS");
  const absl::Time start = absl::Now();
  const auto engine = OpenEngine(options);
  const absl::Duration ready = absl::Now() - start;
  const uint64_t peak = StatusBytes("VmHWM") - before;
  EXPECT_EQ(engine->sequence_count(), static_cast<size_t>(kSequences));
  EXPECT_TRUE(engine->damaged().empty());
  EXPECT_EQ((*engine->ListTiers())[0].stats.used_bytes, 0u);
  EXPECT_EQ((*engine->ListTiers())[1].stats.read_bytes, 0u) << "no block is read";
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(peak, kBytesOfStart + kSequences * kBytesOfSequence);
#endif
  std::printf("%d sequences ready after %.0f ms, %llu MiB\n", kSequences,
              absl::ToDoubleMilliseconds(ready), static_cast<unsigned long long>(peak >> 20));
  for (const std::string& handle : handles) {
    ASSERT_EQ(engine->Get({}, handle)->length, kTokens);
  }
  EXPECT_EQ(FoundTokens(*engine, TextIds(7, kTokens)), kTokens);
}

}  // namespace
}  // namespace terrace::testing
