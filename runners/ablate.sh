#!/usr/bin/env bash
# A study from its file to table and picture: STUDY names the file, JOBS how many trainings run at once. --dry-run prints the command and
# says what is missing; further arguments go to python -m trit.study (--only NAME ..., --out FOLDER). Begun again, it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
command -v "$PYTHON" >/dev/null || { echo "error: no $PYTHON; run: make setup, or set PYTHON" >&2; exit 1; }

STUDY=${STUDY:-configs/studies/seven_ablations.toml}
exec "$PYTHON" -m trit.start --study "$STUDY" "$@" --jobs "${JOBS:-2}" --plot "runs/$(basename "$STUDY" .toml).png"
