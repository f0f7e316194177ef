#include "services/policy_check/vector_file.h"

#include <gmock/gmock.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "tests/status_matchers.h"

namespace terrace::policy_check {
namespace {

using ::terrace::testing::IsOk;
using ::terrace::testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Two query heads over one KV head of three rows.
constexpr char kCase[] = R"({"name": "small", "policy": "sparq", "params": {"r": 1, "k": 2},
  "q": [[1, 2], [3, 4]],
  "k": [[[1, 2], [3, 4], [5, 6]]], "v": [[[7, 8], [9, 10], [11, 12]]],
  "expect": {"selection": [[1, 2]], "output": [[1, 2], [3, 4]], "channels": [[1]],
             "alpha": [0.5, 1], "tau": [1, 0]}})";

std::string File(const std::string& cases) {
  return absl::StrCat(R"({"format": 1, "notes": "", "cases": [)", cases, "]}");
}

std::string With(const std::string& part, const std::string& replacement) {
  EXPECT_THAT(kCase, HasSubstr(part));
  return File(absl::StrReplaceAll(kCase, {{part, replacement}}));
}

TEST(VectorFile, ReadsACase) {
  const auto cases = ParseVectors(File(kCase));
  ASSERT_OK(cases);
  ASSERT_EQ(cases->size(), 1U);
  const VectorCase& vector = (*cases)[0];
  EXPECT_EQ(vector.name, "small");
  EXPECT_FALSE(vector.skipped);
  ASSERT_OK(vector.refused);
  EXPECT_EQ(vector.problem.query_heads, 2);
  EXPECT_EQ(vector.problem.kv_heads, 1);
  EXPECT_EQ(vector.problem.tokens, 3);
  EXPECT_EQ(vector.problem.head_dim, 2);
  EXPECT_THAT(vector.problem.q, ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(vector.problem.k, ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(vector.problem.v, ElementsAre(7, 8, 9, 10, 11, 12));
  EXPECT_THAT(vector.expect.selection, ElementsAre(ElementsAre(1, 2)));
  EXPECT_THAT(vector.expect.channels, ElementsAre(ElementsAre(1)));
  EXPECT_THAT(vector.expect.output, ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(vector.expect.alpha, ElementsAre(0.5, 1));
  EXPECT_THAT(vector.expect.tau, ElementsAre(1, 0));
}

TEST(VectorFile, LeavesOutWhatIsNotExpected) {
  const auto cases = ParseVectors(With(R"(, "channels": [[1]],
             "alpha": [0.5, 1], "tau": [1, 0])",
                                       ""));
  ASSERT_OK(cases);
  ASSERT_OK((*cases)[0].refused);
  EXPECT_TRUE((*cases)[0].expect.channels.empty());
  EXPECT_TRUE((*cases)[0].expect.alpha.empty());
  EXPECT_TRUE((*cases)[0].expect.tau.empty());
}

TEST(VectorFile, ReadsParametersAndTheirDefaults) {
  const std::pair<const char*, const char*> cases[] = {
      {R"("r": 1, "k": 2)", "sparq:r=1,k=2"},
      {R"("r": 2, "k": 1, "window": 3, "sinks": 4)", "sparq:r=2,k=1,window=3,sinks=4"},
      {R"("r": 1, "k": 2, "group": "sum_prob", "value_mean": "off")", "sparq:r=1,k=2"},
      {R"("r": 1, "k": 2, "group": "sum_logit")", "sparq:r=1,k=2,group=sum_logit"},
      {R"("r": 1, "k": 2, "group": "max_prob")", "sparq:r=1,k=2,group=max_prob"},
      {R"("r": 1, "k": 2, "value_mean": "mean")", "sparq:r=1,k=2,mean=mean"},
      {R"("r": 1, "k": 2, "value_mean": "residual")", "sparq:r=1,k=2,mean=residual"}};
  for (const auto& [params, name] : cases) {
    const auto parsed = ParseVectors(With(R"("r": 1, "k": 2)", params));
    ASSERT_OK(parsed);
    ASSERT_OK((*parsed)[0].refused);
    EXPECT_EQ(attention::PolicyName((*parsed)[0].policy), name);
  }
}

TEST(VectorFile, RefusesACaseThatItDoesNotUnderstandAndNamesWhy) {
  const struct {
    const char* part;
    const char* replacement;
    const char* message;
  } cases[] = {{R"("k": 2)", R"("k": 2, "kk": 3)", "unknown param \"kk\""},
               {R"("k": 2)", R"("k": 2, "mean": "off")", "unknown param \"mean\""},
               {R"("r": 1, )", "", "params.r: missing"},
               {R"("r": 1, )", R"("r": 0, )", "r: got 0, allowed is"},
               {R"("r": 1, )", R"("r": 3, )", "r: got 3, allowed is [1, 2]"},
               {R"("r": 1, )", R"("r": 1.5, )", "params.r: got 1.5"},
               {R"("r": 1, )", R"("r": 99999999999, )", "99999999999"},
               {R"("k": 2)", R"("k": "2")", "params.k: got \"2\""},
               {R"("k": 2)", R"("k": 2, "window": 0)", "window: got 0"},
               {R"("k": 2)", R"("k": 2, "sinks": -1)", "sinks: got -1"},
               {R"("k": 2)", R"("k": 2, "group": "sum")", "\"sum\""},
               {R"("k": 2)", R"("k": 2, "group": 1)", "params.group: got 1"},
               {R"("k": 2)", R"("k": 2, "value_mean": "some")", "\"some\""},
               {R"("sparq", "params": {"r": 1, "k": 2})", R"("dense", "params": {"k": 2})",
                "unknown param \"k\", expected none"},
               {R"("sparq")", R"("sparq2")", "unknown policy \"sparq2\""},
               {R"("sparq")", R"("Dense")", "unknown policy \"Dense\""},
               {R"("tau")", R"("tua")", "unknown field of expect \"tua\""},
               {R"("name": "small")", R"("name": "small", "scale": 2)", "unknown field \"scale\""}};
  for (const auto& c : cases) {
    const auto parsed = ParseVectors(With(c.part, c.replacement));
    ASSERT_OK(parsed);
    EXPECT_FALSE((*parsed)[0].skipped);
    EXPECT_THAT((*parsed)[0].refused,
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.message)))
        << c.replacement;
  }
}

