#!/usr/bin/env bash
# The gate's own quality: false alarms, power and coverage, on a quiet machine and beside a program that computes all
# the time. Goes on where it stopped.
# Usage: bash bench/gate/run.sh [python] [minutes of each]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
minutes=${2:-120}
work=bench/.work/gate
make --no-print-directory .venv/.installed PYTHON="$python"
if [ ! -e $work/pyperf/.installed ]; then
    "$python" -m venv $work/pyperf
    $work/pyperf/bin/pip install --quiet -r bench/gate/peer-requirements.txt
    touch $work/pyperf/.installed
fi
for condition in quiet hog; do
    .venv/bin/python bench/gate/campaign.py --condition $condition --minutes "$minutes"
done
.venv/bin/python bench/gate/report.py
