"""Find what int8 makes slower on this machine: parts of a network that had better stay in float.

Which kernel is faster depends on shapes: a first convolution of three channels, or a depthwise one of few, is often
faster in float. Parts are tried one after the other, each beside the best so far, in turn, in the same process and in
one thread, whose processor time is what counts: other programs change it least.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import onnx_ir as ir

from edgec.backends.backend import Backend, NetworkJob
from edgec.backends.network import NetworkSession
from edgec.bundle.manifest import versions
from edgec.calibrate.arrays import Batch
from edgec.calibrate.cache import cache_dir, code_key, key, whole
from edgec.frontends.network import Network
from edgec.measure.fingerprint import fingerprint
from edgec.measure.paired import paired_ms, ratio_interval
from edgec.quantize.placement import Placement
from edgec.spec.network_plan import NetworkPlan
from edgec.spec.plan import encode_plan
from edgec.spec.target import Target

Make = Callable[[frozenset[str]], ir.Model]

_PAIRS = 30
# A part goes back to float where that is faster by more than this, with 97.5 % confidence.
_WORTH = 1.01
_FIRST = 3


@dataclass(frozen=True, eq=False)
class Trial:
    """Times networks with parts of them in float, on the machine that they are for.

    Args:
        network: what is quantized.
        plan: of the build.
        target: this machine.
        backend: of the plan.
        scratch: a folder for artifacts.
        feed: one sample.
    """

    network: Network
    plan: NetworkPlan
    target: Target
    backend: Backend
    scratch: Path
    feed: Batch

    def find_slow(self, make: Make, placement: Placement) -> dict[str, str]:
        """Return the nodes that had better stay in float, and why; the same ones whenever this machine is asked again.

        Args:
            make: quantizes the network, but for some nodes.
            placement: what is in int8.

        Raises:
            OutputError: the answer cannot be kept.
        """
        machine = repr(sorted({**fingerprint(), **versions(self.backend.PACKAGES)}.items()))
        code = (code_key("backends", "fuse"), Path(__file__).read_bytes())
        name = key(encode_plan(self.plan), machine, *code)
        known = cache_dir() / "speed" / f"{name}.json"
        if (found := _read(known)) is None:
            found = self._search(make, placement)
            with whole(known, "what runs faster in float") as file:
                file.write(msgspec.json.encode(found))
        return found

    def _search(self, make: Make, placement: Placement) -> dict[str, str]:
        found: dict[str, str] = {}
        best = self._open(make(frozenset()))
        for what, nodes in _parts(self.network.model, placement):
            more = [node for node in nodes if node not in found]
            if not more:
                continue
            other = self._open(make(frozenset({*found, *more})))
            runs = (partial(session.run, self.feed) for session in (best, other))
            times = paired_ms(*runs, pairs=_PAIRS, clock=time.process_time)
            ratio, low, _ = ratio_interval(times[:, 0], times[:, 1])
            if low > _WORTH:
                best = other
                found |= dict.fromkeys(more, f"{what}: in float the network runs {ratio:.2f} times as fast here")
        return found

    def _open(self, model: ir.Model) -> NetworkSession:
        folder = self.scratch / f"trial.{len(list(self.scratch.glob('trial.*')))}"
        folder.mkdir()
        self.backend.compile_network(NetworkJob(model, self.network, self.plan, self.target), folder)
        return self.backend.open_network(folder, "shipped", threads=1)


def _read(path: Path) -> dict[str, str] | None:
    """Return the answer that a file holds; None where there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (OSError, UnicodeDecodeError, msgspec.DecodeError):
        return None


def _parts(model: ir.Model, placement: Placement) -> Iterator[tuple[str, list[str]]]:
    """Yield the parts to try, each with what it is called: the first layers, and all operators of one kind."""
    nodes = {str(node.name): node for node in model.graph}
    sites = [site.node for site in placement.sites if site.weight is not None and site.data and site.node in nodes]
    for count in range(1, min(_FIRST, len(sites) - 1) + 1):
        yield f"the first {count} layers" if count > 1 else "the first layer", sites[:count]
    kinds = {
        "depthwise convolutions": [name for name in sites if nodes[name].attributes.get_int("group", 1) > 1],
        "convolutions": [name for name in sites if nodes[name].op_type in ("Conv", "ConvTranspose")],
        "products": [name for name in sites if nodes[name].op_type in ("MatMul", "Gemm")],
    }
    yield from ((what, names) for what, names in kinds.items() if names)
    yield "everything", sites
