#include "services/replay/reference_trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "services/engine/step_trace.h"
#include "tests/services/replay/trace_file.h"
#include "tests/status_matchers.h"

namespace terrace::replay {
namespace {

using ::terrace::testing::Request;
using ::terrace::testing::StatusIs;
using ::terrace::testing::TraceFile;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::FloatNear;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

absl::StatusOr<ReferenceTrace> Read(const std::string& path) {
  return ReadTrace(path, [](size_t) {});
}

TEST(RequestTrace, NumbersBlocksAsTheyAppear) {
  const TraceFile file(Request("40, 18446744073709551615") + Request("") + Request("40, 7, 40"));
  const absl::StatusOr<ReferenceTrace> trace = Read(file.path());
  ASSERT_OK(trace);
  EXPECT_THAT(trace->blocks, ElementsAre(0, 1, 0, 2, 0));
  EXPECT_THAT(trace->masses, IsEmpty());
  EXPECT_EQ(trace->distinct_blocks, 3U);
  EXPECT_EQ(trace->steps, 3U);
}

TEST(RequestTrace, TakesAnyLineEndAndIgnoresBlankLinesAndOtherMembers) {
  std::string last = Request("3");
  last.pop_back();
  last.insert(1, "\"type\": \"chat\", ");
  std::string windows = Request("2");
  windows.insert(windows.size() - 1, "\r");
  const TraceFile file(Request("1") + "\n \t\r\n" + windows + last);
  const absl::StatusOr<ReferenceTrace> trace = Read(file.path());
  ASSERT_OK(trace);
  EXPECT_THAT(trace->blocks, ElementsAre(0, 1, 2));
  EXPECT_EQ(trace->steps, 3U);
}

TEST(RequestTrace, TellsHowFarItHasRead) {
  const TraceFile file(Request("1,2") + Request("1"));
  std::vector<size_t> told;
  ASSERT_OK(ReadTrace(file.path(), [&](size_t references) { told.push_back(references); }));
  EXPECT_THAT(told, ElementsAre(2, 3));
}

TEST(RequestTrace, NamesFileLineGotAndExpected) {
  const auto with = [](const std::string& timestamp, const std::string& ids) {
    return "{\"timestamp\": " + timestamp +
           ", \"input_length\": 1, \"output_length\": 1, \"hash_ids\": " + ids + "}";
  };
  const struct {
    std::string line;
    const char* message;
  } cases[] = {
      {"{\"timestamp\": 0", "got malformed JSON, expected an object"},
      {"hello", "got malformed JSON, expected an object"},
      {"[1, 2]", "got [1,2], expected an object"},
      {"{}", "\"timestamp\" is missing"},
      {"{\"timestamp\": 0}", "\"input_length\" is missing"},
      {"{\"timestamp\": 0, \"input_length\": 1}", "\"output_length\" is missing"},
      {"{\"timestamp\": 0, \"input_length\": 1, \"output_length\": 1}", "\"hash_ids\" is missing"},
      {with("-1", "[]"), "\"timestamp\": got -1, expected an integer of at least 0"},
      {with("0.5", "[]"), "\"timestamp\": got 0.5, expected an integer of at least 0"},
      {with("0", "3"), "\"hash_ids\": got 3, expected an array"},
      {with("0", "[0, \"a\"]"), "\"hash_ids\"[1]: got \"a\", expected an integer of at least 0"},
      {with("0", "[-7]"), "\"hash_ids\"[0]: got -7, expected an integer of at least 0"},
      {with("0", "[18446744073709551616]"), "\"hash_ids\"[0]: got 1.8"},
      {with("0", "[null]"), "\"hash_ids\"[0]: got null, expected"},
      {with("0", "[\"" + std::string(1000, 'x') + "\"]"), "xxx..., expected an integer"}};
  for (const auto& c : cases) {
    const TraceFile file(Request("1") + Request("2") + c.line + "\n" + Request("3"));
    EXPECT_THAT(Read(file.path()),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         AllOf(HasSubstr(file.path() + ":3: "), HasSubstr(c.message))));
  }
}

TEST(RequestTrace, BoundsTheLengthOfALine) {
  const std::string request = Request("1").substr(0, Request("1").size() - 1);
  const std::string longest = request + std::string(kMaxLineBytes - request.size(), ' ');
  EXPECT_OK(Read(TraceFile(Request("1") + longest + "\n" + Request("2")).path()));
  EXPECT_THAT(Read(TraceFile(Request("1") + longest + " \n" + Request("2")).path()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(":2: got a line of more")));
}

TEST(RequestTrace, AnEmptyOneIsRefused) {
  for (const std::string& text : {std::string(), std::string("\n\n"), Request("")}) {
    EXPECT_THAT(Read(TraceFile(text).path()),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("without references")));
  }
}

