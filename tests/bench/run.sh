#!/usr/bin/env bash
# Builds the release preset's benchmarks of the store and runs them:
#   tests/bench/run.sh store [--quick] [--bin FOLDER] [--dir FOLDER]
# Prints three tables: what the store costs over the least that its work would take, PutBlocks and
# GetBlocks beside redis-server, and what layouts of RocksDB give. --quick takes seconds, checks that
# results are right and measures nothing; --bin takes binaries that are built already; --dir says
# where data go (a disk; default: the build folder).
set -euo pipefail

usage() {
  sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
}

bin=
dir=
quick=()
[[ ${1:-} == store ]] || usage
shift
while (($# > 0)); do
  case $1 in
    --quick) quick=(--quick) ;;
    --bin) bin=$(realpath "${2:?--bin needs a folder}") && shift ;;
    --dir) dir=$(realpath "${2:?--dir needs a folder}") && shift ;;
    *) usage ;;
  esac
  shift
done

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [[ -z $bin ]]; then
  deploy/build.sh release store_bench block_bench disk_layout_bench
  bin=$PWD/build/release/bin
fi
dir=${dir:-$(dirname "$bin")}

printf '\n== Store against bare copies and reads\n'
"$bin/store_bench" --dir "$dir" --runs 5 "${quick[@]}"
printf '\n== Blocks of connectors against Redis\n'
"$bin/block_bench" --dir "$dir" --runs 5 "${quick[@]}"
printf '\n== Layouts in RocksDB\n'
"$bin/disk_layout_bench" --dir "$dir" --runs 3 "${quick[@]}"
