// Runs a test body once per instruction set that is compiled in and that this machine has.
#ifndef TERRACE_TESTS_ATTENTION_SIMD_TARGETS_H_
#define TERRACE_TESTS_ATTENTION_SIMD_TARGETS_H_

#include <gtest/gtest.h>

#include <cstdint>

#include "hwy/highway.h"

namespace terrace::testing {

template <typename Body>
void ForEachSimdTarget(Body body) {
  const int64_t all = hwy::SupportedTargets() & HWY_TARGETS;
  for (int64_t left = all; left != 0; left &= left - 1) {
    const int64_t target = left & -left;
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    body();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_ATTENTION_SIMD_TARGETS_H_
