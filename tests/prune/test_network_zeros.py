"""Zeros in networks: masks beside direct references on each layer's own layout, and what may have zeros."""

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tiny_networks import Tiny, weights

from edgec.errors import CheckpointError, EdgecError, UsageError
from edgec.graph.rewrite import array_of
from edgec.graph.store import Store
from edgec.prune.methods import sparsegpt
from edgec.prune.network_inputs import measure
from edgec.prune.network_layers import find_layers
from edgec.prune.network_zeros import put_zeros, share_of_zeros
from edgec.prune.pattern import Pattern

# Every layout of a weight; strides, dilations, uneven padding and groups for what kernels see.
NET = Tiny(
    """(float[N, 8, 9, 9] x) => (float[N, 4] y) {
        wide = Conv <kernel_shape=[3, 2], strides=[2, 1], dilations=[1, 2], pads=[1, 0, 0, 2]> (x, w1, b1)
        a = Relu (wide)
        deep = Conv <kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=16> (a, w2)
        grouped = Conv <kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2], group=2> (deep, w3)
        up = ConvTranspose <kernel_shape=[2, 2], strides=[2, 2]> (grouped, w4)
        point = Conv (up, w5)
        low = Relu (point)
        odd = Conv (low, w6)
        pool = GlobalAveragePool (odd)
        flat = Flatten (pool)
        gemm = Gemm <transB=1> (flat, w7)
        turned = Gemm <transB=0> (gemm, w8)
        y = MatMul (turned, w9)
    }""",
    weights(
        w1=(16, 8, 3, 2), b1=(16,), w2=(16, 1, 3, 3), w3=(8, 8, 3, 3), w4=(8, 12, 2, 2), w5=(6, 12, 1, 1),
        w6=(16, 6, 1, 1), w7=(12, 16), w8=(12, 8), w9=(8, 4),
    ),
    lambda rng, count: {"x": (rng.standard_normal((count, 8, 9, 9)) * np.arange(1, 9)[:, None, None] + 0.5).astype(
        np.float32
    )},
)  # fmt: skip
SPARSE = ("wide", "grouped", "up", "point", "gemm", "turned", "y")
HALF = Pattern.parse("2:4")
# Inputs along the last axis, outputs along the first.
LAYOUTS = {"up": (1, 2, 3, 0), "turned": (1, 0), "y": (1, 0), "gemm": (0, 1)}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return NET.open(tmp_path_factory.mktemp("net"))[0].model


@pytest.fixture
def pruned(network, tmp_path):
    def make(pattern, method, layers=SPARSE, samples=None, model=network):
        with Store(tmp_path / "zeros.bin") as store:
            return put_zeros(model, layers, pattern, method, (samples or NET.samples(16)).inputs, store)

    return make


def weight(model, name):
    """Return the weight of a layer as (outputs, *places, inputs of a group)."""
    node = next(node for node in model.graph if node.name == name)
    return array_of(node.inputs[1]).transpose(LAYOUTS.get(name, (0, 2, 3, 1))).copy()


def read_by(model, name, count=16):
    from edgec.calibrate.run import run

    value = next(node for node in model.graph if node.name == name).inputs[0].name
    return np.concatenate([made[value] for made in run(model, NET.samples(count).inputs(), [value])])


def best(scores, stays):
    """Return where the largest of each row are."""
    order = np.argsort(-scores, axis=-1, kind="stable")
    keep = np.zeros(scores.shape, bool)
    np.put_along_axis(keep, order[..., :stays], values=True, axis=-1)
    return keep


@pytest.mark.parametrize("pattern", [HALF, Pattern.parse("1:4")], ids=str)
@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_blocks_are_channels_that_one_place_of_a_kernel_reads(network, pruned, pattern, name, method):
    before, after = weight(network, name), weight(pruned(pattern, method)[0], name)
    scores = np.abs(before.astype(np.float64))
    if method == "wanda":
        value = read_by(network, name).astype(np.float64)
        value = value if value.ndim == 2 else value.transpose(0, 2, 3, 1)
        norms = np.sqrt(np.square(value).reshape(-1, value.shape[-1]).mean(0))
        if name == "grouped":  # the outputs of each half read the inputs of that half
            norms = np.repeat(norms.reshape(2, 1, 1, 8), 4, axis=0)
        scores = scores * norms
    keep = best(scores.reshape(*scores.shape[:-1], -1, 4), pattern.block[0]).reshape(scores.shape)
    assert np.array_equal(after, np.where(keep, before, 0))


