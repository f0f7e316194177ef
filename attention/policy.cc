#include "attention/policy.h"

#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace terrace::attention {
namespace {

template <typename Enum>
using Names = std::vector<std::pair<Enum, absl::string_view>>;

const Names<GroupScore>& GroupScoreNames() {
  static const auto* const names = new Names<GroupScore>{{GroupScore::kSumProb, "sum_prob"},
                                                         {GroupScore::kSumLogit, "sum_logit"},
                                                         {GroupScore::kMaxProb, "max_prob"}};
  return *names;
}

const Names<ValueMean>& ValueMeanNames() {
  static const auto* const names = new Names<ValueMean>{
      {ValueMean::kOff, "off"}, {ValueMean::kMean, "mean"}, {ValueMean::kResidual, "residual"}};
  return *names;
}

// "unknown" for a number that names nothing.
template <typename Enum>
absl::string_view NameOf(const Names<Enum>& names, Enum value) {
  for (const auto& [candidate, name] : names) {
    if (candidate == value) return name;
  }
  return "unknown";
}

template <typename Enum>
absl::Status ValidateEnum(absl::string_view parameter, const Names<Enum>& names, Enum value) {
  for (const auto& [candidate, name] : names) {
    if (candidate == value) return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("sparq ", parameter, ": got number ",
                                                 static_cast<int>(value), ", not one of the ",
                                                 names.size(), " defined"));
}

absl::Status ValidateRange(absl::string_view parameter, int value, int low, int high) {
  if (value >= low && value <= high) return absl::OkStatus();
  const std::string allowed = high == std::numeric_limits<int>::max()
                                  ? absl::StrCat("at least ", low)
                                  : absl::StrCat("[", low, ", ", high, "]");
  return absl::InvalidArgumentError(
      absl::StrCat("sparq ", parameter, ": got ", value, ", allowed is ", allowed));
}

absl::Status ValidateSparq(const SparqPolicy& policy, int head_dim) {
  constexpr int kAny = std::numeric_limits<int>::max();
  for (absl::Status status :
       {ValidateRange("r", policy.r, 1, head_dim), ValidateRange("k", policy.k, 1, kAny),
        ValidateRange("window", policy.window, 1, kAny),
        ValidateRange("sinks", policy.sinks, 0, kAny),
        ValidateEnum("group", GroupScoreNames(), policy.group_score),
        ValidateEnum("mean", ValueMeanNames(), policy.value_mean)}) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ParseInt(absl::string_view key, absl::string_view text, int& value) {
  if (absl::SimpleAtoi(text, &value)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("sparq ", key, ": got \"", text, "\", expected an integer"));
}

template <typename Enum>
absl::Status ParseEnum(absl::string_view key, absl::string_view text, const Names<Enum>& names,
                       Enum& value) {
  std::string allowed;
  for (const auto& [candidate, name] : names) {
    if (name == text) {
      value = candidate;
      return absl::OkStatus();
    }
    absl::StrAppend(&allowed, allowed.empty() ? "" : ", ", name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("sparq ", key, ": got \"", text, "\", expected one of ", allowed));
}

absl::Status ParseParameter(absl::string_view key, absl::string_view text, SparqPolicy& policy) {
  if (key == "r") return ParseInt(key, text, policy.r);
  if (key == "k") return ParseInt(key, text, policy.k);
  if (key == "window") return ParseInt(key, text, policy.window);
  if (key == "sinks") return ParseInt(key, text, policy.sinks);
  if (key == "group") return ParseEnum(key, text, GroupScoreNames(), policy.group_score);
  if (key == "mean") return ParseEnum(key, text, ValueMeanNames(), policy.value_mean);
  return absl::InvalidArgumentError(absl::StrCat(
      "sparq: unknown parameter \"", key, "\", expected r, k, window, sinks, group or mean"));
}

absl::StatusOr<Policy> ParseSparq(absl::string_view parameters) {
  SparqPolicy policy;
  std::vector<absl::string_view> seen;
  for (const absl::string_view part : absl::StrSplit(parameters, ',')) {
    const size_t equals = part.find('=');
    if (equals == absl::string_view::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("sparq: got \"", part, "\", expected name=value"));
    }
    const absl::string_view key = part.substr(0, equals);
    for (const absl::string_view earlier : seen) {
      if (earlier == key) {
        return absl::InvalidArgumentError(absl::StrCat("sparq ", key, ": given twice"));
      }
    }
    seen.push_back(key);
    absl::Status status = ParseParameter(key, part.substr(equals + 1), policy);
    if (!status.ok()) return status;
  }
  // r has no upper bound yet: text does not know the head.
  absl::Status status = ValidateSparq(policy, std::numeric_limits<int>::max());
  if (!status.ok()) return status;
  return policy;
}

}  // namespace

absl::Status ValidatePolicy(const Policy& policy, int head_dim) {
  const auto* const sparq = std::get_if<SparqPolicy>(&policy);
  return sparq == nullptr ? absl::OkStatus() : ValidateSparq(*sparq, head_dim);
}

absl::StatusOr<Policy> ParsePolicy(std::string_view policy) {
  // Not the same type where Abseil is built for C++14.
  absl::string_view text(policy.data(), policy.size());
  if (text == "dense") return DensePolicy{};
  if (absl::ConsumePrefix(&text, "sparq:")) return ParseSparq(text);
  return absl::InvalidArgumentError(absl::StrCat(
      "policy: got \"", text, "\", expected \"dense\" or \"sparq:r=<channels>,k=<rows>[,...]\""));
}

std::string PolicyName(const Policy& policy) {
  const auto* const sparq = std::get_if<SparqPolicy>(&policy);
  if (sparq == nullptr) return "dense";
  const SparqPolicy defaults;
  std::string name = absl::StrCat("sparq:r=", sparq->r, ",k=", sparq->k);
  if (sparq->window != defaults.window) absl::StrAppend(&name, ",window=", sparq->window);
  if (sparq->sinks != defaults.sinks) absl::StrAppend(&name, ",sinks=", sparq->sinks);
  if (sparq->group_score != defaults.group_score) {
    absl::StrAppend(&name, ",group=", NameOf(GroupScoreNames(), sparq->group_score));
  }
  if (sparq->value_mean != defaults.value_mean) {
    absl::StrAppend(&name, ",mean=", NameOf(ValueMeanNames(), sparq->value_mean));
  }
  return name;
}

}  // namespace terrace::attention
