"""The plan of a network: what a build will do."""

import hashlib
from collections.abc import Mapping
from typing import Literal

import msgspec

from edgec.frontends.network import Port
from edgec.prune.channels_result import GroupReport
from edgec.spec.network_profile import NetworkBounds, NetworkWishes
from edgec.spec.plan import Source, encode_plan

Grids = Literal["shifted", "signed"]


class Data(msgspec.Struct, frozen=True):
    """The samples that activations are calibrated on, and channels and zeros chosen by.

    Args:
        name: the file or folder.
        sha256: of what is in it.
        samples: how many are taken.
        seed: of the choice.
    """

    name: str
    sha256: str
    samples: int
    seed: int


class NetworkCost(msgspec.Struct, frozen=True):
    """What one form of a network costs.

    Args:
        parameters: floats in its constants.
        weight_bytes: of its constants as the artifact stores them.
        multiply_adds: of convolutions and products, for one sample; None where sizes are open.
    """

    parameters: int
    weight_bytes: int
    multiply_adds: int | None


class NetworkPrediction(msgspec.Struct, frozen=True):
    """A network with fewer channels beside the dense one that is stored alike.

    Args:
        dense: as it came.
        pruned: what is left.
        speed: runs per second over those of the dense one, as far as multiply-adds decide, or weights where sizes are
            open: that ratio. What waits for memory gains less.
    """

    dense: NetworkCost
    pruned: NetworkCost
    speed: float


class ChannelsPlan(msgspec.Struct, frozen=True):
    """How many channels stay, and what that will give; which of them stay is found as the build runs.

    Args:
        groups: of channels that can only go together, in the order of the graph.
        predicted: from shapes alone.
    """

    groups: tuple[GroupReport, ...]
    predicted: NetworkPrediction

    @property
    def sizes(self) -> dict[str, int]:
        """The name of each group, and how many of its channels stay."""
        return {group.name: group.kept for group in self.groups}


class ZerosPlan(msgspec.Struct, frozen=True):
    """Which layers become sparse.

    Args:
        layers: those, in the order of the graph.
        dense: layer -> why its weights stay, for others with constant weights.
        kernels: of `layers`, those that the target may run with kernels that skip zeros.
    """

    layers: tuple[str, ...]
    dense: Mapping[str, str]
    kernels: tuple[str, ...]


class NetworkPlan(msgspec.Struct, frozen=True, tag_field="kind", tag="network"):
    """Everything that decides what a build of a network writes.

    Args:
        edgec: version of the compiler.
        wishes: of the profile, with patterns in each `skip` resolved to nodes.
        grids: the integers of activations, see `edgec.backends.backend.NetworkLimits`.
        int8: the nodes that may compute on integers: measuring may leave some in float.
        floats: node -> why it computes in float, for those that might have been int8.
        calibration: the samples of static activations, channels and zeros, or None.
        fixed: `name=number` of each input that is a constant here.
        channels: None where all of them stay.
        sparse: None where no weights become 0.
    """

    edgec: str
    source: Source
    task: str | None
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    target: str
    backend: str
    profile: str
    wishes: NetworkWishes
    grids: Grids
    int8: tuple[str, ...] = ()
    floats: Mapping[str, str] = {}
    calibration: Data | None = None
    fixed: tuple[str, ...] = ()
    channels: ChannelsPlan | None = None
    sparse: ZerosPlan | None = None

    def sha256(self) -> str:
        """Return the hash of the plan's JSON, in hex."""
        return hashlib.sha256(encode_plan(self)).hexdigest()

    @property
    def verify(self) -> NetworkBounds:
        return self.wishes.verify


def describe(plan: NetworkPlan) -> str:
    """Return in words how a plan stores and multiplies weights."""
    wishes = plan.wishes
    if wishes.weights != "int8":
        return f"{wishes.weights} weights"
    grid = {"shifted": "uint8", "signed": "int8"}[plan.grids]
    how = {
        "static": f"{grid} activations, calibrated scales ({wishes.range})",
        "dynamic": "int8 activations, scales found as it runs",
        "float": "float activations",
    }[wishes.activations]
    return f"int8 weights, one scale per output, {how}"
