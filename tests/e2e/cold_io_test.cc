// What a step costs the disk when nothing is in memory: the rows that it chose, not the sequence.
// The kernel's own count is the judge.
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/e2e/cluster.h"

namespace terrace::testing {
namespace {

// 64 MiB of rows: 8 layers of 4 KV heads, 512 bytes a row.
const Shape kShape = {.layers = 8, .query_heads = 8, .kv_heads = 4, .head_dim = 128};
constexpr uint64_t kTokens = 4096;
constexpr uint64_t kRowBytes = kTokens * 8 * 4 * 512;
static_assert(kRowBytes == 64 << 20);

// Bytes that the process has had fetched from storage devices.
uint64_t DeviceBytes(const Process& process) {
  std::ifstream io(absl::StrCat("/proc/", process.pid(), "/io"));
  std::string name;
  uint64_t value = 0;
  while (io >> name >> value) {
    if (name == "read_bytes:") return value;
  }
  return 0;
}

class ColdIoTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(cluster_.serving());
    sequence_ = client_.Open(kShape);
    ASSERT_REPLY_OK(client_.Append(sequence_, rows_, 0, kTokens));
    ASSERT_REPLY_OK(client_.Flush(&sequence_));
    ASSERT_EQ(sequence_.durable_length(), kTokens);
  }

  // Nothing in memory; the step goes to the store by way of a worker that knows no rows either.
  StepReply ColdStep(uint32_t layer, const v1::Policy& policy) {
    cluster_.store().Kill();
    cluster_.store().Restart();
    v1::SequenceInfo info;
    EXPECT_TRUE(Await([&] { return client_.Get(sequence_.handle(), &info).ok(); }));
    before_ = DeviceBytes(cluster_.store().process());
    StepReply step = client_.Look(sequence_, rows_, layer, kTokens - 1, policy);
    read_ = DeviceBytes(cluster_.store().process()) - before_;
    EXPECT_REPLY_OK(step.reply);
    return step;
  }

  uint64_t StoredBytes() {
    const nlohmann::json listed = AskAdmin(cluster_.store(), {"sequences"})["sequences"];
    EXPECT_EQ(listed.size(), 1u);
    return listed.empty() ? 0 : Number(listed[0]["disk_bytes"]);
  }

  static v1::TierRead DiskOf(const StepReply& step) {
    for (const v1::TierRead& read : step.result.account().reads()) {
      if (read.tier() == v1::TIER_DISK) return read;
    }
    return {};
  }

  Cluster cluster_{{"--host-bytes", "256MiB", "--disk-bytes", "512MiB"}};
  const Rows rows_{kShape, TestSeed()};
  Client client_ = cluster_.NewClient();
  v1::SequenceInfo sequence_;
  uint64_t before_ = 0;
  uint64_t read_ = 0;
};

TEST_F(ColdIoTest, AStepReadsItsRowsAndItsLayersIndexAndLittleMore) {
  // All rows of one layer: at least their bytes must come from the device, or it does not count.
  const StepReply dense = ColdStep(1, Dense());
  const uint64_t layer_bytes = kRowBytes / kShape.layers;
  EXPECT_GE(DiskOf(dense).physical_bytes(), layer_bytes);
  if (read_ < layer_bytes) {
    GTEST_SKIP() << "the file system counts no device reads: " << read_ << " of " << layer_bytes;
  }
  const uint64_t dense_read = read_;
  const StepReply step = ColdStep(5, Sparq(32, 128, 32));
  const v1::TierRead disk = DiskOf(step);
  const uint64_t stored = StoredBytes();
  std::printf("stored %llu, dense step read %llu, SparQ step read %llu, accounted %llu physical\n",
              static_cast<unsigned long long>(stored), static_cast<unsigned long long>(dense_read),
              static_cast<unsigned long long>(read_),
              static_cast<unsigned long long>(disk.physical_bytes()));
  EXPECT_EQ(disk.rows(), uint64_t{128} * kShape.kv_heads);
  EXPECT_GE(disk.physical_bytes(), disk.row_bytes() + disk.index_bytes());
  EXPECT_GE(read_, disk.physical_bytes());
  EXPECT_LE(read_, 4 * disk.physical_bytes());
  EXPECT_GE(stored, kRowBytes);
  EXPECT_LT(read_, stored / 8);
}

}  // namespace
}  // namespace terrace::testing
