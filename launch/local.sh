#!/usr/bin/env bash
# Runs one training as N processes on this machine, as on several hosts.
#
#   launch/local.sh N [flags of the command]
#   launch/local.sh 2 --config=configs/stickers.py --config.total_steps=20
#   CPU_DEVICES=4 launch/local.sh 2 --config=configs/stickers.py        # 8 devices in all
#
# COMMAND=transfer runs detailclip_jax.transfer in place of detailclip_jax.main.
# CPU_DEVICES: devices of each process (default 1).   PORT: port of process 0 (default: a free one).   PYTHON: interpreter
# (default: python, or .venv/bin/python if python lacks the package).   PREFLIGHT=0: skips the check.
# JAX_PLATFORMS: cpu unless set.  Each process prints the command it runs; Ctrl-C reaches all of them; if one
# fails, the others are ended.
set -euo pipefail

if [[ ! "${1:-}" =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/local.sh N [flags of the command], N = number of processes" >&2
  exit 2
fi
num_processes=$1
shift
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} JAX_NUM_CPU_DEVICES=${CPU_DEVICES:-1}

pids=()
stopped=0
stop() {
  stopped=143
  kill -TERM "${pids[@]}" 2>/dev/null || true
}
trap stop INT TERM

free_port() { "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# start MODULE FLAGS...: all processes, in the background
start() {
  local port id command
  port=${PORT:-$(free_port)}
  pids=()
  for ((id = 0; id < num_processes; id++)); do
    command=("$python" -m "$@" "--coordinator=127.0.0.1:$port" "--num-processes=$num_processes" "--process-id=$id")
    echo "process $id: JAX_PLATFORMS=$JAX_PLATFORMS JAX_NUM_CPU_DEVICES=$JAX_NUM_CPU_DEVICES ${command[*]}"
    "${command[@]}" &
    pids+=($!)
  done
}

# finish: waits for all; a process that failed cannot be waited for by the others: they get a moment to fail by themselves
finish() {
  local code status=0 pid
  while [[ -n "$(jobs -pr)" ]]; do
    code=0
    wait -n || code=$?
    if ((code != 0 && code != 130 && code != 143)); then
      [[ -z "$(jobs -pr)" ]] || sleep 5
      kill -KILL "${pids[@]}" 2>/dev/null || true
    fi
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || status=$?
  done
  return "$status"
}

if [[ ${PREFLIGHT:-1} != 0 ]]; then
  start detailclip_jax.doctor "--launch=${COMMAND:-main}" "$@"
  finish || exit $?
  ((stopped == 0)) || exit "$stopped"
fi
start "detailclip_jax.${COMMAND:-main}" "$@"
finish
