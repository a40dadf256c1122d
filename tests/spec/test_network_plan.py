"""Network x Target x Profile -> plan."""

import dataclasses

import msgspec
import pytest
from tiny_networks import NETWORKS, opener

from edgec.backends.backend import backend_names, get_backend
from edgec.errors import PlanError, UsageError
from edgec.spec.load import load_target
from edgec.spec.network_plan import Data, NetworkPlan
from edgec.spec.network_profile import NetworkBounds, NetworkProfile, NetworkWishes
from edgec.spec.network_resolve import count_parameters, placement_of, resolve_network
from edgec.spec.plan import encode_plan

DATA = Data("samples.npz", "1" * 64, 16, 3)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Return a function that gives each network once."""
    return opener(tmp_path_factory)


def profile(**wishes):
    wanted = {"weights": "int8", "verify": NetworkBounds(min_cosine=0.9), **wishes}
    return NetworkProfile("mine", "", NetworkWishes(**wanted))


def resolve(network, target="x86-avx512-vnni", backend=None, data=DATA, **wishes):
    return resolve_network(network, load_target(target), profile(**wishes), backend, data)


def test_every_default_is_resolved(opened):
    network = opened("cnn")
    plan = resolve(network)
    assert (plan.target, plan.backend, plan.profile) == ("x86-avx512-vnni", "onnx_cpu", "mine")
    assert plan.int8 == ("c1", "c2", "c3", "sum", "c4", "pool", "flat", "y")
    assert plan.calibration == DATA
    assert (plan.inputs, plan.outputs) == (network.inputs, network.outputs)
    assert plan.source.files.keys() == {"tiny.onnx"}
    expected = sum(array.size for array in NETWORKS["cnn"].weights.values())
    assert 0 <= plan.source.parameters - expected < 8  # bounds of activations are constants, too
    assert plan.source.parameters == count_parameters(network)


def test_it_is_read_back_and_has_a_hash(opened):
    plan = resolve(opened("cnn"))
    data = encode_plan(plan)
    assert msgspec.json.decode(data, type=NetworkPlan) == plan
    assert data == encode_plan(resolve(opened("cnn")))
    assert b'"kind": "network"' in data
    others = [
        resolve(opened("cnn"), target="x86-avx2"),
        resolve(opened("cnn"), backend="openvino"),
        resolve(opened("cnn"), data=msgspec.structs.replace(DATA, sha256="2" * 64)),
        resolve(opened("cnn"), data=msgspec.structs.replace(DATA, seed=4)),
        resolve(opened("cnn"), range="mse"),
        resolve(opened("cnn"), skip=("c3",)),
        resolve(dataclasses.replace(opened("cnn"), fixed=("rate=16000",))),
        resolve(dataclasses.replace(opened("cnn"), fixed=("rate=8000",))),
        resolve(opened("mlp")),
    ]
    assert len({each.sha256() for each in (plan, *others)}) == 1 + len(others)


def test_what_has_no_integers_says_nothing_of_them(opened):
    for wishes in ({"weights": "fp32"}, {"weights": "fp16"}):
        plan = resolve(opened("odd"), **wishes)
        assert (plan.int8, plan.floats, plan.calibration) == ((), {}, None)
    plan = resolve(opened("odd"), activations="dynamic", data=None)
    assert plan.int8 == ("y", "u")  # no runtime finds the scales of convolutions
    assert plan.floats["c1"] == "dynamic int8 covers products only"
    assert plan.floats.keys() >= {"c1", "c2", "z"}
    assert plan.calibration is None


def test_patterns_become_nodes(opened):
    plan = resolve(opened("cnn"), skip=("c[34]", "y"))
    assert plan.wishes.skip == ("c3", "c4", "y")
    assert not {"c3", "c4", "y"} & set(plan.int8)
    assert set(plan.floats.values()) == {"asked for"}
    assert {site.node for site in placement_of(opened("cnn").model, plan).sites} == set(plan.int8)
    fewer = placement_of(opened("cnn").model, plan, frozenset({"c1"}))
    assert {site.node for site in fewer.sites} < set(plan.int8)


@pytest.mark.parametrize("backend", backend_names())
def test_backends_get_the_integers_that_they_take(opened, backend):
    target = {"tensorrt": "rtx-4060"}.get(backend, "x86-avx512-vnni")
    plan = resolve(opened("cnn"), target=target, backend=backend)
    assert plan.grids == ("signed" if backend == "tensorrt" else "shifted")
    assert get_backend(backend).NETWORKS.grids == plan.grids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorrt"}, "no backend 'tensorrt'"),
        ({"backend": "nothing"}, "no backend 'nothing'"),
        ({"target": "rtx-4060", "activations": "dynamic"}, "has no dynamic activations"),
    ],
)
def test_plans_that_are_impossible(opened, options, message):
    with pytest.raises(PlanError, match=message) as caught:
        resolve(opened("cnn"), **options)
    assert caught.value.exit_code == 4
    assert caught.value.hint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": None}, "takes the scales of activations from samples"),
        ({"skip": ("nothing*",)}, "no node is called 'nothing\\*'"),
    ],
)
def test_plans_that_were_asked_for_wrongly(opened, options, message):
    """What the user can put right is no fault of the target."""
    with pytest.raises(UsageError, match=message) as caught:
        resolve(opened("cnn"), **options)
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_a_target_without_the_kernels(opened):
    target = msgspec.structs.replace(load_target("x86-avx2"), weight_dtypes=("fp32",))
    with pytest.raises(PlanError, match="no kernels for int8 networks") as caught:
        resolve_network(opened("cnn"), target, profile(), None, DATA)
    assert caught.value.hint == "it takes: fp32"


def test_operators_that_a_backend_does_not_have(opened):
    network = opened("middle")
    node = next(node for node in network.model.graph if node.op_type == "Relu")
    try:
        node.domain, node.op_type = "com.microsoft", "QuickGelu"
        with pytest.raises(PlanError, match=r"openvino backend has no operator com\.microsoft\.QuickGelu") as caught:
            resolve(network, backend="openvino")
        assert caught.value.where == node.name
        assert resolve(network, backend="onnx_cpu").backend == "onnx_cpu"
        node.domain, node.op_type = "", "QuantizeLinear"
        with pytest.raises(PlanError, match="quantized already"):
            resolve(network)
    finally:
        node.domain, node.op_type = "", "Relu"
