#include "services/frontend/progress_line.h"

#include <unistd.h>

#include <cstdio>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace terrace::frontend {
namespace {

constexpr absl::Duration kRefresh = absl::Milliseconds(200);

}  // namespace

ProgressLine::ProgressLine(std::string what, int64_t total)
    : what_(std::move(what)),
      total_(total),
      terminal_(isatty(STDERR_FILENO) == 1),
      start_(absl::Now()) {}

ProgressLine::~ProgressLine() {
  if (unfinished_) std::fputc('\n', stderr);
}

std::string ProgressLine::Text(int64_t done, absl::Time now) const {
  const double seconds = absl::ToDoubleSeconds(now - start_);
  const double rate = seconds > 0 ? static_cast<double>(done) / seconds : 0;
  if (done == total_) {
    return absl::StrFormat("%s: %d tokens, %.0f tokens/s, %.1f s", what_, done, rate, seconds);
  }
  const double left = rate > 0 ? static_cast<double>(total_ - done) / rate : 0;
  return absl::StrFormat("%s: %d of %d tokens, %.0f tokens/s, %.0f s left", what_, done, total_,
                         rate, left);
}

void ProgressLine::Update(int64_t done) {
  const absl::Time now = absl::Now();
  const bool finished = done == total_;
  if (!finished && (!terminal_ || now - last_shown_ < kRefresh)) return;
  last_shown_ = now;
  // The escape clears what a longer line left behind.
  std::fprintf(stderr, "%s%s%s", terminal_ ? "\r\033[K" : "", Text(done, now).c_str(),
               finished ? "\n" : "");
  std::fflush(stderr);
  unfinished_ = !finished;
}

}  // namespace terrace::frontend
