#!/usr/bin/env bash
# The core in an environment of its own: under 250 MB, without torch, and with its commands running.
# Usage: bash tests/core_install.sh PYTHON [BUNDLE]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
bundle=${2:-}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --constraint constraints.txt build hatchling 2>/dev/null \
    || "$folder/venv/bin/pip" install --quiet build hatchling
"$folder/venv/bin/python" -m build --wheel --no-isolation --outdir "$folder" . >/dev/null
rm -rf "$folder/venv"
"$python" -m venv "$folder/venv"
before=$(du -sm "$folder/venv" | cut -f1)
"$folder/venv/bin/pip" install --quiet --constraint constraints.txt "$folder"/edgec-*.whl
after=$(du -sm "$folder/venv" | cut -f1)
echo "core: $((after - before)) MB installed ($after MB with pip)"
[ $((after - before)) -lt 250 ]

cd "$folder"
edgec=$folder/venv/bin/edgec
"$folder/venv/bin/python" - <<'PY'
from importlib.util import find_spec
present = [name for name in ("torch", "transformers", "onnx", "onnx_ir", "sympy") if find_spec(name)]
assert not present, present
PY
"$edgec" --help >/dev/null
"$edgec" targets >/dev/null
"$edgec" profiles >/dev/null
checkpoint=$OLDPWD/examples/storyteller/checkpoint
"$edgec" inspect "$checkpoint" >/dev/null
"$edgec" plan "$checkpoint" >/dev/null
status=0
"$edgec" build "$checkpoint" --out "$folder/out" 2>"$folder/err" || status=$?
[ "$status" -eq 6 ]
grep -q 'edgec\[build\]' "$folder/err"
if [ -n "$bundle" ]; then
    "$edgec" run "$bundle" --prompt 'Once' --max-new-tokens 8
    "$edgec" bench "$bundle" --prompt-tokens 32 --new-tokens 8 --repeats 1
    "$edgec" eval "$bundle" --eval-text "$OLDPWD/examples/storyteller/data/heldout.txt"
fi
echo "core: ok"
