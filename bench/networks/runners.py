"""Run a network's artifact in ONNX Runtime or in OpenVINO, as an application would: no edgec code."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feed = Mapping[str, NDArray[Any]]
Run = Callable[[Feed], dict[str, NDArray[Any]]]

RUNTIMES = ("onnxruntime", "openvino")


def open_artifact(path: Path, runtime: str, threads: int, *, exact: bool = False) -> Run:
    """Load a model file; what a feed has beyond its inputs is left out.

    Args:
        path: .onnx, or for OpenVINO .xml.
        runtime: one of `RUNTIMES`.
        threads: of one run.
        exact: have OpenVINO compute float operators in float32 where its default is bfloat16.
    """
    return (_onnxruntime if runtime == "onnxruntime" else _openvino)(path, threads, exact=exact)


def _onnxruntime(path: Path, threads: int, *, exact: bool) -> Run:
    import onnxruntime as ort

    del exact  # it always is
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads of a session that is not running would take time from the one that is.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]
    return lambda feed: dict(zip(outputs, session.run(outputs, {name: feed[name] for name in inputs}), strict=True))


def _openvino(path: Path, threads: int, *, exact: bool) -> Run:
    import openvino as ov

    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if exact:
        config["INFERENCE_PRECISION_HINT"] = "f32"
    core = ov.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", config)
    request = compiled.create_infer_request()
    # A port may have several names, and not every tool that saves a model keeps them all.
    inputs = [sorted(port.names) for port in compiled.inputs]
    outputs = [(name, port) for port in compiled.outputs for name in port.names]

    def run(feed: Feed) -> dict[str, NDArray[Any]]:
        given = {number: next(feed[name] for name in names if name in feed) for number, names in enumerate(inputs)}
        found = request.infer(given, share_inputs=True, share_outputs=True)
        return {name: np.array(found[port]) for name, port in outputs}

    return run
