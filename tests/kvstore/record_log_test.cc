#include "kvstore/record_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "kvstore/byte_codec.h"
#include "kvstore/checksum.h"
#include "tests/status_matchers.h"

namespace terrace::kvstore {
namespace {

constexpr size_t kBlockBytes = 32768;
constexpr size_t kHeaderBytes = 7;

std::string Record(size_t payload_bytes) {
  std::string summed(1, 1);
  for (size_t i = 0; i < payload_bytes; ++i) summed.push_back(static_cast<char>(i * 7 + 3));
  const uint32_t crc = ExtendCrc32c(0, summed.data(), summed.size());
  ByteWriter header;
  header.Put<uint32_t>(((crc >> 15) | (crc << 17)) + 0xa282ead8);
  header.Put(static_cast<uint16_t>(payload_bytes));
  return std::move(header).Take() + summed;
}

// Records around a block's end, with and without room for a header before it.
std::string TwoBlocks(size_t unused) {
  return Record(100) + Record(kBlockBytes - 2 * kHeaderBytes - 100 - unused) +
         std::string(unused, 0) + Record(50);
}

TEST(RecordLog, MayEndAnywhere) {
  for (const std::string& log : {Record(0), Record(1) + Record(200), TwoBlocks(0), TwoBlocks(6)}) {
    for (size_t end = 0; end <= log.size(); end += end > 300 && end + 300 < log.size() ? 251 : 1) {
      EXPECT_OK(CheckRecordLog(log.substr(0, end))) << end << " of " << log.size();
    }
    EXPECT_OK(CheckRecordLog(log + std::string(100, 0)));
  }
}

TEST(RecordLog, TellsOfEveryBitThatRots) {
  const std::string log = Record(10) + Record(0) + Record(30);
  for (size_t bit = 0; bit < log.size() * 8; ++bit) {
    std::string rotten = log;
    rotten[bit / 8] = static_cast<char>(rotten[bit / 8] ^ (1 << bit % 8));
    const absl::Status status = CheckRecordLog(rotten);
    EXPECT_TRUE(absl::IsDataLoss(status)) << "bit " << bit << ": " << status;
  }
  EXPECT_THAT(CheckRecordLog(std::string(1, 'x') + log.substr(1)).message(),
              ::testing::HasSubstr("the record at 0"));
}

TEST(RecordLog, TellsOfARecordThatRunsOverItsBlock) {
  std::string log = TwoBlocks(0);
  // Its length, one more.
  log[kHeaderBytes + 100 + 4] = static_cast<char>(log[kHeaderBytes + 100 + 4] + 1);
  EXPECT_TRUE(absl::IsDataLoss(CheckRecordLog(log)));
}

}  // namespace
}  // namespace terrace::kvstore
