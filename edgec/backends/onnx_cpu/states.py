"""Show the hidden states inside an artifact: its graph in memory, with each of them as one more output."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from edgec.backends.backend import Mode, is_hidden_state
from edgec.backends.onnx_cpu.exact import EXACT_ENTRIES, exact_model
from edgec.backends.onnx_cpu.files import ALL_LOGITS_FILE
from edgec.backends.onnx_cpu.session import OnnxCpuSession
from edgec.errors import BundleError

States = Iterator[tuple[str, NDArray[np.float32]]]


def trace(artifact: Path, input_ids: NDArray[np.int64], mode: Mode) -> States:
    """Yield the hidden states and the logits of one prompt; see `edgec.backends.backend.Backend`."""
    logits = OnnxCpuSession(artifact, mode).step(input_ids)
    path = artifact / ALL_LOGITS_FILE
    if path.is_file():  # other tools name no hidden states
        if mode == "exact":
            yield from hidden_states(exact_model(path), path, input_ids, EXACT_ENTRIES)
        else:
            yield from hidden_states(path.read_bytes(), path, input_ids)
    yield "logits", logits


def hidden_states(
    graph: bytes, path: Path, input_ids: NDArray[np.int64], entries: Mapping[str, str] = MappingProxyType({})
) -> States:
    """Run a decoder graph on tokens (1, n) with an empty cache; yield its hidden states as float32.

    Args:
        graph: an ONNX model.
        path: its file; external data is looked for beside it.
        input_ids: the tokens.
        entries: ONNX Runtime session configuration entries.

    Raises:
        BundleError: ONNX Runtime cannot load or run it.
    """
    model = onnx.ModelProto.FromString(graph)
    names = [name for node in model.graph.node for name in node.output if is_hidden_state(name)]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    folder = {"session.model_external_initializers_file_folder_path": str(path.parent)}
    for key, value in {**entries, **folder}.items():
        options.add_session_config_entry(key, value)
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        outputs = session.run(names, _feed(session.get_inputs(), input_ids))
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        raise BundleError(f"ONNX Runtime cannot run the model: {error}", where=str(path)) from error
    for name, output in zip(names, outputs, strict=True):
        yield name, output.astype(np.float32, copy=False)


def _feed(inputs: Sequence[Any], input_ids: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    known = {
        "input_ids": input_ids,
        "attention_mask": np.ones_like(input_ids),
        "position_ids": np.arange(input_ids.shape[1])[None],
    }
    return {value.name: known[value.name] if value.name in known else _no_past(value) for value in inputs}


def _no_past(value: Any) -> NDArray[Any]:
    """Return what a cache (batch, heads, past, head_dim) holds before the first token."""
    _, heads, _, head_dim = value.shape
    dtypes = {"tensor(float16)": np.float16, "tensor(int8)": np.int8}
    return np.zeros((1, heads, 0, head_dim), dtypes.get(value.type, np.float32))
