#!/usr/bin/env bash
# Two GPUs foretell a run on eight: the same steps of the same tokens in four times as long, judged by plain windows, without what the
# evaluator learns on the way. --dry-run prints command and settings and says what is missing; key=value overrides. CONFIG: the preset.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
command -v "$PYTHON" >/dev/null || { echo "error: no $PYTHON; run: make setup, or set PYTHON" >&2; exit 1; }

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
export NCCL_NET=${NCCL_NET:-Socket}
exec "$PYTHON" -m trit.start --gpus 2 --gpu-memory 75 --config "${CONFIG:-configs/ternary_10x768.toml}" \
  track.track=non_record_16mb train.max_wallclock_seconds=2360 train.grad_accum_steps=4 \
  eval.eval_stride=2048 eval.ngram_order=0 eval.ttt_scope=none eval.fit_temperature=false run_id=two_gpu_proxy "$@"
