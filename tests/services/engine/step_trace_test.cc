#include "services/engine/step_trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/status_matchers.h"

namespace terrace::engine {
namespace {

using ::terrace::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kHeaderBytes = 24;

class StepTrace : public ::testing::Test {
 protected:
  StepTrace() : path_(::testing::TempDir() + "step_trace_XXXXXX") {
    const int file = ::mkstemp(path_.data());
    if (file < 0) std::abort();
    ::close(file);
  }
  ~StepTrace() override { std::filesystem::remove(path_); }

  void Write(const std::vector<TracedStep>& steps, uint32_t block_tokens = 64) {
    absl::StatusOr<StepTraceWriter> writer =
        StepTraceWriter::Create({.path = path_, .block_tokens = block_tokens});
    ASSERT_OK(writer);
    for (const TracedStep& step : steps) ASSERT_OK(writer->Append(step));
    ASSERT_OK(writer->Close());
    EXPECT_EQ(writer->bytes(), std::filesystem::file_size(path_));
    EXPECT_EQ(writer->steps(), steps.size());
  }
  // All steps up to the end; `end` is why it ended, `torn` what was left out.
  std::vector<TracedStep> Read(absl::Status* end = nullptr, uint64_t* torn = nullptr) {
    absl::StatusOr<StepTraceReader> reader = StepTraceReader::Open(path_);
    EXPECT_OK(reader);
    std::vector<TracedStep> steps;
    TracedStep step;
    absl::StatusOr<bool> more = reader->Next(step);
    for (; more.ok() && *more; more = reader->Next(step)) steps.push_back(step);
    if (end != nullptr) {
      *end = more.status();
    } else {
      EXPECT_OK(more);
    }
    if (torn != nullptr) *torn = reader->torn_bytes();
    return steps;
  }
  std::string Bytes() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void Overwrite(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary) << bytes;
  }

  std::string path_;
};

TracedStep SmallStep() {
  return {.sequence = 7, .position = 300, .layer = 2, .heads = {{{0, 5, 299}, {1, 0, 0.2F}}}};
}

TEST_F(StepTrace, GivesBackWhatWasAppended) {
  Write({SmallStep(), {}, SmallStep()}, 16);
  const std::vector<TracedStep> steps = Read();
  ASSERT_EQ(steps.size(), 3U);
  EXPECT_EQ(steps[1], TracedStep{});
  EXPECT_EQ(steps[0].sequence, 7U);
  EXPECT_EQ(steps[0].position, 300U);
  EXPECT_EQ(steps[0].layer, 2U);
  EXPECT_THAT(steps[0].heads[0].rows, ElementsAre(0, 5, 299));
  EXPECT_EQ(steps[0].heads[0].masses[0], 1);
  EXPECT_EQ(steps[0].heads[0].masses[1], 0);
  EXPECT_NEAR(steps[0].heads[0].masses[2], 0.2, 0.5 / 65535);
  EXPECT_EQ(steps[2], steps[0]);
  EXPECT_EQ(StepTraceReader::Open(path_)->block_tokens(), 16U);
}

TEST_F(StepTrace, HasTheBytesThatItsGrammarSays) {
  Write({SmallStep()});
  const std::string bytes = Bytes();
  ASSERT_EQ(bytes.size(), kHeaderBytes + 8 + 31);
  EXPECT_EQ(bytes.substr(0, 20), std::string("TerraceSteps\1\0\0\0\x40\0\0\0", 20));
  EXPECT_EQ(bytes.substr(24, 4), std::string("\x1f\0\0\0", 4));
  // 299 is 294 after 5, and 294 is 2 * 128 + 38.
  EXPECT_EQ(bytes.substr(32), std::string("\7\0\0\0\0\0\0\0"
                                          "\x2c\1\0\0\0\0\0\0"
                                          "\2\0"
                                          "\1\0"
                                          "\3\0\5\xa6\2"
                                          "\xff\xff\0\0\x33\x33",
                                          31));
}

TEST_F(StepTrace, KeepsRowsAndGapsOfEverySize) {
  std::vector<uint32_t> rows;
  for (const uint64_t edge : {uint64_t{1} << 7, uint64_t{1} << 14, uint64_t{1} << 21,
                              uint64_t{1} << 28, (uint64_t{1} << 32) - 1}) {
    for (const uint64_t row : {edge - 1, edge}) rows.push_back(static_cast<uint32_t>(row));
  }
  TracedStep step{.sequence = UINT64_MAX, .position = UINT64_MAX, .layer = UINT16_MAX, .heads = {}};
  step.heads.push_back({rows, std::vector<float>(rows.size(), 1)});
  for (const uint32_t row : rows) step.heads.push_back({{row}, {0}});
  Write({step});
  EXPECT_THAT(Read(), ElementsAre(step));
}

TEST_F(StepTrace, ClampsMasses) {
  Write({{.heads = {{{1, 2, 3}, {-0.5F, 1.0001F, 1e30F}}}}});
  EXPECT_THAT(Read()[0].heads[0].masses, ElementsAre(0, 1, 1));
}

TEST_F(StepTrace, RandomStepsComeBack) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  std::vector<TracedStep> steps(100);
  for (TracedStep& step : steps) {
    step.sequence = random();
    step.position = random();
    step.layer = static_cast<uint16_t>(random() % 65536);
    step.heads.resize(random() % 9);
    for (TracedHead& head : step.heads) {
      uint32_t row = 0;
      for (size_t i = random() % 200; i > 0; --i) {
        row += static_cast<uint32_t>(1 + random() % (random() % 2 == 0 ? 4 : 100000));
        head.rows.push_back(row);
        head.masses.push_back(static_cast<float>(random() % 65536) / 65535);
      }
    }
  }
  Write(steps);
  EXPECT_EQ(Read(), steps);
}

