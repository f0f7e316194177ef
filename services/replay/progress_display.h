// A line on standard error that tells how far a replay has come.
#ifndef TERRACE_SERVICES_REPLAY_PROGRESS_DISPLAY_H_
#define TERRACE_SERVICES_REPLAY_PROGRESS_DISPLAY_H_

#include <string>

#include "absl/time/time.h"

namespace terrace::replay {

// ProgressDisplay rewrites one line in place a few times a second, and clears it in the end. Only
// on a terminal; elsewhere it writes nothing. Not thread-safe.
class ProgressDisplay {
 public:
  ProgressDisplay();
  ~ProgressDisplay();
  ProgressDisplay(const ProgressDisplay&) = delete;
  ProgressDisplay& operator=(const ProgressDisplay&) = delete;

  // Whether a line shown now would be written: spares the making of it.
  bool Due() const;
  void Show(const std::string& line);

 private:
  const bool terminal_;
  absl::Time last_shown_;
  bool shown_ = false;
};

}  // namespace terrace::replay

#endif  // TERRACE_SERVICES_REPLAY_PROGRESS_DISPLAY_H_