TEST(VectorFile, SkipsThePoliciesThatAreNotBuiltWithoutReadingTheirArrays) {
  for (const char* policy : {"window", "oracle", "quest", "h2o"}) {
    const auto parsed = ParseVectors(File(absl::StrCat(
        R"({"name": "later", "policy": ")", policy,
        R"(", "params": {"start": 3}, "q": [[[1]]], "k": 0, "v": 0, "expect": {"steps": []}})")));
    ASSERT_OK(parsed);
    EXPECT_TRUE((*parsed)[0].skipped) << policy;
    EXPECT_OK((*parsed)[0].refused);
    EXPECT_EQ((*parsed)[0].policy_name, policy);
  }
}

TEST(VectorFile, NamesCaseAndFieldOfWhatIsMalformed) {
  const struct {
    const char* part;
    const char* replacement;
    const char* message;
  } cases[] = {
      {R"("policy": "sparq", )", "", "case small: policy: missing"},
      {R"("policy": "sparq")", R"("policy": 7)", "case small: policy: got 7"},
      {R"("params": {"r": 1, "k": 2})", R"("params": [])", "case small: params: got array"},
      {R"("q": [[1, 2], [3, 4]],)", "", "case small: q: missing"},
      {"[[1, 2], [3, 4]],\n  \"k\"", "[],\n  \"k\"", "case small: q: got no elements"},
      {"[[1, 2], [3, 4]],\n  \"k\"", "[[1, 2], 3],\n  \"k\"", "case small: q[1]: got 3"},
      {"[[1, 2], [3, 4]],\n  \"k\"", "[[1, 2], [3, null]],\n  \"k\"",
       "case small: q[1][1]: got null, expected a number"},
      {"[5, 6]]]", "[5]]]", "case small: k[0][2]: got 1 elements, expected 2"},
      {"[5, 6]]]", "[5, \"6\"]]]", "case small: k[0][2][1]: got \"6\""},
      {"[[[7, 8], ", "[[", "case small: v[0]: got 2 elements, expected 3"},
      {"[[[1, 2], [3, 4], [5, 6]]]", "[[[1, 2]], [[3, 4]], [[5, 6]]]",
       "case small: v: got 1 elements, expected 3"},
      {R"("selection": [[1, 2]], )", "", "case small: expect.selection: missing"},
      {R"([[1, 2]], "output")", R"([[1, 3]], "output")",
       "case small: expect.selection[0][1]: got 3, expected a whole number from 0 to 2"},
      {R"([[1, 2]], "output")", R"([[2, 2]], "output")", "got 2 after 2"},
      {R"([[1, 2]], "output")", R"([[-1, 2]], "output")", "got -1"},
      {R"([[1, 2]], "output")", R"([[0.5, 2]], "output")", "got 0.5"},
      {R"([[1, 2]], "output")", R"([[]], "output")", "expect.selection[0]"},
      {R"([[1, 2]], "output")", R"([[1], [2]], "output")", "expect.selection: got array"},
      {R"("channels": [[1]])", R"("channels": [[2]])", "expect.channels[0][0]: got 2"},
      {R"("alpha": [0.5, 1])", R"("alpha": [0.5])",
       "case small: expect.alpha: got 1 elements, expected 2"},
      {R"("tau": [1, 0])", R"("tau": 1)", "case small: expect.tau: got 1, expected an array"},
      {R"("output": [[1, 2], [3, 4]])", R"("output": [[1, 2]])",
       "case small: expect.output: got 1 elements, expected 2"}};
  for (const auto& c : cases) {
    EXPECT_THAT(ParseVectors(With(c.part, c.replacement)),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.message)));
  }
}

