"""What artifacts of networks have in common: what they say about themselves, and how they are run."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.calibrate.audio import Audio
from edgec.calibrate.images import Pictures
from edgec.errors import UsageError
from edgec.frontends.network import Port
from edgec.json_file import read_json, write_json

if TYPE_CHECKING:
    from edgec.backends.backend import NetworkJob

NETWORK_FILE = "network.json"
"""The file by which an artifact of a network is known, whatever its backend."""

NetworkMode = Literal["shipped", "exact"]
"""As it ships, or the proof: float32 all through, weights as the integers that they are, activations clipped where
their integers end, but not rounded."""

Feed = Mapping[str, NDArray[Any]]


class NetworkSettings(msgspec.Struct, frozen=True):
    """What an artifact says about itself.

    Args:
        backend: that made it.
        file: that its runtime loads.
        inputs: what it takes.
        outputs: what it gives.
        task: by optimum's name, or None.
        labels: class names by index.
        pictures: how it takes pictures, or None where its checkpoint did not say.
        audio: how it takes sound, or None.
    """

    backend: str
    file: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    task: str | None = None
    labels: tuple[str, ...] = ()
    pictures: Pictures | None = None
    audio: Audio | None = None


class NetworkSession(Protocol):
    """A network that runs."""

    def run(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """Return the outputs for named inputs, in the order of the artifact's outputs.

        Raises:
            UsageError: an input is missing, or has another type or shape.
        """
        ...


def write_network_settings(folder: Path, job: "NetworkJob", backend: str, file: str) -> None:
    """Write `network.json` for the file that a runtime loads."""
    plan, network = job.plan, job.network
    about = (plan.inputs, plan.outputs, plan.task, network.labels, network.pictures, network.audio)
    write_json(folder / NETWORK_FILE, NetworkSettings(backend, file, *about))


def read_network_settings(artifact: Path) -> NetworkSettings:
    """Return what an artifact says about itself.

    Raises:
        BundleError: it says nothing, or nonsense.
    """
    return read_json(artifact / NETWORK_FILE, NetworkSettings, "the artifact's settings")


def check_feed(feed: Feed, inputs: tuple[Port, ...], where: str) -> dict[str, NDArray[Any]]:
    """Return the inputs that a network takes, contiguous; others are left out.

    Raises:
        UsageError: one is missing, or has another type or shape.
    """
    found = {}
    for port in inputs:
        array = feed.get(port.name)
        if array is None:
            raise UsageError(
                f"the model takes '{port.name}', which is not given",
                where=where,
                hint=f"it takes: {', '.join(describe_port(p) for p in inputs)}",
            )
        sizes = zip(array.shape, port.shape, strict=False)
        fits = array.ndim == len(port.shape) and all(isinstance(want, str) or want == has for has, want in sizes)
        if array.dtype.name != port.dtype or not fits:
            raise UsageError(
                f"the model takes {describe_port(port)}, not {array.dtype.name}{list(array.shape)}", where=where
            )
        found[port.name] = np.ascontiguousarray(array)
    return found


def describe_port(port: Port) -> str:
    """Return a port in words, such as `image: float32[batch, 3, 224, 224]`."""
    return f"{port.name}: {port.dtype}[{', '.join(map(str, port.shape))}]"
