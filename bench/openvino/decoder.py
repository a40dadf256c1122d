"""Run a decoder IR in OpenVINO's own runtime: the same few lines for every artifact that is compared."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

# What decides speed and exactness; the artifact's own runtime options and the machine have a say in it.
_SETTINGS = (
    *("INFERENCE_PRECISION_HINT", "EXECUTION_MODE_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE"),
    *("KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION", "NUM_STREAMS", "INFERENCE_NUM_THREADS"),
)


class Decoder:
    """A stateful decoder with one row; `step` and `reset` are those of `edgec.backends.session.Session`.

    Args:
        directory: holds openvino_model.xml, made by edgec or by optimum-intel.
        config: what `compile_model` is told, the same for every artifact.
    """

    def __init__(self, directory: Path, config: Mapping[str, str]) -> None:
        compiled = ov.Core().compile_model(directory / "openvino_model.xml", "CPU", dict(config))
        self.settings = {name: str(compiled.get_property(name)) for name in _SETTINGS}
        self._inputs = {value.any_name for value in compiled.inputs}
        self._request = compiled.create_infer_request()
        self.reset()

    def reset(self, batch: int = 1) -> None:
        """Forget everything, and take `batch` rows from now on."""
        self._request.reset_state()
        self._batch, self._length = batch, 0

    def step(self, input_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append tokens (batch, new) and return their logits (batch, new, vocab), valid until the next step."""
        start, end = self._length, self._length + input_ids.shape[1]
        feed = {
            "input_ids": np.ascontiguousarray(input_ids),
            "attention_mask": np.ones((self._batch, end), np.int64),
            "position_ids": np.tile(np.arange(start, end), (self._batch, 1)),
            "beam_idx": np.arange(self._batch, dtype=np.int32),
        }
        self._request.infer({name: value for name, value in feed.items() if name in self._inputs}, share_inputs=True)
        self._length = end
        logits: NDArray[np.float32] = self._request.get_tensor("logits").data
        return logits
