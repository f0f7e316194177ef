// A line on standard error that tells how far a long piece of work has come.
#ifndef TERRACE_SERVICES_FRONTEND_PROGRESS_LINE_H_
#define TERRACE_SERVICES_FRONTEND_PROGRESS_LINE_H_

#include <cstdint>
#include <string>

#include "absl/time/time.h"

namespace terrace::frontend {

// ProgressLine writes "prefill: 512 of 9001 tokens, 1630 tokens/s, 5 s left". On a terminal it is
// rewritten in place a few times a second; elsewhere there is only the last line. Not
// thread-safe.
class ProgressLine {
 public:
  // `what` begins the line.
  ProgressLine(std::string what, int64_t total);
  // Ends the line if it stands unfinished on a terminal.
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void Update(int64_t done);

 private:
  std::string Text(int64_t done, absl::Time now) const;

  const std::string what_;
  const int64_t total_;
  const bool terminal_;
  const absl::Time start_;
  absl::Time last_shown_ = absl::InfinitePast();
  bool unfinished_ = false;
};

}  // namespace terrace::frontend

#endif  // TERRACE_SERVICES_FRONTEND_PROGRESS_LINE_H_
