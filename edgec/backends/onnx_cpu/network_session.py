"""Run a network in ONNX Runtime."""

from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from edgec.backends.network import Feed, NetworkMode, check_feed, read_network_settings
from edgec.errors import BundleError


class OnnxCpuNetwork:
    """A network on the CPU; see `edgec.backends.network.NetworkSession`.

    Args:
        artifact: its directory.
        mode: see `edgec.backends.network.NetworkMode`.
        threads: number of threads; None leaves it to ONNX Runtime.

    Raises:
        BundleError: the artifact is incomplete or damaged.
    """

    def __init__(self, artifact: Path, mode: NetworkMode, *, threads: int | None = None) -> None:
        self.settings = read_network_settings(artifact)
        self._path = artifact / self.settings.file
        if not self._path.is_file():
            raise BundleError(
                f"the artifact lacks '{self._path.name}'", where=str(artifact), hint="copy or build it again"
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        model: Path | bytes = self._path
        try:
            if mode == "exact":
                from edgec.backends.onnx_cpu.exact import EXACT_ENTRIES, exact_network

                model = exact_network(self._path)
                folder = {"session.model_external_initializers_file_folder_path": str(artifact)}
                for key, value in {**EXACT_ENTRIES, **folder}.items():
                    options.add_session_config_entry(key, value)
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no base class of their own
            raise BundleError(
                f"ONNX Runtime cannot load the model: {error}", where=str(self._path), hint="copy or build it again"
            ) from error

    def run(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """Return the outputs for named inputs; see `edgec.backends.network.NetworkSession`."""
        names = [port.name for port in self.settings.outputs]
        given = check_feed(feed, self.settings.inputs, str(self._path))
        try:
            return dict(zip(names, self._session.run(names, given), strict=True))
        except Exception as error:  # ONNX Runtime's errors have no base class of their own
            raise BundleError(f"ONNX Runtime cannot run the model: {error}", where=str(self._path)) from error
