#!/usr/bin/env bash
# edgec beside optimum-cli export openvino: build time, peak memory, size, speed and perplexity of the artifacts.
# Usage: bash bench/openvino/run.sh [python] [text for perplexity]
set -euo pipefail
python=${1:-python3}
text=${2:+$(realpath "$2")}
cd "$(dirname "$0")/../.."
peer=bench/.work/peer-openvino
make --no-print-directory .venv/.installed PYTHON="$python"
if [ ! -e $peer/.installed ]; then
    "$python" -m venv $peer
    $peer/bin/pip install --quiet -r bench/openvino/peer-requirements.txt
    # Without its dependencies: see peer-requirements.txt.
    $peer/bin/pip install --quiet --no-deps optimum-intel==2.2.0
    touch $peer/.installed
fi
PYTHONPATH=bench .venv/bin/python bench/openvino/compare.py ${text:+--text "$text"}
