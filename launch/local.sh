#!/usr/bin/env bash
# Runs one training as N processes on this machine: what several hosts do, in small.
#
#   launch/local.sh N [flags of detailclip_jax.main]
#   launch/local.sh 2 --config=configs/stickers.py --config.total_steps=20
#   CPU_DEVICES=4 launch/local.sh 2 --config=configs/stickers.py        # 8 devices in all
#
# CPU_DEVICES: devices of each process (default 1).   PORT: of process 0 (default: a free one).   PYTHON: interpreter.
# JAX_PLATFORMS: cpu unless set.  Each process prints the command it runs; Ctrl-C reaches all of them, and when one
# fails the others are ended.
set -euo pipefail

if [[ ! "${1:-}" =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/local.sh N [flags of detailclip_jax.main], N = number of processes" >&2
  exit 2
fi
num_processes=$1
shift
python=${PYTHON:-python}
port=${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} JAX_NUM_CPU_DEVICES=${CPU_DEVICES:-1}

pids=()
stop() { kill -TERM "${pids[@]}" 2>/dev/null || true; }
trap stop INT TERM

for ((id = 0; id < num_processes; id++)); do
  command=("$python" -m detailclip_jax.main "$@"
    "--coordinator=127.0.0.1:$port" "--num_processes=$num_processes" "--process_id=$id")
  echo "process $id: JAX_PLATFORMS=$JAX_PLATFORMS JAX_NUM_CPU_DEVICES=$JAX_NUM_CPU_DEVICES ${command[*]}"
  "${command[@]}" &
  pids+=($!)
done

# A process that failed cannot be waited for by the others: they get a moment to fail by themselves.
while [[ -n "$(jobs -pr)" ]]; do
  code=0
  wait -n || code=$?
  if ((code != 0 && code != 130 && code != 143)); then
    sleep 5
    kill -KILL "${pids[@]}" 2>/dev/null || true
  fi
done

status=0
for pid in "${pids[@]}"; do
  wait "$pid" || status=$?
done
exit "$status"