TEST_F(StepTrace, NeverGrowsBeyondItsLimit) {
  absl::StatusOr<StepTraceWriter> writer =
      StepTraceWriter::Create({.path = path_, .bytes_max = kMinStepTraceBytes});
  ASSERT_OK(writer);
  constexpr uint64_t kRecordBytes = 39;
  constexpr uint64_t kFitting = (kMinStepTraceBytes - kHeaderBytes) / kRecordBytes;
  for (int i = 0; i < 1000; ++i) ASSERT_OK(writer->Append(SmallStep()));
  EXPECT_EQ(writer->steps(), kFitting);
  EXPECT_EQ(writer->dropped_steps(), 1000 - kFitting);
  ASSERT_OK(writer->Close());
  EXPECT_LE(std::filesystem::file_size(path_), kMinStepTraceBytes);
  EXPECT_EQ(Read().size(), kFitting);
}

TEST_F(StepTrace, FillsItsLimitToTheLastByte) {
  // What is left for the heads of one step.
  constexpr size_t kRest = kMinStepTraceBytes - kHeaderBytes - 8 - 20;
  for (const size_t spare : {0, 1}) {
    absl::StatusOr<StepTraceWriter> writer =
        StepTraceWriter::Create({.path = path_, .bytes_max = kMinStepTraceBytes});
    ASSERT_OK(writer);
    // A head without rows is one byte.
    ASSERT_OK(writer->Append({.heads = std::vector<TracedHead>(kRest + spare)}));
    EXPECT_EQ(writer->steps(), 1 - spare);
    EXPECT_EQ(writer->dropped_steps(), spare);
  }
}

TEST_F(StepTrace, DropsAStepThatIsTooLarge) {
  TracedStep step{.heads = {{}}};
  // One byte of gap and two of mass for each.
  for (uint32_t row = 0; row < kMaxTracedStepBytes / 3; ++row) step.heads[0].rows.push_back(row);
  step.heads[0].masses.assign(step.heads[0].rows.size(), 0);
  absl::StatusOr<StepTraceWriter> writer = StepTraceWriter::Create({.path = path_});
  ASSERT_OK(writer);
  EXPECT_OK(writer->Append(step));
  EXPECT_EQ(writer->dropped_steps(), 1U);
  step.heads[0].rows.resize(step.heads[0].rows.size() - 16);
  step.heads[0].masses.resize(step.heads[0].rows.size());
  EXPECT_OK(writer->Append(step));
  ASSERT_OK(writer->Close());
  EXPECT_THAT(Read(), ElementsAre(step));
}

