#!/usr/bin/env bash
# From nothing to a verified record on two CPU cores: corpus, tokenizer, training, build, record. Arguments override settings.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=.venv/bin/python
[ -x "$PYTHON" ] || { echo "error: no .venv; run: make setup" >&2; exit 1; }

$PYTHON -m trit.data.prepare --corpus pydocs --tokenizer sp_bpe_1024 --out data/pydocs_sp1024
$PYTHON train_gpt.py --config configs/demo.toml "$@" out_path=runs/demo
$PYTHON build_submission.py --run runs/demo --dce --name demo
