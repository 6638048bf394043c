#!/usr/bin/env bash
# One GPU of any size does what eight H100s do in ten minutes, in eight times as long: the same tokens a step, in as many micro-batches as
# its memory asks for. --dry-run prints command and settings and says what is missing; key=value overrides. CONFIG chooses the preset.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
command -v "$PYTHON" >/dev/null || { echo "error: no $PYTHON; run: make setup, or set PYTHON" >&2; exit 1; }

MEMORY=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | sort -n | head -n 1) || true
MEMORY=$(( ${MEMORY:-0} / 1024 ))
PARTS=64
[ "$MEMORY" -lt 20 ] || PARTS=32
[ "$MEMORY" -lt 38 ] || PARTS=16
[ "$MEMORY" -lt 75 ] || PARTS=8
exec "$PYTHON" -m trit.start --gpus 1 --gpu-memory 10 --config "${CONFIG:-configs/ternary_10x768.toml}" \
  track.track=non_record_16mb train.max_wallclock_seconds=4720 train.grad_accum_steps=$PARTS run_id=one_gpu "$@"
