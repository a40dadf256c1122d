#!/usr/bin/env bash
# Three networks quantized by edgec's peers, each in an environment of its own, and raced and judged in one run.
# Usage: bash bench/networks/run.sh [python] [--text FILE] [options of compare.py]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
shift || true
text=()
if [ "${1:-}" = --text ]; then
    text=(--text "$2")
    shift 2
fi
work=bench/.work/networks
make --no-print-directory .venv/.installed PYTHON="$python"
for peer in ort nncf; do
    [ -e "$work/env-$peer/.installed" ] && continue
    "$python" -m venv "$work/env-$peer"
    "$work/env-$peer/bin/pip" install --quiet --requirement "bench/networks/peers/$peer.txt"
    touch "$work/env-$peer/.installed"
done
export PYTHONPATH=bench:bench/networks HF_HUB_OFFLINE=1
.venv/bin/python bench/networks/models.py
.venv/bin/python bench/networks/data.py "${text[@]}"
.venv/bin/python bench/networks/make.py
.venv/bin/python bench/networks/build_edgec.py
.venv/bin/python bench/networks/compare.py "$@"