TEST(ReadTrace, WhatCannotBeReadIsNotFound) {
  const TraceFile file;
  EXPECT_THAT(Read(file.path() + ".none"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("No such file")));
  EXPECT_THAT(Read(::testing::TempDir()),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("Is a directory")));
}

class RecordedSteps : public ::testing::Test {
 protected:
  void Write(const std::vector<engine::TracedStep>& steps) {
    absl::StatusOr<engine::StepTraceWriter> writer =
        engine::StepTraceWriter::Create({.path = file_.path(), .block_tokens = 16});
    ASSERT_OK(writer);
    for (const engine::TracedStep& step : steps) ASSERT_OK(writer->Append(step));
    ASSERT_OK(writer->Close());
  }

  const TraceFile file_;
};

TEST_F(RecordedSteps, RefersOnceToEachBlockOfAHeadWithTheMassOfItsRows) {
  Write({{.heads = {{{0, 15, 16, 47, 48}, {0.1F, 0.2F, 0.3F, 0.1F, 0.05F}}, {{3}, {0.9F}}}}});
  const absl::StatusOr<ReferenceTrace> trace = Read(file_.path());
  ASSERT_OK(trace);
  EXPECT_THAT(trace->blocks, ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(trace->masses,
              ElementsAre(FloatNear(0.3F, 1e-4F), FloatNear(0.3F, 1e-4F), FloatNear(0.1F, 1e-4F),
                          FloatNear(0.05F, 1e-4F), FloatNear(0.9F, 1e-4F)));
  EXPECT_EQ(trace->distinct_blocks, 5U);
  EXPECT_EQ(trace->steps, 1U);
}

TEST_F(RecordedSteps, TellsSequencesLayersAndHeadsApart) {
  const engine::TracedHead head{{5}, {1}};
  Write({{.sequence = 1, .layer = 0, .heads = {head, head}},
         {.sequence = 2, .layer = 0, .heads = {head}},
         {.sequence = 1, .layer = 1, .heads = {{}, head}},
         {.sequence = 1, .position = 9, .layer = 0, .heads = {head, head}}});
  EXPECT_THAT(Read(file_.path())->blocks, ElementsAre(0, 1, 2, 3, 0, 1));
}

TEST_F(RecordedSteps, LeavesOutAnUnfinishedStepAndSaysSo) {
  const engine::TracedStep step{.heads = {{{5}, {1}}}};
  Write({step, step});
  std::filesystem::resize_file(file_.path(), std::filesystem::file_size(file_.path()) - 1);
  const absl::StatusOr<ReferenceTrace> trace = Read(file_.path());
  ASSERT_OK(trace);
  EXPECT_THAT(trace->blocks, ElementsAre(0));
  EXPECT_EQ(trace->torn_bytes, 8U + 20 + 1 + 1 + 2 - 1);
}

TEST_F(RecordedSteps, DamageIsDataLoss) {
  Write({{.heads = {{{5}, {1}}}}});
  std::fstream bytes(file_.path(), std::ios::binary | std::ios::in | std::ios::out);
  bytes.seekp(40);
  bytes.put('!');
  bytes.close();
  EXPECT_THAT(Read(file_.path()), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("at byte 24")));
}

}  // namespace
}  // namespace terrace::replay
