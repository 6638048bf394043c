#!/usr/bin/env bash
# Several machines of eight GPUs each: the same command on every one, with the same HEAD=host:port of one of them and NODES=how many.
# Under SLURM (srun, one task a machine) both are known. --dry-run prints command and settings and says what is missing; key=value overrides.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
command -v "$PYTHON" >/dev/null || { echo "error: no $PYTHON; run: make setup, or set PYTHON" >&2; exit 1; }

NODES=${NODES:-${SLURM_JOB_NUM_NODES:-2}}
if [ -z "${HEAD:-}" ] && [ -n "${SLURM_JOB_NODELIST:-}" ]; then
  HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):29500
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
exec "$PYTHON" -m trit.start --gpus "${GPUS:-8}" --gpu-memory 75 --nodes "$NODES" --rendezvous "${HEAD:-}" \
  --config "${CONFIG:-configs/ternary_10x768.toml}" track.track=non_record_16mb run_id=multi_node "$@"
