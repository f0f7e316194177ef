#!/usr/bin/env bash
# Configures (where needed) and builds one preset of CMakePresets.json:
#   deploy/build.sh PRESET [TARGET...]      without a target: what is shipped; terrace_tests: the tests
# The binaries lie in build/PRESET/bin. TERRACE_JOBS sets the number of parallel jobs.
set -euo pipefail

if (($# == 0)) || [[ $1 == -* ]]; then
  sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
preset=$1
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=build/$preset

# CMake itself notices a changed CMakeLists.txt, but not a changed preset.
if [[ ! -f $build/build.ninja || CMakePresets.json -nt $build/build.ninja ]]; then
  cmake --preset "$preset"
fi
targets=()
if (($# > 0)); then targets=(--target "$@"); fi
cmake --build "$build" -j "${TERRACE_JOBS:-$(nproc)}" "${targets[@]}"
