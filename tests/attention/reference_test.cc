#include "attention/reference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace terrace::attention {
namespace {

using nlohmann::json;
using ::terrace::attention::reference::Answer;
using ::terrace::attention::reference::Problem;

// Cases of other policies stay in the file for those who implement them.
std::vector<json> GoldenCases() {
  std::ifstream in(TERRACE_TEST_DATA "/policies/policies.json");
  std::vector<json> cases;
  json file = json::parse(in);
  for (json& entry : file["cases"]) {
    const std::string policy = entry["policy"];
    if (policy == "dense" || policy == "sparq") cases.push_back(std::move(entry));
  }
  return cases;
}

void Append(const json& in, std::vector<double>& out) {
  for (const json& item : in) {
    item.is_array() ? Append(item, out) : out.push_back(item.get<double>());
  }
}

std::vector<double> Flat(const json& in) {
  std::vector<double> out;
  Append(in, out);
  return out;
}

Problem ToProblem(const json& entry) {
  Problem problem;
  problem.query_heads = static_cast<int>(entry["q"].size());
  problem.kv_heads = static_cast<int>(entry["k"].size());
  problem.tokens = static_cast<int>(entry["k"][0].size());
  problem.head_dim = static_cast<int>(entry["k"][0][0].size());
  problem.q = Flat(entry["q"]);
  problem.k = Flat(entry["k"]);
  problem.v = Flat(entry["v"]);
  return problem;
}

Policy ToPolicy(const json& entry) {
  if (entry["policy"] == "dense") return DensePolicy{};
  const json& params = entry["params"];
  std::string text =
      "sparq:r=" + params["r"].dump() + ",k=" + params["k"].dump() +
      ",window=" + params["window"].dump() + ",sinks=" + params.value("sinks", json(0)).dump() +
      ",group=" + params.value("group", "sum_prob") + ",mean=" + params.value("value_mean", "off");
  const auto policy = ParsePolicy(text);
  EXPECT_TRUE(policy.ok()) << policy.status().ToString();
  return *policy;
}

void ExpectClose(const std::vector<double>& got, const std::vector<double>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-11) << i;
}

class Golden : public ::testing::TestWithParam<json> {};

TEST_P(Golden, ReferenceAgrees) {
  const json& expect = GetParam()["expect"];
  const Answer answer = Attend(ToProblem(GetParam()), ToPolicy(GetParam()));
  EXPECT_EQ(answer.selection, expect["selection"].get<std::vector<std::vector<uint32_t>>>());
  ExpectClose(answer.alpha, Flat(expect["alpha"]));
  ExpectClose(answer.output, Flat(expect["output"]));
  if (GetParam()["policy"] == "dense") return;
  EXPECT_EQ(answer.channels, expect["channels"].get<std::vector<std::vector<int32_t>>>());
  ExpectClose(answer.tau, Flat(expect["tau"]));
}

INSTANTIATE_TEST_SUITE_P(Vectors, Golden, ::testing::ValuesIn(GoldenCases()), [](const auto& test) {
  return test.param["name"].template get<std::string>();
});

TEST(Reference, TheFileHoldsTheCasesThatWereWritten) { EXPECT_EQ(GoldenCases().size(), 16U); }

TEST(Reference, AnIndexChangesTheChoiceAndNotTheAttention) {
  Problem problem;
  problem.query_heads = 1;
  problem.kv_heads = 1;
  problem.tokens = 4;
  problem.head_dim = 8;
  problem.q.assign(8, 0.0);
  problem.q[0] = 1;
  problem.k.assign(32, 0.0);
  problem.k[0] = 5;  // Row 0 is the best by its key,
  problem.v.assign(32, 0.0);
  problem.v[1 * 8] = 7;
  std::vector<double> index = problem.k;
  index[0] = 0;
  index[1 * 8] = 5;  // and row 1 by the index.
  SparqPolicy policy{.r = 1, .k = 2};
  const Answer answer = AttendSparq(problem, policy, index);
  EXPECT_EQ(answer.selection[0], (std::vector<uint32_t>{1, 3}));
  // Both rows have logit 0 in truth.
  EXPECT_DOUBLE_EQ(answer.output[0], 3.5);
  EXPECT_DOUBLE_EQ(answer.lse[0], std::log(2.0));
}

}  // namespace
}  // namespace terrace::attention
