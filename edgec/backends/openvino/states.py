"""Show the hidden states inside an artifact: its model in memory, with each of them as one more output."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgec.backends.backend import Mode, is_hidden_state
from edgec.backends.openvino import MARKER
from edgec.backends.openvino.session import EXACT, OpenVinoSession, leave_float
from edgec.errors import BundleError


def trace(artifact: Path, input_ids: NDArray[np.int64], mode: Mode) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the hidden states and the logits of one prompt; see `edgec.backends.backend.Backend`."""
    # An output more ends a fusion, and bfloat16 then rounds elsewhere: the logits are those of the model as it ships.
    logits = OpenVinoSession(artifact, mode).step(input_ids)
    path = artifact / MARKER
    feed = {
        "input_ids": input_ids,
        "attention_mask": np.ones_like(input_ids),
        "position_ids": np.arange(input_ids.shape[1])[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    properties = {"PERFORMANCE_HINT": "LATENCY", **(EXACT if mode == "exact" else {})}
    try:
        model = ov.Core().read_model(path)
        if mode == "exact":
            leave_float(model)
        taken = {name for port in model.inputs for name in port.get_names()}
        nodes = [node for node in model.get_ordered_ops() if is_hidden_state(node.get_friendly_name())]
        first = len(model.outputs)
        model.add_outputs([node.output(0) for node in nodes])
        request = ov.compile_model(model, "CPU", properties).create_infer_request()
        results = request.infer({name: value for name, value in feed.items() if name in taken})
    except RuntimeError as error:
        raise BundleError(f"OpenVINO cannot run the model: {error}", where=str(path)) from error
    for number, node in enumerate(nodes, first):
        yield node.get_friendly_name(), np.asarray(results[number], np.float32)
    yield "logits", logits
