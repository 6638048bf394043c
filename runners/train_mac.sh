#!/usr/bin/env bash
# From nothing to a verified record on a Mac: the demo, trained, built and scored with MLX. --dry-run prints the commands; further
# arguments override settings. Memory chooses batch and vocabulary: Apple GPUs want more tokens a step than two CPU cores do.
set -euo pipefail
cd "$(dirname "$0")/.."
DRY=""
[ "${1:-}" != --dry-run ] || { DRY=echo; shift; }
missing() { echo "error: $1" >&2; exit 1; }

[ "$(uname -s)" = Darwin ] || missing "this is $(uname -s), not macOS; here: make demo, or python train_gpt_mlx.py --config configs/demo.toml"
[ "$(sysctl -n hw.optional.arm64 2>/dev/null || echo 0)" = 1 ] || missing "MLX needs an Apple chip (M1 or newer); on this Intel Mac: make demo"

# A Python under Rosetta says x86_64 and finds no MLX wheel.
native() { [ "$("$1" -c 'import platform, sys; print(platform.machine(), sys.version_info >= (3, 11))' 2>/dev/null)" = "arm64 True" ]; }
PYTHON=.venv/bin/python
if ! native $PYTHON; then
  [ ! -e .venv ] || missing ".venv holds no arm64 Python 3.11 or newer; remove the folder and run this again"
  for found in python3 python3.13 python3.12 python3.11 "${HOMEBREW_PREFIX:-/opt/homebrew}/bin/python3" ""; do
    [ -z "$found" ] || ! native "$found" || break
  done
  [ -n "$found" ] || missing "no arm64 Python 3.11 or newer; brew install python@3.12, or the macOS installer of python.org"
  $DRY make setup PYTHON="$found"
fi
[ -n "$DRY" ] || $PYTHON -c 'import mlx.core as mx; assert mx.metal.is_available()' ||
  missing "MLX does not start on this Mac's GPU; it needs macOS 14 or newer: .venv/bin/python -m pip install --force-reinstall mlx"

MEMORY=$(( $(sysctl -n hw.memsize) >> 30 ))
[ "$MEMORY" -ge 4 ] || missing "$MEMORY GiB of memory; the smallest choice needs 4"
VOCABULARY=1024 TOKENS=16384
[ "$MEMORY" -ge 24 ] || TOKENS=8192
[ "$MEMORY" -ge 12 ] || VOCABULARY=512 TOKENS=4096
echo "$MEMORY GiB of memory: $TOKENS tokens a step, vocabulary of $VOCABULARY"
DATA=data/packagedocs_sp$VOCABULARY
$DRY $PYTHON -m trit.data.prepare --corpus packagedocs --tokenizer sp_bpe_$VOCABULARY --out $DATA
$DRY $PYTHON train_gpt_mlx.py --config configs/demo.toml run_id=mac data_path=$DATA model.vocab_size=$VOCABULARY train.train_batch_tokens=$TOKENS "$@" out_path=runs/mac
$DRY $PYTHON build_submission.py --run runs/mac --dce --backend mlx --name mac