@pytest.mark.parametrize("name", SPARSE)
def test_a_share_is_of_each_matrix_or_of_what_each_output_reads(network, pruned, name):
    pattern = Pattern.parse("70%")
    groups = 2 if name == "grouped" else 1
    before, after = weight(network, name), weight(pruned(pattern, "magnitude")[0], name)
    flat = np.abs(before).reshape(groups, -1)
    keep = best(flat, pattern.kept(flat.shape[1])).reshape(before.shape)
    assert np.array_equal(after, np.where(keep, before, 0))
    rows = weight(pruned(pattern, "wanda")[0], name).reshape(len(before), -1)
    assert set(np.count_nonzero(rows, axis=1)) == {pattern.kept(rows.shape[1])}


@pytest.mark.parametrize("name", ["wide", "grouped", "point", "gemm", "turned", "y"])
def test_hessians_are_of_what_a_kernel_sees(network, name):
    """The square of a layer's output, without its bias, is what its Hessian says of its weights."""
    layer = next(layer for layer in find_layers(network, HALF)[0] if layer.name == name)
    stats = measure(network, [layer], NET.samples(16).inputs(), hessians=True)[name]
    rows = weight(network, name).astype(np.float64).reshape(layer.groups, -1, layer.columns)
    expected = np.concatenate(
        [np.einsum("oi,ij,oj->o", w, s.hessian.double().numpy(), w) for w, s in zip(rows, stats, strict=True)]
    )
    value, given = read_by(network, name), array_of(layer.weight)
    if value.ndim == 4:
        x, kernel = torch.from_numpy(value).double(), torch.from_numpy(given.copy()).double()
        if name == "wide":
            x = torch.nn.functional.pad(x, (0, 2, 1, 0))
            out = torch.nn.functional.conv2d(x, kernel, stride=(2, 1), dilation=(1, 2))
        elif name == "grouped":  # of 5 x 10, SAME_UPPER: 3 x 5, with a column behind
            x = torch.nn.functional.pad(x, _same(value.shape))
            out = torch.nn.functional.conv2d(x, kernel, stride=2, groups=2)
        else:
            out = torch.nn.functional.conv2d(x, kernel)
        found = out.square().mean((0, 2, 3)).numpy()
    else:
        found = np.square(value.astype(np.float64) @ weight(network, name).T.astype(np.float64)).mean(0)
    assert expected == pytest.approx(found, rel=1e-4)


