#!/usr/bin/env bash
# Trains on a Cloud TPU pod slice: the same command on every host, which find each other through the pod's metadata.
#
#   launch/tpu-pod.sh NAME ZONE [flags of the command]
#   launch/tpu-pod.sh my-v5e-64 us-west4-a --config=configs/vitb16_yfcc.py --config.data.path=/mnt/data/yfcc15m \
#     --workdir=/mnt/runs/vitb16_yfcc --config.mesh.fsdp=4
#
# COMMAND=transfer runs detailclip_jax.transfer in place of detailclip_jax.main.
# Each host needs the checkout and its environment in CHECKOUT (default: ~/detailclip_jax), for example by
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command=\
#     'git clone URL detailclip_jax && cd detailclip_jax && python3 -m venv .venv && .venv/bin/pip install -e . "jax[tpu]"'
# and data and workdir on a disk that all hosts share, such as Filestore.  A bucket mounted with gcsfuse is for data only:
# by default it cannot rename the folder of a checkpoint.
set -euo pipefail

if (($# < 3)) || [[ $1 == -* || $2 == -* ]]; then
  echo "usage: launch/tpu-pod.sh NAME ZONE --config=configs/NAME.py [flags of the command]" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
flags=$(printf ' %q' --distributed "$@")
run="cd ${CHECKOUT:-detailclip_jax} && .venv/bin/python -u -m"
module=${COMMAND:-main}
command="$run detailclip_jax.doctor --launch=$module$flags && .venv/bin/python -u -m detailclip_jax.$module$flags"
echo "on every host of $name: $command"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"
