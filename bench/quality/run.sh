#!/usr/bin/env bash
# edgec's quantization beside its peers', each in an environment of its own, judged by one evaluator.
# Usage: bash bench/quality/run.sh [python] [options of compare.py: --text FILE, --only, --checkpoints, --settings ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
shift || true
work=bench/.work/quality
make --no-print-directory .venv/.installed PYTHON="$python"
.venv/bin/python -c 'import matplotlib' 2>/dev/null || .venv/bin/pip install --quiet 'matplotlib>=3.9,<4'
for requirements in bench/quality/peers/*.txt; do
    peer=$(basename "$requirements" .txt)
    [ -e "$work/$peer/.installed" ] && continue
    "$python" -m venv "$work/$peer"
    "$work/$peer/bin/pip" install --quiet --requirement "$requirements"
    # What would bring GPU packages, or another torch, along comes without its dependencies.
    alone=$(sed -n 's/^# alone: //p' "$requirements")
    # shellcheck disable=SC2086 # several words
    [ -z "$alone" ] || "$work/$peer/bin/pip" install --quiet --no-deps --no-build-isolation $alone
    touch "$work/$peer/.installed"
done
PYTHONPATH=bench:bench/quality .venv/bin/python bench/quality/compare.py "$@"
