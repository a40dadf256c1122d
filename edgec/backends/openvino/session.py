"""Run a decoder artifact in OpenVINO; the key-value cache lives in the inference request.

It takes every stateful model with the inputs of optimum-intel's exports: edgec's artifacts and those.
"""

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from edgec.backends.backend import Mode
from edgec.backends.openvino import MARKER
from edgec.backends.session import check_batch, check_ids, check_length, check_rewind, in_pieces, token_feed
from edgec.backends.settings import read_settings
from edgec.errors import BundleError

Ids = NDArray[np.int64]
# Float32 all through: what is left against the canonical graph is rounding.
EXACT = {
    "EXECUTION_MODE_HINT": "ACCURACY",
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


class OpenVinoSession:
    """A decoder in OpenVINO's CPU plugin; see `edgec.backends.session.Session`.

    Args:
        directory: the artifact.
        mode: see `edgec.backends.backend.Mode`.
        threads: number of threads; None leaves it to OpenVINO.
        max_length: the most tokens in the cache; the artifact's context length by default, and at most.
        config: plugin properties.

    Raises:
        BundleError: the artifact is incomplete or damaged.
        UsageError: `max_length` is more than the context length.
    """

    def __init__(
        self,
        directory: Path,
        mode: Mode,
        *,
        threads: int | None = None,
        max_length: int | None = None,
        config: dict[str, str] | None = None,
    ) -> None:
        settings = read_settings(directory)
        self.max_length = check_length(max_length, settings.context_length, directory)
        self.vocab_size = settings.vocab_size
        self.batch, self.length = 1, 0
        self._last_only = mode == "generate"
        self._path = directory / MARKER
        properties = {"PERFORMANCE_HINT": "LATENCY", **(EXACT if mode == "exact" else {}), **(config or {})}
        if threads:
            properties["INFERENCE_NUM_THREADS"] = str(threads)
        compiled = _compile(self._path, properties, mode)
        self._inputs = {name for port in compiled.inputs for name in port.get_names()}
        self._request = compiled.create_infer_request()
        self._rows = np.zeros(1, np.int32)

    def step(self, input_ids: Ids) -> NDArray[np.float32]:
        """Append tokens (batch, new) to the cache; return logits (batch, new or 1, vocab)."""
        check_ids(self, input_ids, self._path)
        return in_pieces(self._run, input_ids, last_only=self._last_only)

    def _run(self, input_ids: Ids) -> NDArray[np.float32]:
        feed = {**token_feed(self, input_ids), "beam_idx": self._rows}
        try:
            results = self._request.infer({name: value for name, value in feed.items() if name in self._inputs})
        except RuntimeError as error:
            raise BundleError(f"OpenVINO cannot run the model: {error}", where=str(self._path)) from error
        self.length += input_ids.shape[1]
        self._rows = np.arange(self.batch, dtype=np.int32)
        return np.array(results["logits"], np.float32)

    def reset(self, batch: int = 1) -> None:
        """Forget everything, and take `batch` rows from now on."""
        check_batch(batch)
        self._request.reset_state()
        self.batch, self.length = batch, 0
        self._rows = np.arange(batch, dtype=np.int32)

    def reorder(self, rows: Ids) -> None:
        """Make cache row i what row `rows[i]` was; the number of rows may change."""
        # The model itself gathers the rows when it runs next.
        self._rows = self._rows[rows]
        self.batch = len(rows)

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`."""
        check_rewind(self, length)
        for state in self._request.query_state():
            state.state = ov.Tensor(np.ascontiguousarray(state.state.data[:, :, :length]))
        self.length = length


def _compile(path: Path, properties: dict[str, str], mode: Mode) -> Any:
    if not path.is_file():
        raise BundleError(f"the artifact lacks '{path.name}'", where=str(path), hint="copy or build it again")
    try:
        model = ov.Core().read_model(path)
        if mode == "generate":
            last_logits_only(model)
        elif mode == "exact":
            leave_float(model)
        return ov.compile_model(model, "CPU", properties)
    except RuntimeError as error:
        raise BundleError(
            f"OpenVINO cannot load the model: {error}", where=str(path), hint="copy or build it again"
        ) from error


def last_logits_only(model: ov.Model) -> None:
    """Make `model` give the logits of each row's last token only: (batch, 1, vocab).

    The output matrix is a good part of a prompt's work. openvino_genai does the same to the models that it loads.
    """
    node = model.output("logits").get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    hidden = node.input_value(0)
    node.input(0).replace_source_output(op.gather(hidden, np.array([-1], np.int64), np.int64(1)).output(0))
    model.validate_nodes_and_infer_types()


def leave_float(model: ov.Model) -> None:
    """Take the rounding of activations with static scales out of `model`."""
    for node in model.get_ops():
        if node.get_type_name() == "FakeQuantize":
            node.output(0).replace(node.input_value(0))
    model.validate_nodes_and_infer_types()
