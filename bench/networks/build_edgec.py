"""Have edgec quantize the networks, from the checkpoints as their authors ship them and with its default profile.

Run in edgec's environment: python build_edgec.py [--networks NETWORK ...]
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import paired
from contestants import NETWORKS
from models import CHECKPOINTS
from sources import WORK

BUNDLES = WORK / "edgec"
BACKENDS = {"onnxruntime": "onnx_cpu", "openvino": "openvino"}
SOURCES = {
    "minilm": [str(CHECKPOINTS / "minilm")],
    "efficientnet_lite0": [
        "efficientnet_lite0:build",
        *("--state", str(CHECKPOINTS / "efficientnet-lite0.pth")),
        *("--input", "pixel_values:float32[batch,3,224,224]"),
    ],
    "silero_vad": [
        str(CHECKPOINTS / "silero_vad.onnx"),
        *("--fix", "sr=16000", "--input", "input:float32[1,576]", "--input", "state:float32[2,1,128]"),
    ],
}
THREADS = 2


def build(network: str, runtime: str) -> None:
    """Build a bundle with the command line; what its process took is written beside it."""
    out = BUNDLES / f"{network}-{runtime}"
    shutil.rmtree(out, ignore_errors=True)
    data = str(WORK / "data" / f"{network}.calibration.npz")
    options = ["--target", "cpu", "--backend", BACKENDS[runtime], "--profile", "int8", "--calibration-data", data]
    command = [sys.executable, "-m", "edgec", "build", *SOURCES[network], *options, "--no-verify", "--out", str(out)]
    process = paired.run(command, OMP_NUM_THREADS=str(THREADS), PYTHONPATH=_path())
    made = {"process_s": process.seconds, "peak_bytes": process.peak_bytes}
    (out / "made.json").write_text(json.dumps(made, indent=1) + "\n")
    print(f"{network} on {runtime}: {process.seconds:.0f} s, {process.peak_bytes / 1e6:.0f} MB", flush=True)


def _path() -> str:
    """Return where Python looks for modules: the factory of efficientnet_lite0 is in this folder."""
    return os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    for network in parser.parse_args().networks:
        for runtime in BACKENDS:
            build(network, runtime)


if __name__ == "__main__":
    main()
