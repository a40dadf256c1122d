#!/usr/bin/env bash
# What pruning costs and gains on SmolLM2-135M, beside llm-compressor in an environment of its own.
# Usage: bash bench/prune/run.sh [python] [options of benchmark.py: --text FILE, --parts, --again ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
shift || true
make --no-print-directory .venv/.installed PYTHON="$python"
peer=bench/.work/quality/llmcompressor # the one of bench/quality
if [ ! -e "$peer/.installed" ]; then
    "$python" -m venv "$peer"
    "$peer/bin/pip" install --quiet --requirement bench/quality/peers/llmcompressor.txt
    touch "$peer/.installed"
fi
# -P: no script of this folder hides a package.
PYTHONPATH=bench:bench/quality:bench/prune .venv/bin/python -P bench/prune/benchmark.py "$@"
