#include "services/policy_check/vector_file.h"

#include <algorithm>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace terrace::policy_check {
namespace {

using nlohmann::json;

constexpr int64_t kFormat = 1;
constexpr absl::string_view kNotBuilt[] = {"window", "oracle", "quest", "h2o"};

// One extent of an array; kAny takes the first one met, which must not be 0.
constexpr int kAny = -1;

absl::Status Wrong(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", what));
}

absl::Status Wrong(absl::string_view field, const json& got, absl::string_view expected) {
  const bool is_short = got.is_primitive();
  return Wrong(field, absl::StrCat("got ", is_short ? got.dump() : std::string(got.type_name()),
                                   ", expected ", expected));
}

// The member, or null after setting `status`.
const json* Member(const json& object, absl::string_view path, const char* name,
                   absl::Status& status) {
  const auto found = object.find(name);
  if (found != object.end()) return &*found;
  status = Wrong(absl::StrCat(path, name), "missing");
  return nullptr;
}

absl::Status ReadText(const json& in, absl::string_view field, std::string& out) {
  if (!in.is_string() || in.get_ref<const std::string&>().empty()) {
    return Wrong(field, in, "a string that is not empty");
  }
  out = in.get<std::string>();
  return absl::OkStatus();
}

// A whole number in [low, high].
absl::Status ReadInt(const json& in, absl::string_view field, int64_t low, int64_t high,
                     int64_t& out) {
  const bool fits = in.is_number_integer() &&
                    !(in.is_number_unsigned() &&
                      in.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int>::max()));
  out = fits ? in.get<int64_t>() : 0;
  if (fits && out >= low && out <= high) return absl::OkStatus();
  return Wrong(field, in, absl::StrCat("a whole number from ", low, " to ", high));
}

