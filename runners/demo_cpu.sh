#!/usr/bin/env bash
# From nothing to a verified record on two CPU cores: corpus, tokenizer, training, build, record. --dry-run prints the commands; further
# arguments override settings.
set -euo pipefail
cd "$(dirname "$0")/.."
DRY=""
[ "${1:-}" != --dry-run ] || { DRY=echo; shift; }
PYTHON=${PYTHON:-.venv/bin/python}
command -v "$PYTHON" >/dev/null || { echo "error: no $PYTHON; run: make setup, or set PYTHON" >&2; exit 1; }
FREE=$(df -Pm . | awk 'NR == 2 { print $4 }')
[ "$FREE" -ge 500 ] || { echo "error: $FREE MB free here, 500 needed for text, checkpoint and record" >&2; exit 1; }

$DRY "$PYTHON" -m trit.data.prepare --corpus packagedocs --tokenizer sp_bpe_1024 --out data/packagedocs_sp1024
$DRY "$PYTHON" train_gpt.py --config configs/demo.toml "$@" out_path=runs/demo
$DRY "$PYTHON" build_submission.py --run runs/demo --dce --name demo
