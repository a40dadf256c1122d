"""Show the hidden states inside the graph that an engine is compiled from, as ONNX Runtime computes them."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from edgec.backends.backend import Mode
from edgec.backends.onnx_cpu.states import States, hidden_states
from edgec.backends.tensorrt.recipe import MODEL_FILE
from edgec.backends.tensorrt.session import SESSION_ENTRIES, GraphSession, graph_for


def trace(artifact: Path, input_ids: NDArray[np.int64], mode: Mode) -> States:
    """Yield the hidden states and the logits of one prompt; see `edgec.backends.backend.Backend`."""
    logits = GraphSession(artifact, mode).step(input_ids)
    with TemporaryDirectory(prefix="edgec-") as scratch:
        path, _ = graph_for(artifact / MODEL_FILE, "exact" if mode == "exact" else "evaluate", Path(scratch))
        yield from hidden_states(path.read_bytes(), path, input_ids, SESSION_ENTRIES)
    yield "logits", logits