// Appends the numbers of an array with extents shape[depth...], in order, and fills in kAny.
absl::Status ReadNumbers(const json& in, const std::string& field, std::vector<int>& shape,
                         size_t depth, std::vector<double>& out) {
  if (depth == shape.size()) {
    if (!in.is_number()) return Wrong(field, in, "a number");
    out.push_back(in.get<double>());
    return absl::OkStatus();
  }
  if (!in.is_array()) {
    return Wrong(field, in, absl::StrCat("an array of ", shape.size() - depth, " dimensions"));
  }
  int& extent = shape[depth];
  if (extent == kAny) {
    if (in.empty()) return Wrong(field, "got no elements, expected at least 1");
    extent = static_cast<int>(in.size());
  }
  if (in.size() != static_cast<size_t>(extent)) {
    return Wrong(field, absl::StrCat("got ", in.size(), " elements, expected ", extent));
  }
  for (size_t i = 0; i < in.size(); ++i) {
    absl::Status status =
        ReadNumbers(in[i], absl::StrCat(field, "[", i, "]"), shape, depth + 1, out);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ReadArray(const json& object, absl::string_view path, const char* name,
                       std::vector<int>& shape, std::vector<double>& out) {
  absl::Status status;
  const json* const in = Member(object, path, name, status);
  if (in == nullptr) return status;
  return ReadNumbers(*in, absl::StrCat(path, name), shape, 0, out);
}

// [kv_heads] lists of numbers in [0, limit), each ascending.
template <typename Index>
absl::Status ReadChoice(const json& in, const std::string& field, int kv_heads, int limit,
                        std::vector<std::vector<Index>>& out) {
  if (!in.is_array() || in.size() != static_cast<size_t>(kv_heads)) {
    return Wrong(field, in, absl::StrCat("an array of ", kv_heads, " lists, one per KV head"));
  }
  for (size_t head = 0; head < in.size(); ++head) {
    const std::string list = absl::StrCat(field, "[", head, "]");
    if (!in[head].is_array() || in[head].empty()) {
      return Wrong(list, in[head], "a list that is not empty");
    }
    std::vector<Index>& choice = out.emplace_back();
    for (size_t i = 0; i < in[head].size(); ++i) {
      int64_t value = 0;
      const std::string place = absl::StrCat(list, "[", i, "]");
      absl::Status status = ReadInt(in[head][i], place, 0, limit - 1, value);
      if (!status.ok()) return status;
      if (!choice.empty() && static_cast<int64_t>(choice.back()) >= value) {
        return Wrong(place, absl::StrCat("got ", value, " after ", choice.back(),
                                         ", expected ascending numbers"));
      }
      choice.push_back(static_cast<Index>(value));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadProblem(const json& in, attention::reference::Problem& problem) {
  std::vector<int> q_shape = {kAny, kAny};
  absl::Status status = ReadArray(in, "", "q", q_shape, problem.q);
  if (!status.ok()) return status;
  std::vector<int> kv_shape = {kAny, kAny, q_shape[1]};
  status = ReadArray(in, "", "k", kv_shape, problem.k);
  if (status.ok()) status = ReadArray(in, "", "v", kv_shape, problem.v);
  if (!status.ok()) return status;
  problem.query_heads = q_shape[0];
  problem.head_dim = q_shape[1];
  problem.kv_heads = kv_shape[0];
  problem.tokens = kv_shape[1];
  if (problem.query_heads % problem.kv_heads == 0) return absl::OkStatus();
  return Wrong(
      "q", absl::StrCat("got ", problem.query_heads, " query heads, expected a multiple of the ",
                        problem.kv_heads, " KV heads of k"));
}

absl::Status ReadExpect(const json& in, const attention::reference::Problem& problem,
                        attention::reference::Answer& expect) {
  absl::Status status;
  const json* const selection = Member(in, "expect.", "selection", status);
  if (selection == nullptr) return status;
  status = ReadChoice(*selection, "expect.selection", problem.kv_heads, problem.tokens,
                      expect.selection);
  std::vector<int> output_shape = {problem.query_heads, problem.head_dim};
  if (status.ok()) status = ReadArray(in, "expect.", "output", output_shape, expect.output);
  if (status.ok() && in.contains("channels")) {
    status = ReadChoice(in["channels"], "expect.channels", problem.kv_heads, problem.head_dim,
                        expect.channels);
  }
  for (auto [name, out] : {std::pair{"alpha", &expect.alpha}, std::pair{"tau", &expect.tau}}) {
    std::vector<int> shape = {problem.query_heads};
    if (status.ok() && in.contains(name)) status = ReadArray(in, "expect.", name, shape, *out);
  }
  return status;
}

// InvalidArgument names the first member that is not one of `known`.
absl::Status OnlyKnown(const json& object, absl::string_view what,
                       std::initializer_list<absl::string_view> known) {
  for (const auto& [name, value] : object.items()) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "unknown ", what, " \"", name, "\"",
        known.size() == 0 ? absl::StrCat(", expected none")
                          : absl::StrCat(", expected one of ", absl::StrJoin(known, ", "))));
  }
  return absl::OkStatus();
}

// The words of attention::ParsePolicy, so that ranges and names have one definition.
absl::Status ReadSparq(const json& params, int head_dim, attention::Policy& policy) {
  absl::Status status =
      OnlyKnown(params, "param", {"r", "k", "window", "sinks", "group", "value_mean"});
  if (!status.ok()) return status;
  std::vector<std::string> parts;
  for (const auto& [name, value] : params.items()) {
    const bool is_word = name == "group" || name == "value_mean";
    if (is_word ? !value.is_string() : !value.is_number_integer()) {
      return Wrong(absl::StrCat("params.", name), value, is_word ? "a name" : "a whole number");
    }
    parts.push_back(absl::StrCat(name == "value_mean" ? "mean" : name, "=",
                                 is_word ? value.get<std::string>() : value.dump()));
  }
  for (const char* required : {"r", "k"}) {
    if (!params.contains(required)) return Wrong(absl::StrCat("params.", required), "missing");
  }
  const absl::StatusOr<attention::Policy> parsed =
      attention::ParsePolicy(absl::StrCat("sparq:", absl::StrJoin(parts, ",")));
  if (!parsed.ok()) return parsed.status();
  policy = *parsed;
  return attention::ValidatePolicy(policy, head_dim);
}

// What makes this one case unusable, while the file is well formed.
absl::Status ReadPolicy(const json& in, VectorCase& result) {
  absl::Status status =
      OnlyKnown(in, "field", {"name", "policy", "params", "q", "k", "v", "expect", "notes"});
  if (!status.ok()) return status;
  if (result.policy_name == "dense") {
    result.policy = attention::DensePolicy();
    status = OnlyKnown(in["params"], "param", {});
  } else {
    status = ReadSparq(in["params"], result.problem.head_dim, result.policy);
  }
  if (!status.ok()) return status;
  return OnlyKnown(in["expect"], "field of expect",
                   {"channels", "selection", "alpha", "tau", "output"});
}

absl::Status ReadCase(const json& in, VectorCase& result) {
  absl::Status status;
  const json* const policy = Member(in, "", "policy", status);
  if (policy == nullptr) return status;
  status = ReadText(*policy, "policy", result.policy_name);
  if (!status.ok()) return status;
  for (const char* name : {"params", "expect"}) {
    const json* const object = Member(in, "", name, status);
    if (object == nullptr) return status;
    if (!object->is_object()) return Wrong(name, *object, "an object");
  }
  const auto* const not_built =
      std::find(std::begin(kNotBuilt), std::end(kNotBuilt), result.policy_name);
  result.skipped = not_built != std::end(kNotBuilt);
  if (result.skipped) return absl::OkStatus();
  if (result.policy_name != "dense" && result.policy_name != "sparq") {
    result.refused = absl::InvalidArgumentError(
        absl::StrCat("unknown policy \"", result.policy_name, "\", expected one of dense, sparq, ",
                     absl::StrJoin(kNotBuilt, ", ")));
    return absl::OkStatus();
  }
  status = ReadProblem(in, result.problem);
  if (status.ok()) status = ReadExpect(in["expect"], result.problem, result.expect);
  if (status.ok()) result.refused = ReadPolicy(in, result);
  return status;
}

absl::StatusOr<json> ParseJson(absl::string_view text) {
  try {
    return json::parse(text.begin(), text.end());
  } catch (const json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("not JSON: ", error.what()));
  }
}

}  // namespace

