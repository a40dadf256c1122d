#!/usr/bin/env bash
# EfficientNet-Lite0 in int8, dense and with fewer channels, on ONNX Runtime and OpenVINO.
# Usage: bash bench/channels/run.sh [python] [options of benchmark.py]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
shift || true
make --no-print-directory .venv/.installed PYTHON="$python"
export PYTHONPATH=bench:bench/networks HF_HUB_OFFLINE=1
.venv/bin/python bench/networks/models.py
.venv/bin/python bench/networks/data.py
.venv/bin/python bench/channels/benchmark.py "$@"
