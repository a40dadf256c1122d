"""Models that differ in how much work they do, by a known share, and in nothing else."""

import shutil
import subprocess
import sys
from pathlib import Path

LAYERS = 100
SLOWER = {0: 100, 2: 102, 5: 105, 10: 110}
"""Per cent of more work -> layers, all of the same product and Relu: about a millisecond in all, on one core."""

_ROWS, _WIDTH = 32, 128


def bundle(work: Path, percent: int) -> Path:
    """Return a bundle of a network with so many per cent of layers more than `LAYERS`; it is built once."""
    out = work / f"work-{percent}"
    if not out.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        _write(work / f"work-{percent}.onnx", SLOWER[percent])
        command = [sys.executable, "-m", "edgec", "build", f"work-{percent}.onnx", "--target", "cpu"]
        subprocess.run([*command, "--profile", "fp32", "--no-verify", "--out", out.name], cwd=work, check=True)
    return out


def twin(work: Path) -> Path:
    """Return a copy of the bundle without more work: what CI compares are two folders, even where they are equal."""
    out = work / "twin-0"
    if not out.is_dir():
        shutil.copytree(bundle(work, 0), work / "twin-0.part", dirs_exist_ok=True)
        (work / "twin-0.part").rename(out)
    return out


def _write(path: Path, layers: int) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    # One matrix for all layers, which stays in the nearest cache: what differs is arithmetic alone.
    matrix = np.random.default_rng(0).standard_normal((_WIDTH, _WIDTH)) * 1.2 / _WIDTH**0.5
    nodes, value = [], "x"
    for layer in range(layers):
        after = "y" if layer == layers - 1 else f"after{layer}"
        nodes += [
            helper.make_node("MatMul", [value, "w"], [f"product{layer}"]),
            helper.make_node("Relu", [f"product{layer}"], [after]),
        ]
        value = after
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", _ROWS, _WIDTH]) for n in ("x", "y")]
    weights = [numpy_helper.from_array(matrix.astype(np.float32), "w")]
    graph = helper.make_graph(nodes, "work", ports[:1], ports[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
