"""Network x Target x Profile -> plan, with every default resolved and every step checked before anything is built."""

from collections.abc import Collection
from fnmatch import fnmatchcase

import msgspec
import onnx_ir as ir

from edgec import __version__
from edgec.backends.backend import NetworkLimits, get_backend
from edgec.errors import PlanError, UsageError
from edgec.frontends.network import Network
from edgec.quantize.placement import Placement, place
from edgec.spec.network_plan import Data, NetworkPlan
from edgec.spec.network_profile import NetworkProfile, NetworkWishes
from edgec.spec.plan import Source, choose_backend
from edgec.spec.target import Target


def resolve_network(
    network: Network, target: Target, profile: NetworkProfile, backend: str | None, calibration: Data | None
) -> NetworkPlan:
    """Return the plan, checked against the target.

    Raises:
        PlanError: the target has no such backend, the backend cannot do what the profile asks, or the graph holds
            operators that it does not have.
        UsageError: static activations lack their samples, or the profile skips a node that is not there.
    """
    chosen = choose_backend(target, backend)
    limits, wishes = get_backend(chosen).NETWORKS, profile.wishes
    _check_storage(target, profile, limits, chosen)
    _check_operators(network, limits, chosen)
    if wishes.is_static and calibration is None:
        raise UsageError(
            f"profile '{profile.name}' takes the scales of activations from samples, and none are given",
            where="network.activations",
            hint="name them with --calibration-data, or choose a profile with dynamic or float activations",
        )
    skipped = _skipped(network, wishes, profile.name)
    placement = _place(network.model, limits, wishes, skipped)
    is_int8 = wishes.weights == "int8"
    return NetworkPlan(
        edgec=__version__,
        source=Source(network.format, network.family, count_parameters(network), dict(network.files)),
        task=network.task,
        inputs=network.inputs,
        outputs=network.outputs,
        target=target.name,
        backend=chosen,
        profile=profile.name,
        wishes=msgspec.structs.replace(wishes, skip=tuple(skipped)),
        grids=limits.grids,
        int8=tuple(site.node for site in placement.sites) if is_int8 else (),
        floats=dict(placement.floats) if is_int8 else {},
        calibration=calibration if wishes.is_static else None,
        fixed=network.fixed,
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


def _skipped(network: Network, wishes: NetworkWishes, profile: str) -> dict[str, None]:
    names = [str(node.name) for node in network.model.graph.all_nodes()]
    found: dict[str, None] = {}
    for pattern in wishes.skip:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise UsageError(
                f"no node is called '{pattern}'",
                where=f"profile '{profile}': network.skip",
                hint="`edgec inspect --nodes` lists the nodes",
            )
        found.update(dict.fromkeys(matching))
    return found


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
