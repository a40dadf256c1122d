"""Run a network in OpenVINO's CPU plugin."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from edgec.backends.network import Feed, NetworkMode, check_feed, read_network_settings
from edgec.backends.openvino.session import EXACT
from edgec.errors import BundleError

_LEVELS = 256


class OpenVinoNetwork:
    """A network on the CPU; see `edgec.backends.network.NetworkSession`.

    Args:
        artifact: its directory.
        mode: see `edgec.backends.network.NetworkMode`.
        threads: number of threads; None leaves it to OpenVINO.

    Raises:
        BundleError: the artifact is incomplete or damaged.
    """

    def __init__(self, artifact: Path, mode: NetworkMode, *, threads: int | None = None) -> None:
        self.settings = read_network_settings(artifact)
        self._path = artifact / self.settings.file
        properties = {"PERFORMANCE_HINT": "LATENCY", **(EXACT if mode == "exact" else {})}
        if threads:
            properties["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            core = ov.Core()
            model = core.read_model(self._path)
            if mode == "exact":
                _without_rounding(model)
            self._request = core.compile_model(model, "CPU", properties).create_infer_request()
        except Exception as error:  # OpenVINO's errors have no base class of their own
            raise BundleError(
                f"OpenVINO cannot load the model: {error}", where=str(self._path), hint="copy or build it again"
            ) from error

    def run(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """Return the outputs for named inputs; see `edgec.backends.network.NetworkSession`."""
        given = check_feed(feed, self.settings.inputs, str(self._path))
        try:
            found = self._request.infer(given)
        except Exception as error:  # OpenVINO's errors have no base class of their own
            raise BundleError(f"OpenVINO cannot run the model: {error}", where=str(self._path)) from error
        return {port.name: np.array(found[port.name]) for port in self.settings.outputs}


def is_rounding(node: Any) -> bool:
    """Say whether a node of an OpenVINO model rounds an activation to eight bits."""
    if node.get_type_name() != "FakeQuantize" or node.get_attributes()["levels"] != _LEVELS:
        return False
    return bool(node.input_value(0).get_node().get_type_name() != "Constant")


def _without_rounding(model: Any) -> None:
    """Take out what rounds activations: their readers read the floats, clipped where the integers end."""
    for node in model.get_ordered_ops():
        if is_rounding(node):
            low, high = (float(value.get_node().data.item()) for value in node.input_values()[1:3])
            clip = op.clamp(node.input_value(0), low, high)
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(clip.output(0))