TEST(VectorFile, QueryHeadsShareKvHeadsEvenly) {
  const std::string text = absl::StrReplaceAll(
      kCase, {{"[[1, 2], [3, 4]],\n  \"k\"", "[[1, 2], [3, 4], [5, 6]],\n  \"k\""},
              {"[[[1, 2], [3, 4], [5, 6]]]", "[[[1, 2]], [[3, 4]]]"},
              {"[[[7, 8], [9, 10], [11, 12]]]", "[[[7, 8]], [[9, 10]]]"}});
  EXPECT_THAT(ParseVectors(File(text)), StatusIs(absl::StatusCode::kInvalidArgument,
                                                 HasSubstr("got 3 query heads, expected a multiple "
                                                           "of the 2 KV heads")));
}

TEST(VectorFile, NamesWhatIsWrongWithTheWhole) {
  const std::pair<std::string, const char*> cases[] = {
      {"", "not JSON"},
      {"{", "not JSON"},
      {R"({"format": 1, "cases": [1e999]})", "not JSON"},
      {"[]", "file: got array, expected an object"},
      {R"({"cases": []})", "format: missing"},
      {R"({"format": 2, "cases": []})", "format: got 2"},
      {R"({"format": "1", "cases": []})", "format: got \"1\""},
      {R"({"format": 1})", "cases: missing"},
      {R"({"format": 1, "cases": []})", "cases: got array, expected an array that is not empty"},
      {File("7"), "cases[0]: got 7"},
      {File("{}"), "cases[0].name: missing"},
      {File(R"({"name": ""})"), "cases[0].name: got \"\""},
      {File(absl::StrCat(kCase, ",", kCase)), "cases[1].name: \"small\" given twice"}};
  for (const auto& [text, message] : cases) {
    EXPECT_THAT(ParseVectors(text),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
  }
}

TEST(VectorFile, NamesTheFile) {
  EXPECT_THAT(ReadVectorFile("/nowhere/x.json"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/nowhere/x.json: cannot be read")));
  EXPECT_THAT(ReadVectorFile(TERRACE_SOURCE_DIR "/CMakeLists.txt"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("/CMakeLists.txt: "), HasSubstr("not JSON"))));
  EXPECT_FALSE(ReadVectorFile(TERRACE_SOURCE_DIR).ok());
}

TEST(VectorFile, ReadsTheBundledFile) {
  const auto cases = ReadVectorFile(TERRACE_TEST_DATA "/policies/policies.json");
  ASSERT_OK(cases);
  int runnable = 0;
  for (const VectorCase& vector : *cases) {
    EXPECT_OK(vector.refused) << vector.name;
    runnable += vector.skipped ? 0 : 1;
  }
  EXPECT_EQ(cases->size(), 21U);
  EXPECT_EQ(runnable, 16);
}

}  // namespace
}  // namespace terrace::policy_check
