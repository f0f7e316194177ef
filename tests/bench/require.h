// A benchmark of a wrong answer is worth nothing: it ends the process instead.
#ifndef TERRACE_TESTS_BENCH_REQUIRE_H_
#define TERRACE_TESTS_BENCH_REQUIRE_H_

#include <cstdlib>
#include <iostream>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace terrace::bench {

inline void Require(bool right, absl::string_view what) {
  if (right) return;
  std::cerr << "wrong: " << what << std::endl;
  std::exit(1);
}

inline void RequireOk(const absl::Status& status, absl::string_view what) {
  Require(status.ok(), std::string(what) + ": " + status.ToString());
}

template <typename T>
T RequireOk(absl::StatusOr<T> value, absl::string_view what) {
  RequireOk(value.status(), what);
  return *std::move(value);
}

}  // namespace terrace::bench

#endif  // TERRACE_TESTS_BENCH_REQUIRE_H_
