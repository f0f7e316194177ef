#!/usr/bin/env bash
# Builds Terrace and shows it at work on this machine: a store and a worker as processes of their
# own, a small real model decoding over them, dense and with SparQ, and the tiers afterwards.
#
#   deploy/demo.sh [--keep] [--embedded] [--tokens N] [--help]
#     --keep        leave the processes running and print what to call next
#     --embedded    one process: a worker with the engine inside
#     --tokens N    tokens to generate with each policy (default 32)
#
# HOST_BYTES sets the host tier's budget. The default holds the prompt's score index and a part
# of its rows; the rest lives on disk, as it would with prompts of real size.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly BIN=build/release/bin
readonly MODEL=services/frontend/model/tiny
readonly DOCUMENTS=services/frontend/documents
readonly HOST_BYTES=${HOST_BYTES:-20MiB}
readonly START_SECONDS=60 STOP_SECONDS=20
# About an eighth of the bytes that dense attention reads.
readonly POLICIES=(--policy dense --policy 'sparq:r=24,k=256,window=64')

keep=false
embedded=false
tokens=32
run_dir=''
step_pid=''
daemon_pids=()

usage() {
  sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

die() {
  printf 'demo: %s\n' "$*" >&2
  exit 1
}

heading() {
  printf '\n== %s\n' "$*"
}

parse_arguments() {
  while (($# > 0)); do
    case $1 in
      --keep) keep=true ;;
      --embedded) embedded=true ;;
      --tokens)
        (($# > 1)) || die "--tokens needs a number"
        tokens=$2
        shift
        ;;
      --tokens=*) tokens=${1#*=} ;;
      -h | --help)
        usage
        exit 0
        ;;
      *) die "unknown argument $1; see --help" ;;
    esac
    shift
  done
  [[ $tokens =~ ^[1-9][0-9]*$ ]] || die "--tokens takes a positive number, not '$tokens'"
}

# Runs a command to its end. Not as bash's foreground child, because bash would run a trap only
# after that; and in a process group of its own, which `stop` ends as a whole.
step() {
  printf '%s\n\n' "\$ $*"
  setsid "$@" &
  step_pid=$!
  local rc=0
  wait "$step_pid" || rc=$?
  step_pid=''
  if ((rc != 0)); then
    print_logs
    die "$1 failed with exit code $rc"
  fi
}

# start NAME ARGUMENT...: starts terrace-NAME on a free loopback port; see `address` for it.
start() {
  local name=$1
  shift
  local command=("$BIN/terrace-$name" --listen 127.0.0.1:0 --port-file "$run_dir/$name.port" "$@")
  printf '%s\n' "\$ ${command[*]}"
  # Ctrl-C must not reach all processes at once: `cleanup` stops them in order.
  setsid "${command[@]}" >"$run_dir/$name.log" 2>&1 </dev/null &
  daemon_pids+=("$!")
  await "$name" "$!"
}

# Waits until terrace-NAME has written its port; dies with the logs if it never does.
await() {
  local name=$1 pid=$2 deadline=$((SECONDS + START_SECONDS))
  until [[ $(cat "$run_dir/$name.port" 2>/dev/null) =~ ^[0-9]+$ ]]; do
    if ! kill -0 "$pid" 2>/dev/null; then
      print_logs
      die "terrace-$name ended before it served"
    elif ((SECONDS >= deadline)); then
      print_logs
      die "terrace-$name does not serve after $START_SECONDS s"
    fi
    sleep 0.05
  done
  printf 'serves on %s, process %s\n' "$(address "$name")" "$pid"
}

address() {
  printf '127.0.0.1:%s' "$(<"$run_dir/$1.port")"
}

# The ends of all daemons' logs.
print_logs() {
  local log
  for log in "$run_dir"/*.log; do
    [[ -f $log ]] || continue
    printf -- '--- the end of %s\n' "$(basename "$log")"
    tail -n 30 "$log"
    printf -- '---\n'
  done >&2
}

# Asks a process group to end (a daemon drains), and kills it if that takes too long.
stop() {
  local pid=$1 deadline=$((SECONDS + STOP_SECONDS))
  kill -TERM -- "-$pid" 2>/dev/null || return 0
  while kill -0 "$pid" 2>/dev/null; do
    if ((SECONDS >= deadline)); then
      echo "demo: process $pid does not end; killed" >&2
      kill -KILL -- "-$pid" 2>/dev/null || true
      break
    fi
    sleep 0.05
  done
  wait "$pid" 2>/dev/null || true
}

# Stops in reverse order: the worker first, so that the store it needs is still there.
cleanup() {
  trap '' INT TERM
  if [[ -n $step_pid ]]; then stop "$step_pid"; fi
  local i
  for ((i = ${#daemon_pids[@]} - 1; i >= 0; i--)); do stop "${daemon_pids[i]}"; done
  if [[ -n $run_dir ]]; then rm -rf "$run_dir"; fi
}

start_daemons() {
  local engine=(--host-bytes "$HOST_BYTES" --disk-path "$run_dir/blocks" --disk-bytes 1GiB)
  if $embedded; then
    heading "Starting a worker with the engine inside, host tier $HOST_BYTES"
    start attention-worker --engine embedded "${engine[@]}"
  else
    heading "Starting a store, host tier $HOST_BYTES, and a worker in front of it"
    start kv-store "${engine[@]}"
    start attention-worker --engine remote --stores "$(address kv-store)"
  fi
}

print_next_calls() {
  local worker=$1 handle pids
  pids=$(printf '%s\n' "${daemon_pids[@]}" | tac | xargs) # the worker before its store
  handle=$("$BIN/terracectl" --endpoint "$worker" sequences -o json |
    grep -o '"handle": *"[^"]*"' | head -n 1 | cut -d '"' -f 4) || true
  [[ -n $handle ]] || handle=HANDLE
  heading 'Still running; try'
  cat <<TEXT
$BIN/terracectl --endpoint $worker tiers
$BIN/terracectl --endpoint $worker describe $handle
$BIN/terrace-generate --model $MODEL --attention $worker \\
  --prompt-file $DOCUMENTS/northanger_prompt.txt --tokens 200 --policy sparq:r=16,k=96,window=32

To stop:  kill $pids && tail --pid=${pids##* } -f /dev/null && rm -r $run_dir
TEXT
}

main() {
  parse_arguments "$@"
  trap cleanup EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM

  heading 'Packages and build'
  deploy/install-packages.sh # in the foreground: sudo may ask for a password
  step deploy/build.sh release terrace-kv-store terrace-attention-worker terracectl \
    terrace-generate

  run_dir=$(mktemp -d "${TMPDIR:-/tmp}/terrace-demo.XXXXXX")
  start_daemons
  local worker
  worker=$(address attention-worker)

  heading 'A model reads a novel and goes on writing, densely and sparsely'
  step "$BIN/terrace-generate" --model "$MODEL" --attention "$worker" \
    --prompt-file "$DOCUMENTS/northanger_prompt.txt" \
    --score-file "$DOCUMENTS/northanger_continuation.txt" --tokens "$tokens" "${POLICIES[@]}" \
    --keep-sequence

  heading 'Where its keys and values are now'
  step "$BIN/terracectl" --endpoint "$worker" tiers
  step "$BIN/terracectl" --endpoint "$worker" sequences

  if $keep; then
    print_next_calls "$worker"
    trap - EXIT
  else
    heading 'Stopping'
    cleanup
    trap - EXIT
    echo 'done'
  fi
}

main "$@"
