#!/usr/bin/env bash
# edgec beside onnxruntime-genai's model builder: build time, peak memory, and speed of the two artifacts.
# Usage: bash bench/builder/run.sh [python]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
work=bench/.work
make --no-print-directory .venv/.installed PYTHON="$python"
if [ ! -e $work/peer/.installed ]; then
    "$python" -m venv $work/peer
    $work/peer/bin/pip install --quiet -r bench/builder/peer-requirements.txt
    touch $work/peer/.installed
fi
PYTHONPATH=bench .venv/bin/python bench/builder/compare.py
