#include "services/policy_check/comparison.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <iterator>
#include <limits>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace terrace::policy_check {
namespace {

using attention::reference::Answer;
using attention::reference::Problem;

constexpr size_t kShownRows = 4;

void Raise(std::optional<double>& largest, double error) {
  largest = std::max(largest.value_or(0), error);
}

// Compares what belongs to one case; collects problems and errors.
class Comparer {
 public:
  Comparer(const Expectation& expectation, const Answer& got)
      : expectation_(expectation),
        problem_(expectation.truth.problem),
        got_(got),
        sparq_(std::get_if<attention::SparqPolicy>(&expectation.truth.policy)) {}

  Comparison Run(bool tells_tau) {
    if (!SizesAgree(tells_tau)) return std::move(result_);
    Channels();
    if (tells_tau) Tau();
    Expected expected;
    for (int head = 0; head < problem_.kv_heads; ++head) {
      const Rows rows = SelectionOf(head);
      if (rows != Rows::kWrong) ExpectGroup(head, rows, expected);
    }
    Alpha(expected);
    Output(expected);
    return std::move(result_);
  }

 private:
  // How a selection stands to the expected one.
  enum class Rows { kSame, kAllowed, kWrong };

  // What the query heads must show; heads without an expectation are absent.
  struct Expected {
    std::vector<int> heads;
    std::vector<double> alpha;   // [heads]
    std::vector<double> output;  // [heads][head_dim]
  };

  template <typename... Parts>
  void AddProblem(const Parts&... parts) {
    result_.problems.push_back(absl::StrCat(expectation_.name, ": ", parts...));
  }

  bool SizeIs(absl::string_view field, size_t got, size_t expected) {
    if (got == expected) return true;
    AddProblem(field, ": got ", got, " values, expected ", expected);
    return false;
  }

  bool SizesAgree(bool tells_tau) {
    const auto heads = static_cast<size_t>(problem_.query_heads);
    const auto groups = static_cast<size_t>(problem_.kv_heads);
    bool agree = SizeIs("alpha", got_.alpha.size(), heads);
    agree &= SizeIs("output", got_.output.size(), heads * problem_.head_dim);
    agree &= SizeIs("selection", got_.selection.size(), groups);
    agree &= SizeIs("channels", got_.channels.size(), sparq_ == nullptr ? 0 : groups);
    return agree & (!tells_tau || SizeIs("tau", got_.tau.size(), sparq_ == nullptr ? 0 : heads));
  }

  void Channels() {
    for (size_t head = 0; head < expectation_.answer.channels.size(); ++head) {
      if (head >= got_.channels.size()) return AddProblem("channels: got none, expected some");
      const std::vector<int32_t>& got = got_.channels[head];
      const std::vector<int32_t>& expected = expectation_.answer.channels[head];
      if (got == expected) continue;
      AddProblem("channels of KV head ", head, ": got [", absl::StrJoin(got, ", "), "], expected [",
                 absl::StrJoin(expected, ", "), "]");
    }
  }

  void Tau() {
    for (size_t head = 0; head < expectation_.answer.tau.size(); ++head) {
      if (head >= got_.tau.size()) return AddProblem("tau: got none, expected some");
      const double expected = expectation_.answer.tau[head];
      const double error = std::abs(got_.tau[head] - expected);
      const double relative = error == 0 ? 0 : error / std::abs(expected);
      Raise(result_.errors.tau, relative);
      if (relative <= expectation_.tolerance.tau) continue;
      AddProblem(
          absl::StrFormat("tau of head %d: got %.9g, expected %.9g, relative error %.1e, "
                          "allowed %.0e",
                          head, got_.tau[head], expected, relative, expectation_.tolerance.tau));
    }
  }

  bool IsForced(uint32_t row) const {
    return sparq_ != nullptr && (static_cast<int64_t>(row) < sparq_->sinks ||
                                 static_cast<int64_t>(row) >= problem_.tokens - sparq_->window);
  }

  // The least score that the policy chose of its own.
  double KthScore(int head) const {
    double kth = std::numeric_limits<double>::infinity();
    if (sparq_ == nullptr) return kth;
    for (const uint32_t row : expectation_.truth.answer.selection[head]) {
      if (!IsForced(row)) kth = std::min(kth, expectation_.truth.answer.score[head][row]);
    }
    return kth;
  }

  bool IsSelection(int head) {
    const std::vector<uint32_t>& rows = got_.selection[head];
    const bool ascending =
        std::adjacent_find(rows.begin(), rows.end(), std::greater_equal<>()) == rows.end();
    if (!ascending || rows.empty() || rows.back() >= static_cast<uint32_t>(problem_.tokens)) {
      AddProblem("selection of KV head ", head, ": got [", absl::StrJoin(rows, ", "),
                 "], expected ascending positions below ", problem_.tokens);
      return false;
    }
    const size_t expected = expectation_.answer.selection[head].size();
    if (rows.size() == expected) return true;
    AddProblem("selection of KV head ", head, ": got ", rows.size(), " rows, expected ", expected);
    return false;
  }

  // Whether `row`, which one selection has and the other has not, may differ.
  bool MayDiffer(int head, uint32_t row, bool got_it, double kth) const {
    if (sparq_ == nullptr || IsForced(row)) return false;
    const double score = expectation_.truth.answer.score[head][row];
    if (std::abs(score - kth) <= expectation_.tolerance.band * std::abs(kth)) return true;
    const Answer* const rounded = expectation_.moved_by_rounding;
    return rounded != nullptr && std::binary_search(rounded->selection[head].begin(),
                                                    rounded->selection[head].end(), row) == got_it;
  }

