"""Network x Target x Profile -> plan, with every default resolved and every step checked before anything is built."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

import msgspec
import onnx_ir as ir

from edgec import __version__
from edgec.backends.backend import NetworkLimits, get_backend
from edgec.calibrate.samples import Samples
from edgec.errors import PlanError, UsageError
from edgec.frontends.network import Network
from edgec.quantize.placement import Placement, place
from edgec.spec.network_channels import left_of, predict
from edgec.spec.network_plan import ChannelsPlan, Data, NetworkPlan
from edgec.spec.network_profile import NetworkProfile, NetworkWishes
from edgec.spec.network_zeros import zeros_of
from edgec.spec.plan import Source, choose_backend
from edgec.spec.target import Target


def resolve_network(
    network: Network,
    target: Target,
    profile: NetworkProfile,
    backend: str | None,
    calibration: Data | None,
    samples: Samples | None = None,
    *,
    rounds: bool = True,
) -> NetworkPlan:
    """Return the plan, checked against the target.

    Args:
        network: in canonical form.
        target: the device.
        profile: what is wanted.
        backend: one of the target's; None takes its first.
        calibration: what tells the samples apart; None where there are none.
        samples: themselves, for how many channels each layer can spare.
        rounds: whether anything will be rounded, for which static activations need samples.

    Raises:
        PlanError: the target has no such backend, the backend cannot do what the profile asks, the graph holds
            operators that it does not have, so many channels cannot go, or no layer can have such zeros.
        UsageError: samples are needed and there are none, or the profile skips a node that is not there.
    """
    chosen = choose_backend(target, backend)
    limits, wishes = get_backend(chosen).NETWORKS, _with_nodes(network, profile)
    _check_storage(target, profile, limits, chosen)
    _check_operators(network, limits, chosen)
    if calibration is None:
        _check_samples(profile, rounds=rounds)
    channels, left = _fewer_channels(network, limits, wishes, samples)
    placement = _place(left, limits, wishes, frozenset(wishes.skip))
    is_int8 = wishes.weights == "int8"
    int8 = tuple(site.node for site in placement.sites) if is_int8 else ()
    return NetworkPlan(
        edgec=__version__,
        source=Source(network.format, network.family, count_parameters(network), dict(network.files)),
        task=network.task,
        inputs=network.inputs,
        outputs=network.outputs,
        target=target.name,
        backend=chosen,
        profile=profile.name,
        wishes=wishes,
        grids=limits.grids,
        int8=int8,
        floats=dict(placement.floats) if is_int8 else {},
        calibration=calibration if wishes.needs_samples else None,
        fixed=network.fixed,
        channels=channels,
        sparse=zeros_of(left, wishes, target, chosen, frozenset(int8)),
    )


def _fewer_channels(
    network: Network, limits: NetworkLimits, wishes: NetworkWishes, samples: Samples | None
) -> tuple[ChannelsPlan | None, ir.Model]:
    """Return what goes, and the graph of what is left."""
    if wishes.channels is None:
        return None, network.model
    left, groups = left_of(network.model, wishes.channels, samples)
    stored = [
        (model, _place(model, limits, wishes, frozenset(wishes.skip)).weights if wishes.weights == "int8" else {})
        for model in (network.model, left)
    ]
    return ChannelsPlan(groups, predict(*stored, halved=wishes.weights == "fp16")), left


def _check_samples(profile: NetworkProfile, *, rounds: bool) -> None:
    if rounds and profile.wishes.is_static:
        raise UsageError(
            f"profile '{profile.name}' takes the scales of activations from samples, and none are given",
            where="network.activations",
            hint="name them with --calibration-data, or choose a profile with dynamic or float activations",
        )
    wishes = profile.wishes
    if wishes.channels is not None and wishes.channels.needs_samples:
        raise UsageError(
            f"profile '{profile.name}' chooses channels by what samples make of them, and none are given",
            where="network.channels",
            hint='name them with --calibration-data, or take importance = "magnitude" and refit = false',
        )
    if wishes.sparse is not None and wishes.sparse.needs_samples:
        raise UsageError(
            f"profile '{profile.name}' chooses weights by what samples make of them, and none are given",
            where="network.sparse",
            hint='name them with --calibration-data, or take method = "magnitude"',
        )


def placement_of(model: ir.Model, plan: NetworkPlan, keep_float: frozenset[str] = frozenset()) -> Placement:
    """Return where a plan puts integers in a network's graph, but for some nodes that are to stay in float."""
    return _place(model, get_backend(plan.backend).NETWORKS, plan.wishes, {*plan.wishes.skip, *keep_float})


def _place(model: ir.Model, limits: NetworkLimits, wishes: NetworkWishes, skip: Collection[str]) -> Placement:
    if wishes.activations == "dynamic":
        return place(model, (), skip.__contains__, anchors=("MatMul", "Gemm"))
    if not wishes.is_static:
        return place(model, (), skip.__contains__)
    return place(model, limits.follow, skip.__contains__, round_convolutions=limits.round_convolutions)


def count_parameters(network: Network) -> int:
    """Return the number of weights of a network."""
    sizes = (value.const_value.size for value in network.model.graph.initializers.values() if value.const_value)
    return sum(int(size) for size in sizes)


def _with_nodes(network: Network, profile: NetworkProfile) -> NetworkWishes:
    """Return the wishes with names of nodes for the patterns in them."""
    wishes, where = profile.wishes, f"profile '{profile.name}': network"
    names = [str(node.name) for node in network.model.graph.all_nodes()]
    wishes = msgspec.structs.replace(wishes, skip=_matching(wishes.skip, names, f"{where}.skip"))
    if wishes.channels is not None:
        kept = _matching(wishes.channels.skip, names, f"{where}.channels.skip")
        wishes = msgspec.structs.replace(wishes, channels=msgspec.structs.replace(wishes.channels, skip=kept))
    if wishes.sparse is not None:
        dense = _matching(wishes.sparse.skip, names, f"{where}.sparse.skip")
        wishes = msgspec.structs.replace(wishes, sparse=msgspec.structs.replace(wishes.sparse, skip=dense))
    return wishes


def _matching(patterns: Sequence[str], names: Sequence[str], where: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise UsageError(
                f"no node is called '{pattern}'", where=where, hint="`edgec inspect --nodes` lists the nodes"
            )
        found.update(dict.fromkeys(matching))
    return tuple(found)


def _check_storage(target: Target, profile: NetworkProfile, limits: NetworkLimits, backend: str) -> None:
    wishes = profile.wishes
    if wishes.weights not in target.weight_dtypes or wishes.weights not in limits.weights:
        raise PlanError(
            f"target '{target.name}' with backend {backend} has no kernels for {wishes.weights} networks, which "
            f"profile '{profile.name}' asks for",
            hint=f"it takes: {', '.join(sorted(limits.weights & set(target.weight_dtypes)))}",
        )
    if wishes.weights == "int8" and wishes.activations not in limits.activations:
        raise PlanError(
            f"the {backend} backend has no {wishes.activations} activations, which profile '{profile.name}' asks for",
            hint=f"it has: {', '.join(sorted(limits.activations))}",
        )


def _check_operators(network: Network, limits: NetworkLimits, backend: str) -> None:
    for node in network.model.graph.all_nodes():
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise PlanError(
                f"the model is quantized already: it has {node.op_type}",
                where=str(node.name),
                hint="give the float model that it was made from",
            )
        if node.domain not in limits.domains:
            raise PlanError(
                f"the {backend} backend has no operator {node.domain}.{node.op_type}",
                where=str(node.name),
                hint="export the model with standard ONNX operators, or choose a target with onnx_cpu",
            )
