// Which rows a decode step attends to: the policies and their parameters.
#ifndef TERRACE_ATTENTION_POLICY_H_
#define TERRACE_ATTENTION_POLICY_H_

#include <string>
#include <string_view>
#include <variant>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace terrace::attention {

// All visible rows.
struct DensePolicy {};

// How the approximate scores of the query heads of a group become one score per row.
enum class GroupScore { kSumProb = 1, kSumLogit = 2, kMaxProb = 3 };

// What stands in for the rows that were not selected.
enum class ValueMean { kOff = 1, kMean = 2, kResidual = 3 };

// SparQ (arXiv 2312.04985): r channels of K choose k rows per KV head.
struct SparqPolicy {
  // Channels, [1, head_dim].
  int r = 0;
  // Rows per KV head: window, sinks and current token included; grows to hold them. At least 1.
  int k = 0;
  // Most recent rows that are always selected, the current token among them; at least 1.
  int window = 1;
  // First rows that are always selected.
  int sinks = 0;
  GroupScore group_score = GroupScore::kSumProb;
  ValueMean value_mean = ValueMean::kOff;
};

using Policy = std::variant<DensePolicy, SparqPolicy>;

// InvalidArgument naming the parameter, what was got and what is allowed.
absl::Status ValidatePolicy(const Policy& policy, int head_dim);

// "dense" or "sparq:r=16,k=128[,window=32][,sinks=4][,group=sum_prob|sum_logit|max_prob]
// [,mean=off|mean|residual]". InvalidArgument names the part that is wrong.
absl::StatusOr<Policy> ParsePolicy(std::string_view text);

// The inverse of ParsePolicy; parameters at their defaults are left out.
std::string PolicyName(const Policy& policy);

}  // namespace terrace::attention

#endif  // TERRACE_ATTENTION_POLICY_H_