absl::StatusOr<std::vector<VectorCase>> ParseVectors(absl::string_view text) {
  const absl::StatusOr<json> file = ParseJson(text);
  if (!file.ok()) return file.status();
  absl::Status status;
  if (!file->is_object()) return Wrong("file", *file, "an object");
  const json* const format = Member(*file, "", "format", status);
  if (format == nullptr) return status;
  int64_t version = 0;
  status = ReadInt(*format, "format", kFormat, kFormat, version);
  if (!status.ok()) return status;
  const json* const entries = Member(*file, "", "cases", status);
  if (entries == nullptr) return status;
  if (!entries->is_array() || entries->empty()) {
    return Wrong("cases", *entries, "an array that is not empty");
  }
  std::vector<VectorCase> cases;
  std::set<std::string> names;
  for (size_t i = 0; i < entries->size(); ++i) {
    const json& entry = (*entries)[i];
    const std::string place = absl::StrCat("cases[", i, "]");
    if (!entry.is_object()) return Wrong(place, entry, "an object");
    VectorCase& result = cases.emplace_back();
    const json* const name = Member(entry, absl::StrCat(place, "."), "name", status);
    if (name == nullptr) return status;
    status = ReadText(*name, absl::StrCat(place, ".name"), result.name);
    if (!status.ok()) return status;
    if (!names.insert(result.name).second) {
      return Wrong(absl::StrCat(place, ".name"), absl::StrCat("\"", result.name, "\" given twice"));
    }
    status = ReadCase(entry, result);
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("case ", result.name, ": ", status.message()));
    }
  }
  return cases;
}

absl::StatusOr<std::vector<VectorCase>> ReadVectorFile(const std::string& path) {
  const std::ifstream in(path, std::ios::binary);
  // Inserting turns errors into states, where an iterator throws: a folder opens and cannot be
  // read.
  std::ostringstream text;
  text << in.rdbuf();
  if (!in.is_open() || !text) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot be read, or is empty"));
  }
  absl::StatusOr<std::vector<VectorCase>> cases = ParseVectors(text.str());
  if (cases.ok()) return cases;
  return absl::Status(cases.status().code(), absl::StrCat(path, ": ", cases.status().message()));
}

}  // namespace terrace::policy_check