  Rows SelectionOf(int head) {
    if (!IsSelection(head)) return Rows::kWrong;
    const std::vector<uint32_t>& got = got_.selection[head];
    const std::vector<uint32_t>& expected = expectation_.answer.selection[head];
    std::vector<uint32_t> differing;
    std::set_symmetric_difference(got.begin(), got.end(), expected.begin(), expected.end(),
                                  std::back_inserter(differing));
    if (differing.empty()) return Rows::kSame;
    const double kth = KthScore(head);
    std::vector<uint32_t> unexpected;
    std::vector<uint32_t> missed;
    size_t wrong = 0;
    for (const uint32_t row : differing) {
      const bool got_it = std::binary_search(got.begin(), got.end(), row);
      (got_it ? unexpected : missed).push_back(row);
      if (!MayDiffer(head, row, got_it, kth)) ++wrong;
    }
    if (wrong == 0) {
      result_.errors.moved_rows += static_cast<int>(unexpected.size());
      return Rows::kAllowed;
    }
    // The selections are of one size, so that the rows that differ pair up.
    std::string pairs;
    for (size_t i = 0; i < std::min(missed.size(), kShownRows); ++i) {
      absl::StrAppend(&pairs, i == 0 ? "" : ", ", "got position ", unexpected[i],
                      ScoreText(head, unexpected[i]), " where ", missed[i],
                      ScoreText(head, missed[i]), " is expected");
    }
    AddProblem("selection of KV head ", head, ": ", pairs,
               missed.size() > kShownRows ? ", ..." : "", "; ", wrong, " of ", differing.size(),
               " rows may not differ",
               absl::StrFormat(" (band %.0e around the k-th score %.6g)",
                               expectation_.tolerance.band, kth));
    return Rows::kWrong;
  }

  std::string ScoreText(int head, uint32_t row) const {
    if (sparq_ == nullptr) return "";
    if (IsForced(row)) return " (sink or window)";
    return absl::StrFormat(" (score %.6g)", expectation_.truth.answer.score[head][row]);
  }

  void ExpectGroup(int kv_head, Rows rows, Expected& expected) {
    const int group = problem_.query_heads / problem_.kv_heads;
    const auto dim = static_cast<std::ptrdiff_t>(problem_.head_dim);
    for (int i = 0; i < group; ++i) expected.heads.push_back(kv_head * group + i);
    if (rows == Rows::kAllowed) {
      const GroupAnswer truth = AnswerFor(expectation_.truth, kv_head, got_.selection[kv_head]);
      expected.alpha.insert(expected.alpha.end(), truth.alpha.begin(), truth.alpha.end());
      expected.output.insert(expected.output.end(), truth.output.begin(), truth.output.end());
      return;
    }
    const Answer& answer = expectation_.answer;
    if (!answer.alpha.empty()) {
      const auto alpha = answer.alpha.begin() + std::ptrdiff_t{kv_head} * group;
      expected.alpha.insert(expected.alpha.end(), alpha, alpha + group);
    }
    const auto output = answer.output.begin() + std::ptrdiff_t{kv_head} * group * dim;
    expected.output.insert(expected.output.end(), output, output + group * dim);
  }

  void Alpha(const Expected& expected) {
    if (expectation_.answer.alpha.empty()) return;
    for (size_t i = 0; i < expected.heads.size(); ++i) {
      const double got = got_.alpha[expected.heads[i]];
      const double error = std::abs(got - expected.alpha[i]);
      Raise(result_.errors.alpha, error);
      if (error <= expectation_.tolerance.alpha) continue;
      AddProblem(absl::StrFormat(
          "alpha of head %d: got %.9g, expected %.9g, error %.1e, allowed "
          "%.0e",
          expected.heads[i], got, expected.alpha[i], error, expectation_.tolerance.alpha));
    }
  }

  void Output(const Expected& expected) {
    if (expected.heads.empty()) return;
    const auto dim = static_cast<size_t>(problem_.head_dim);
    const auto got_at = [&](size_t i) {
      return got_.output[expected.heads[i / dim] * dim + i % dim];
    };
    double error = 0;
    double norm = 0;
    for (size_t i = 0; i < expected.output.size(); ++i) {
      error += std::pow(got_at(i) - expected.output[i], 2);
      norm += std::pow(expected.output[i], 2);
    }
    const double relative = error == 0 ? 0 : std::sqrt(error / norm);
    result_.errors.output = relative;
    if (relative <= expectation_.tolerance.output) return;
    // If the whole is off by more than the tolerance, so is at least one element by more than the
    // tolerance times the root mean square.
    const double allowed = expectation_.tolerance.output *
                           std::sqrt(norm / static_cast<double>(expected.output.size()));
    size_t first = 0;
    while (first + 1 < expected.output.size() &&
           std::abs(got_at(first) - expected.output[first]) <= allowed) {
      ++first;
    }
    AddProblem(absl::StrFormat(
        "output: relative error %.1e, allowed %.0e; first off at head %d, element %d: got %.9g, "
        "expected %.9g",
        relative, expectation_.tolerance.output, expected.heads[first / dim], first % dim,
        got_at(first), expected.output[first]));
  }

  const Expectation& expectation_;
  const Problem& problem_;
  const Answer& got_;
  // Null for dense.
  const attention::SparqPolicy* const sparq_;
  Comparison result_;
};

}  // namespace

Comparison Compare(const Expectation& expectation, const Answer& got, bool tells_tau) {
  return Comparer(expectation, got).Run(tells_tau);
}

}  // namespace terrace::policy_check
