#!/usr/bin/env bash
# The contest's machine: eight H100s, ten minutes. --dry-run prints command and settings and says what is missing; key=value overrides.
# CONFIG chooses the preset, PYTHON the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
command -v "$PYTHON" >/dev/null || { echo "error: no $PYTHON; run: make setup, or set PYTHON" >&2; exit 1; }

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
export NCCL_NET=${NCCL_NET:-Socket} # one machine needs no InfiniBand plug-in, and NCCL dies of a broken one
exec "$PYTHON" -m trit.start --gpus 8 --gpu-memory 75 --config "${CONFIG:-configs/ternary_10x768.toml}" "$@"
