#include "services/replay/progress_display.h"

#include <unistd.h>

#include <cstdio>

#include "absl/time/clock.h"

namespace terrace::replay {
namespace {

// So that short runs write nothing.
constexpr absl::Duration kRefresh = absl::Milliseconds(300);
// Back to the first column, and clear the line.
constexpr char kRestart[] = "\r\033[K";

}  // namespace

ProgressDisplay::ProgressDisplay()
    : terminal_(::isatty(STDERR_FILENO) == 1), last_shown_(absl::Now()) {}

ProgressDisplay::~ProgressDisplay() {
  if (shown_) std::fputs(kRestart, stderr);
}

bool ProgressDisplay::Due() const { return terminal_ && absl::Now() - last_shown_ >= kRefresh; }

void ProgressDisplay::Show(const std::string& line) {
  std::fprintf(stderr, "%s%s", kRestart, line.c_str());
  std::fflush(stderr);
  last_shown_ = absl::Now();
  shown_ = true;
}

}  // namespace terrace::replay