TEST_F(StepTrace, RefusesOptionsOutOfRange) {
  EXPECT_THAT(StepTraceWriter::Create({.path = path_, .block_tokens = 48}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("48 rows")));
  EXPECT_THAT(StepTraceWriter::Create({.path = path_, .block_tokens = 0}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(StepTraceWriter::Create({.path = path_, .bytes_max = kMinStepTraceBytes - 1}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("4095 bytes")));
  EXPECT_THAT(StepTraceWriter::Create({.path = path_ + "/none/trace"}),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("/none/trace")));
}

TEST_F(StepTrace, WriteErrorsStay) {
  absl::StatusOr<StepTraceWriter> writer = StepTraceWriter::Create({.path = "/dev/full"});
  ASSERT_OK(writer);
  const TracedStep step{.heads = {{std::vector<uint32_t>{1}, {1}}}};
  absl::Status status;
  for (int i = 0; i < 1000 && status.ok(); ++i) status = writer->Append(step);
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("/dev/full")));
  EXPECT_EQ(writer->Append(step), status);
  EXPECT_EQ(writer->Close(), status);
}

TEST_F(StepTrace, IsReadUpToWhereItsRecorderDied) {
  Write({SmallStep(), SmallStep()});
  const std::string whole = Bytes();
  const size_t second = kHeaderBytes + 39;
  for (size_t size = kHeaderBytes; size <= whole.size(); ++size) {
    Overwrite(whole.substr(0, size));
    absl::Status end;
    uint64_t torn = 0;
    EXPECT_EQ(Read(&end, &torn).size(), (size - kHeaderBytes) / 39) << size;
    EXPECT_OK(end);
    EXPECT_EQ(torn, size < second ? size - kHeaderBytes : (size - second) % 39) << size;
  }
}

TEST_F(StepTrace, NoFlippedBitGoesUnnoticed) {
  Write({SmallStep(), SmallStep()});
  const std::string whole = Bytes();
  const std::vector<TracedStep> steps = Read();
  for (size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    std::string bytes = whole;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
    Overwrite(bytes);
    if (bit / 8 < kHeaderBytes) {
      EXPECT_THAT(StepTraceReader::Open(path_), StatusIs(absl::StatusCode::kInvalidArgument));
      continue;
    }
    absl::Status end;
    uint64_t torn = 0;
    const std::vector<TracedStep> read = Read(&end, &torn);
    ASSERT_LT(read.size(), 2U) << bit;
    EXPECT_TRUE(std::equal(read.begin(), read.end(), steps.begin())) << bit;
    // A size that grew looks like a record that was never finished.
    EXPECT_TRUE(absl::IsDataLoss(end) || torn > 0) << bit << " " << end;
  }
}

TEST_F(StepTrace, NamesTheByteOfADamagedRecord) {
  Write({SmallStep(), SmallStep()});
  std::string bytes = Bytes();
  bytes.back() ^= 1;
  Overwrite(bytes);
  absl::Status end;
  EXPECT_EQ(Read(&end).size(), 1U);
  EXPECT_THAT(end,
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr(path_ + ": the record at byte 63 ")));
}

TEST_F(StepTrace, OpensNothingElse) {
  EXPECT_THAT(StepTraceReader::Open(path_ + ".none"), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(StepTraceReader::Open(::testing::TempDir()),
              ::testing::Not(::terrace::testing::IsOk()));
  for (const std::string text : {"", "TerraceSteps", "{\"timestamp\": 0}"}) {
    Overwrite(text);
    EXPECT_THAT(StepTraceReader::Open(path_), StatusIs(absl::StatusCode::kInvalidArgument)) << text;
  }
}

}  // namespace
}  // namespace terrace::engine
