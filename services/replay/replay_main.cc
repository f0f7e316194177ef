// terrace-replay: what share of a recorded trace each placement policy serves.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "services/replay/hit_report.h"
#include "services/replay/progress_display.h"
#include "services/replay/reference_trace.h"
#include "services/replay/replay.h"
#include "services/replay/replay_args.h"

namespace terrace::replay {
namespace {

void Say(absl::string_view text) {
  std::fprintf(stderr, "terrace-replay: %.*s\n", static_cast<int>(text.size()), text.data());
}

ExitCode Print(const std::string& text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (written && std::fflush(stdout) == 0) return ExitCode::kOk;
  Say(absl::StrCat("cannot write the output: ", std::strerror(errno)));
  return ExitCode::kFailed;
}

absl::StatusOr<ReferenceTrace> Read(const std::string& path) {
  ProgressDisplay display;
  return ReadTrace(path, [&](size_t references) {
    if (display.Due()) display.Show(absl::StrCat(path, ": ", references, " references read"));
  });
}

HitCounts Replay(const ReferenceTrace& trace, const ReplayArgs& args) {
  ProgressDisplay display;
  HitCounts counts{.policies = args.policies, .capacities = args.capacities, .hits = {}};
  for (const ReplayPolicy& policy : args.policies) {
    std::vector<uint64_t>& hits = counts.hits.emplace_back();
    for (const uint64_t capacity : args.capacities) {
      const auto progress = [&](uint64_t references) {
        if (!display.Due()) return;
        display.Show(absl::StrCat(Name(policy), ", ", capacity, " blocks: ", references, " of ",
                                  trace.blocks.size(), " references"));
      };
      hits.push_back(CountHits(trace, {policy, capacity}, args.options, progress));
    }
  }
  return counts;
}

ExitCode Run(const ReplayArgs& args) {
  const absl::StatusOr<ReferenceTrace> trace = Read(args.trace);
  if (!trace.ok()) {
    Say(trace.status().message());
    return ExitCode::kBadTrace;
  }
  if (trace->torn_bytes > 0) {
    Say(absl::StrCat(args.trace, ": left out the last ", trace->torn_bytes,
                     " bytes, a step that was never finished"));
  }
  const HitCounts counts = Replay(*trace, args);
  return Print(args.json ? HitJson(*trace, counts) : HitTable(*trace, counts));
}

}  // namespace
}  // namespace terrace::replay

int main(int argc, char** argv) {
  using namespace terrace::replay;
  const ParsedArgs parsed = ParseArgs(argc, argv);
  if (!parsed.exit) return static_cast<int>(Run(parsed.args));
  if (*parsed.exit == ExitCode::kOk) return static_cast<int>(Print(parsed.message));
  std::fputs(parsed.message.c_str(), stderr);
  return static_cast<int>(*parsed.exit);
}
