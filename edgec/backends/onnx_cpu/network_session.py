"""Run a network in ONNX Runtime."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgec.backends.network import Feed, NetworkMode, check_feed, read_network_settings
from edgec.backends.onnx_cpu.session import load
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
        self._session = load(self._path, threads, exact=_exact if mode == "exact" else None)

    def run(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """Return the outputs for named inputs; see `edgec.backends.network.NetworkSession`."""
        names = [port.name for port in self.settings.outputs]
        given = check_feed(feed, self.settings.inputs, str(self._path))
        try:
            return dict(zip(names, self._session.run(names, given), strict=True))
        except Exception as error:  # ONNX Runtime's errors have no base class of their own
            raise BundleError(f"ONNX Runtime cannot run the model: {error}", where=str(self._path)) from error


def _exact(path: Path) -> bytes:
    from edgec.backends.onnx_cpu.exact import exact_network

    return exact_network(path)
