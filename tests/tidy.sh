#!/usr/bin/env bash
# clang-tidy over the sources of attention/, kvstore/ and services/ that differ from a commit; one
# takes up to a minute. A header is checked through the source of its name or, where there is none,
# one that includes it.
#   tests/tidy.sh [PRESET] [COMMIT]
# Default: release, and where the branch left origin's, or the commit before the last. COMMIT may be
# the empty tree, $(git hash-object -t tree /dev/null), for all sources. Needs a build of PRESET.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
preset=${1:-release}
git=(git -c 'safe.directory=*')

base=${2:-$("${git[@]}" merge-base HEAD origin/HEAD 2>/dev/null || true)}
if [[ -z $base || $base == "$("${git[@]}" rev-parse HEAD)" ]]; then base=HEAD~1; fi
if ! "${git[@]}" rev-parse --verify --quiet "$base^{tree}" >/dev/null; then
  printf 'tidy: there is no %s to compare with: nothing is checked\n' "$base"
  exit 0
fi

including() {
  grep -rlF "#include \"$1\"" --include="$2" attention kvstore services | sort
}

# The source through which a file is checked; nothing for one that no source includes. Headers that
# only headers include are looked for through these.
source_of() {
  local file=$1 includer
  case $file in
    *.cc) printf '%s\n' "$file" && return ;;
    *.h) ;;
    *) return 0 ;;
  esac
  if [[ -f ${file%.h}.cc ]]; then
    printf '%s\n' "${file%.h}.cc"
    return
  fi
  for includer in $(including "$file" '*.cc') $(including "$file" '*.h'); do
    includer=$(source_of "$includer")
    if [[ -n $includer ]]; then
      printf '%s\n' "$includer"
      return
    fi
  done
}

mapfile -t sources < <(
  {
    "${git[@]}" diff --name-only --diff-filter=d "$base" -- attention kvstore services
    "${git[@]}" ls-files --others --exclude-standard -- attention kvstore services
  } | while read -r file; do source_of "$file"; done | sort -u
)
printf 'tidy: %d sources to check for what differs from %s\n' "${#sources[@]}" "$base"
if ((${#sources[@]} == 0)); then exit 0; fi

# clang cannot read headers that gcc has precompiled.
commands=$(mktemp -d)
trap 'rm -rf "$commands"' EXIT
sed -E 's/ -Winvalid-pch -include [^ ]+//' "build/$preset/compile_commands.json" \
  >"$commands/compile_commands.json"
printf '%s\0' "${sources[@]}" |
  xargs -0 -n 1 -P "${TERRACE_JOBS:-$(nproc)}" clang-tidy --quiet -p "$commands"
