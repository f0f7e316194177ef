#!/usr/bin/env bash
# Builds everything and runs every test:
#   tests/run.sh [PRESET] [CTEST ARGUMENT...]     default preset: release
# For example: tests/run.sh asan -R block_store
# The last line says how it went, and what was skipped stands above it.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
preset=release
if (($# > 0)) && [[ $1 != -* ]]; then
  preset=$1
  shift
fi
build=build/$preset
report=$build/ctest.txt
log=$build/Testing/Temporary/LastTest.log

# GoogleTest counts a skipped case as passed; its name and reason stand in the test's output. A
# Python test prints the same lines.
skipped_cases() {
  awk '
    reason_next { reason = $0; reason_next = 0 }
    /: Skipped$/ { reason_next = 1 }
    /^\[  SKIPPED \] .* \([0-9]+ ms\)$/ {
      print "  " $4 ": " (reason == "" ? "?" : reason)
      reason = ""
    }
  ' "$log"
}

deploy/install-packages.sh
deploy/build.sh "$preset" all terrace_tests

export TSAN_OPTIONS=${TSAN_OPTIONS:-suppressions=$PWD/tests/tsan.supp}
rm -f "$log"
rc=0
ctest --test-dir "$build" --output-on-failure --no-tests=error -j "${TERRACE_JOBS:-$(nproc)}" "$@" |
  tee "$report" || rc=$?

skipped=$(
  if [[ -f $log ]]; then skipped_cases; fi
  awk '/\*\*\*Skipped|\*\*\*Not Run/ {print "  " $4 ": did not run"}' "$report"
)
if [[ -n $skipped ]]; then printf '\nSkipped:\n%s\n' "$skipped"; fi

summary=$(grep -E '^[0-9]+% tests passed' "$report" || echo 'no test ran')
skip_count=$(grep -c . <<<"$skipped" || true)
if ((rc == 0)); then verdict=PASS; else verdict=FAIL; fi
printf '\n%s (%s): %s; %s skipped\n' "$verdict" "$preset" "$summary" "$skip_count"
exit "$rc"
