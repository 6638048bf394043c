#!/usr/bin/env bash
# A submission in one command: train each of SEEDS with RUNNER, build and certify a record of each, merge them into one, copy that into
# STAGE (a clone of the contest's repository, say). Begun again, it goes on: what is trained or built is not done twice. --dry-run prints
# the commands and says what is missing; key=value overrides settings.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
command -v "$PYTHON" >/dev/null || { echo "error: no $PYTHON; run: make setup, or set PYTHON" >&2; exit 1; }
NAME=${NAME:-submission} SEEDS=${SEEDS:-1337 42 2025} RUNNER=${RUNNER:-runners/train_8xh100.sh} STAGE=${STAGE:-}
DRY=
[ "${1:-}" != --dry-run ] || { DRY=1; shift; }
[ -f "$RUNNER" ] || { echo "error: no RUNNER $RUNNER; there are: $(echo runners/train_*.sh)" >&2; exit 1; }
[ -z "$STAGE" ] || [ -d "$STAGE" ] || { echo "error: STAGE=$STAGE is no folder; clone the contest's repository there first" >&2; exit 1; }
run() { echo "+ $*"; [ -n "$DRY" ] || "$@"; }
trained() { grep -qs "^checkpoint: " "$1/train.log"; }

# Runs a command and keeps the last line it prints, a record's folder, in a file.
filed() {
  [ -z "$DRY" ] || { run "${@:2}"; return; }
  run "${@:2}" | tee "$1.log" || return $?
  tail -n 1 "$1.log" > "$1"
}

RECORDS=() READY=
for seed in $SEEDS; do
  folder=runs/${NAME}_seed$seed record=runs/${NAME}_seed$seed.record
  settings=("$@" "run_id=${NAME}_seed$seed" "seed=$seed" "out_path=$folder" "resume=$([ -e "$folder/checkpoint.npz" ] && echo true || echo false)")
  if [ ! -s "$record" ] && ! trained "$folder"; then
    # Everything that can be missing is said before the first clock starts.
    [ -n "$READY" ] || { bash "$RUNNER" --dry-run "${settings[@]}"; READY=1; }
    run bash "$RUNNER" "${settings[@]}"
  fi
  [ -s "$record" ] || filed "$record" "$PYTHON" build_submission.py --run "$folder" --dce --name "${NAME}_seed$seed"
  RECORDS+=("$(cat "$record" 2>/dev/null || echo "<record of seed $seed>")")
done
filed "runs/$NAME.record" "$PYTHON" -m trit.report.seeds --name "$NAME" "${RECORDS[@]}"
[ -z "$STAGE" ] || run cp -r "$(cat "runs/$NAME.record" 2>/dev/null || echo "<merged record>")" "$STAGE/records/"