def _same(shape):
    pads = []
    for size in reversed(shape[2:]):
        total = max((math.ceil(size / 2) - 1) * 2 + 3 - size, 0)
        pads += [total // 2, total - total // 2]
    return pads


@pytest.mark.parametrize("pattern", [HALF, Pattern.parse("50%")], ids=str)
def test_sparsegpt_is_that_of_the_matrix_in_its_order(network, pruned, pattern):
    sparse, remarks = pruned(pattern, "sparsegpt")
    layers = find_layers(network, HALF)[0]
    stats = measure(network, layers, NET.samples(16).inputs(), hessians=True)
    for layer in layers:
        before = weight(network, layer.name).reshape(layer.groups, -1, layer.columns)
        expected = [
            sparsegpt.prune(torch.from_numpy(rows), each, pattern).weight.numpy()
            for rows, each in zip(before, stats[layer.name], strict=True)
        ]
        assert np.array_equal(weight(sparse, layer.name).reshape(before.shape), np.stack(expected))
    (remark,) = remarks
    assert "up" in remark
    assert "wanda" in remark
    assert np.array_equal(weight(sparse, "up"), weight(pruned(pattern, "wanda")[0], "up"))


def test_sparsegpt_costs_least_of_what_layers_give(network, pruned):
    losses = {}
    for method in ("sparsegpt", "wanda", "magnitude"):
        change = weight(pruned(HALF, method)[0], "gemm").astype(np.float64) - weight(network, "gemm")
        losses[method] = np.square(read_by(network, "gemm") @ change.T).sum()
    assert losses["sparsegpt"] < losses["wanda"] < losses["magnitude"]


def test_layers_and_why_others_stay_dense(network):
    layers, dense = find_layers(network, HALF, {"point"})
    assert tuple(layer.name for layer in layers) == tuple(name for name in SPARSE if name != "point")
    assert dense == {
        "deep": "depthwise: its outputs read one channel each",
        "point": "asked for",
        "odd": "2:4 takes blocks of 4 input channels, it has 6",
    }
    assert {layer.name for layer in find_layers(network, Pattern.parse("50%"))[0]} == {*SPARSE, "odd"}
    grouped = find_layers(network, Pattern.parse("8:16"))[1]["grouped"]
    assert grouped == "8:16 takes blocks of 16 input channels, it has 8 for each group"


def test_a_weight_of_two_layers_and_products_without_constants_stay(tmp_path):
    net = Tiny(
        """(float[N, 8] x) => (float[N, N] y) {
            a = MatMul (x, w1)
            b = MatMul (a, w1)
            turned = Transpose (b)
            y = MatMul (b, turned)
        }""",
        weights(w1=(8, 8)),
        lambda rng, count: {"x": rng.standard_normal((count, 8)).astype(np.float32)},
    )
    layers, dense = find_layers(net.open(tmp_path)[0].model, HALF)
    assert layers == ()
    assert dense == {"a": "its weight is that of b, too", "b": "its weight is that of a, too"}


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_others_are_left_alone_and_results_repeat(network, pruned, method):
    one, two = (pruned(HALF, method, ("point", "gemm"))[0] for _ in range(2))
    for name in (*SPARSE, "deep", "odd"):
        assert np.array_equal(weight(one, name), weight(two, name))
        assert np.array_equal(weight(one, name), weight(network, name)) == (name not in ("point", "gemm"))


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern", [HALF, Pattern.parse("50%")], ids=str)
def test_zeros_of_all_kinds(tmp_path, pruned, method, pattern):
    """Weights that are all 0, an output of zeros, inputs that never occur, nothing that occurs at all."""
    made = dict(NET.weights)
    made["w5"] = np.zeros_like(made["w5"])
    made["w1"] = made["w1"].copy()
    made["w1"][3] = 0
    model = Tiny(NET.graph, made, NET.inputs).open(tmp_path)[0].model
    whole = NET.inputs(np.random.default_rng(1), 16)["x"]
    whole[:, [1, 2]] = 0
    for x in (whole, np.zeros_like(whole)):
        samples = replace(NET.samples(16), batches=lambda x=x: iter([({"x": x}, None)]))
        sparse, _ = pruned(pattern, method, samples=samples, model=model)
        assert not weight(sparse, "point").any()
        assert not weight(sparse, "wide")[3].any()
        assert share_of_zeros(sparse, sparse, SPARSE, pattern) >= 0.5
        wide = weight(sparse, "wide")
        if method != "magnitude" and x.any() and pattern.block:  # of each block with dead inputs these go
            assert not wide[..., [1, 2]].any()
            assert np.count_nonzero(wide[..., [0, 3]]) == 2 * 6 * 15


def test_what_cannot_be_measured(pruned):
    none = replace(NET.samples(16), batches=lambda: iter(()))
    with pytest.raises(UsageError, match="no samples"):
        pruned(HALF, "wanda", samples=none)
    pruned(HALF, "magnitude", samples=none)  # it does not ask
    huge = replace(NET.samples(8), batches=lambda: iter([({"x": np.full((8, 8, 9, 9), 1e30, np.float32)}, None)]))
    with pytest.raises(CheckpointError, match="not finite"):
        pruned(HALF, "wanda", samples=huge)


@pytest.mark.parametrize("pattern", [HALF, Pattern.parse("50%")], ids=str)
def test_lost_zeros_are_found(pruned, pattern):
    sparse, _ = pruned(pattern, "wanda")
    assert share_of_zeros(sparse, sparse, SPARSE, pattern) == pytest.approx(0.5, abs=0.01)
    lost = sparse.clone()
    value = next(node for node in lost.graph if node.name == "grouped").inputs[1]
    full = array_of(value).copy()
    full[5, :, 1, 2] = 1
    value.const_value = ir.tensor(full, name=value.name)
    with pytest.raises(EdgecError, match="other weights") as caught:
        share_of_zeros(lost, sparse, SPARSE, pattern)
    assert caught.value.where == "grouped"
