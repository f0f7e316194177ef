// Waiting for what another process does: by asking again, and never for ever.
#ifndef TERRACE_TESTS_E2E_AWAIT_H_
#define TERRACE_TESTS_E2E_AWAIT_H_

#include <functional>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace terrace::testing {

// Long enough for a busy machine and a sanitizer: reaching it is a failure, not a measurement.
inline constexpr absl::Duration kPatience = absl::Seconds(60);

// Whether `condition` became true within `bound`.
inline bool Await(const std::function<bool()>& condition, absl::Duration bound = kPatience) {
  const absl::Time end = absl::Now() + bound;
  while (!condition()) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return true;
}

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_E2E_AWAIT_H_
