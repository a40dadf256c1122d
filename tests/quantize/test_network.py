"""From a float network to a quantized one: ranges, corrections, and what goes back to float."""

from dataclasses import replace

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from onnx.shape_inference import infer_shapes
from tiny_networks import NETWORKS, Tiny, weights

from edgec.calibrate.run import run
from edgec.errors import CheckpointError
from edgec.frontends.network import Port
from edgec.graph.integers import grids_of, network_codes
from edgec.quantize.network import Rounding, left_float, quantize_static
from edgec.quantize.operators import KEEPING
from edgec.quantize.placement import place

FOLLOW = frozenset({"Add", "GlobalAveragePool", *KEEPING})
ROUNDING = Rounding(
    range="minmax", algorithm="rtn", grids="shifted", correct_bias=False, min_cosine=0.5, keep_float=0.5
)
# One channel of what m4 multiplies dwarfs the others, and m4 takes no notice of it: there is no grid for both.
HURT = Tiny(
    """(float[N, 16] x) => (float[N, 16] y, float[N, 16] z) {
        m1 = MatMul (x, w1)
        h1 = Add (m1, b1)
        a1 = Tanh (h1)
        m2 = MatMul (a1, w2)
        z = Add (m2, b2)
        s = Mul (x, scale)
        m4 = MatMul (s, w4)
        m3 = MatMul (z, w3)
        t = Sigmoid (m3)
        y = Mul (m4, t)
    }""",
    {
        **weights(w1=(16, 16), b1=(16,), w2=(16, 16), b2=(16,), w3=(16, 16)),
        "scale": np.array([5000, *[1] * 15], np.float32),
        "w4": np.abs(weights(w4=(16, 16))["w4"]) * np.array([0, *[1] * 15], np.float32)[:, None],
    },
    lambda rng, count: {"x": rng.uniform(0.1, 1, (count, 16)).astype(np.float32)},
)


def loaded(tiny):
    return ir.from_proto(infer_shapes(tiny.proto(), data_prop=True))


@pytest.fixture
def quantized(tmp_path):
    """Return a function that quantizes a tiny network; keywords change how."""

    def quantize(tiny, samples=None, tick=lambda _: None, **changes):
        model = loaded(tiny)
        before = ir.to_proto(model).SerializeToString()
        outputs = [Port(str(value.name), "float32", tuple(map(str, value.shape))) for value in model.graph.outputs]
        scratch = tmp_path / str(len(list(tmp_path.iterdir())))
        scratch.mkdir()
        made = quantize_static(
            model,
            outputs,
            lambda keep: place(model, FOLLOW, keep.__contains__),
            msgspec.structs.replace(ROUNDING, **changes),
            samples or tiny.samples(),
            scratch,
            tick,
        )
        assert ir.to_proto(model).SerializeToString() == before
        return made

    return quantize


def outputs(tiny, model, name):
    inputs = (batch for batch, _ in tiny.samples(32, seed=9).batches())
    return np.concatenate([found[name] for found in run(model, inputs, [name])]).astype(np.float64)


def cosine(tiny, model, name):
    a, b = outputs(tiny, loaded(tiny), name).ravel(), outputs(tiny, model, name).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def int8_nodes(made):
    return [site.node for site in made.placement.sites]


def test_ranges_are_those_of_the_samples(quantized):
    tiny = NETWORKS["cnn"]
    made = quantized(tiny)
    inputs = [batch for batch, _ in tiny.samples().batches()]
    grids = grids_of(made.model.graph)
    names = [name for name, source in made.placement.groups.items() if name == source]
    for name in names:
        seen = np.concatenate([found[name].ravel() for found in run(loaded(tiny), inputs, [name])])
        scale, zero = grids[name]
        low, high = min(0, seen.min()), max(0, seen.max())
        assert scale == pytest.approx((high - low) / 255, rel=1e-3)
        assert zero == pytest.approx(-low / scale, abs=1)
    assert made.kept_float == {}


def test_grids_are_what_the_backend_takes(quantized):
    tiny = NETWORKS["cnn"]
    negative = {"x", "c3", "sum"}
    for kind in ("shifted", "signed"):
        made = quantized(tiny, grids=kind)
        kinds = {
            node.name.removesuffix(".quantize"): (node.inputs[2].dtype.name, int(node.inputs[2].const_value.numpy()))
            for node in made.model.graph
            if node.op_type == "QuantizeLinear"
        }
        assert kinds.keys() == made.placement.groups.keys()
        for name, (dtype, zero) in kinds.items():
            assert dtype == ("UINT8" if kind == "shifted" else "INT8")
            assert (zero > 0) == (kind == "shifted" and name in negative)
        assert cosine(tiny, made.model, "y") > 0.998


def test_the_node_that_hurts_stays_in_float_and_no_other(quantized):
    bad = quantized(HURT, keep_float=0.0)
    assert bad.kept_float == {}
    assert (outputs(HURT, bad.model, "y") == 0).all()
    assert cosine(HURT, bad.model, "z") > 0.999

    ticks = []
    made = quantized(HURT, tick=ticks.append, min_cosine=0.99)
    assert list(made.kept_float) == ["m4"]
    assert "rounding it alone costs" in made.kept_float["m4"]
    assert int8_nodes(made) == ["m1", "m2", "m3"]
    assert {"m1", "m2", "m3", "m4"} <= set(ticks)
    assert {name for name, _, _ in network_codes(made.model.graph)} == {"w1", "w2", "w3"}
    assert "s" not in grids_of(made.model.graph)
    assert cosine(HURT, made.model, "y") > 0.99


def test_noise_sends_nodes_back_where_a_cosine_sees_nothing(quantized):
    """A single positive number: of any size, its cosine is 1."""
    tiny = replace(
        HURT,
        graph="""(float[N, 16] x) => (float[N, 1] y) <int64[1] last = {1}, float rest = {0.01}> {
            m1 = MatMul (x, w1)
            s = Mul (x, scale)
            m4 = MatMul (s, w4)
            one = ReduceL1 (m4, last)
            two = ReduceL1 (m1, last)
            small = Mul (two, rest)
            y = Add (one, small)
        }""",
        weights={name: HURT.weights[name] for name in ("w1", "w4", "scale")},
    )
    bad = quantized(tiny, min_cosine=0.999)
    assert bad.kept_float == {}
    assert (outputs(tiny, bad.model, "y") < 0.5 * outputs(tiny, loaded(tiny), "y")).any()
    made = quantized(tiny, min_cosine=0.999, min_snr_db=10.0)
    assert list(made.kept_float) == ["m4"]
    np.testing.assert_allclose(outputs(tiny, made.model, "y"), outputs(tiny, loaded(tiny), "y"), rtol=0.1)


def test_a_network_inside_its_bounds_tries_nothing(quantized):
    ticks = []
    made = quantized(HURT, tick=ticks.append, min_cosine=0.0)
    assert made.kept_float == {}
    assert not {"m1", "m2", "m3", "m4"} & set(ticks)


def test_no_more_go_back_than_may(quantized):
    assert quantized(HURT, min_cosine=0.99, keep_float=0.0).kept_float == {}
    one = quantized(HURT, min_cosine=1.0, keep_float=0.01)  # of four: no share is too small for one
    assert list(one.kept_float) == ["m4"]
    most = quantized(HURT, min_cosine=1.0, keep_float=0.75)  # out of reach
    assert next(iter(most.kept_float)) == "m4"
    assert len(most.kept_float) == 3
    assert len(int8_nodes(most)) == 1


def test_what_rounding_makes_infinite_goes_back_to_float(quantized):
    """The logarithm of what is left of small numbers beside a large one, which is 0."""
    tiny = Tiny(
        """(float[N, 16] x) => (float[N, 16] y) {
            m1 = MatMul (x, w1)
            h = Tanh (m1)
            m2 = MatMul (h, w2)
            s = Mul (x, scale)
            m4 = MatMul (s, w4)
            l = Log (m4)
            y = Add (l, m2)
        }""",
        {**HURT.weights, "scale": np.array([1e6, *[1] * 15], np.float32)},
        HURT.inputs,
    )
    used = {name: tiny.weights[name] for name in ("w1", "w2", "w4", "scale")}
    tiny = replace(tiny, weights=used)
    made = quantized(tiny, min_cosine=0.9)
    assert list(made.kept_float) == ["m4"]
    assert cosine(tiny, made.model, "y") > 0.99


def test_followers_of_what_goes_back_do_not_follow(quantized):
    """What is left in float feeds an addition, which then has no integers to begin with."""
    tiny = Tiny(
        """(float[N, 4, 5, 5] x) => (float[N, 4, 5, 5] y) {
            c1 = Conv (x, w1)
            s = Mul (x, scale)
            c2 = Conv (s, w2)
            sum = Add (c1, c2)
            c3 = Conv (sum, w3)
            y = Sigmoid (c3)
        }""",
        {
            **weights(w1=(4, 4, 1, 1), w3=(4, 4, 1, 1)),
            "scale": np.array([5000, 1, 1, 1], np.float32).reshape(4, 1, 1),
            "w2": np.array([0, 3, -2, 3], np.float32).reshape(1, 4, 1, 1).repeat(4, 0)
            * [[[[1]]], [[[-1]]], [[[2]]], [[[1]]]],
        },
        lambda rng, n: {"x": rng.uniform(0, 1, (n, 4, 5, 5)).astype(np.float32)},
    )
    tiny.weights["w2"] = tiny.weights["w2"].astype(np.float32)
    assert "sum" in int8_nodes(quantized(tiny, min_cosine=0.0))
    made = quantized(tiny, min_cosine=0.995)
    assert list(made.kept_float) == ["c2"]
    assert int8_nodes(made) == ["c1", "c3"]


def test_what_was_meant_to_be_int8_and_is_not(quantized):
    made = quantized(NETWORKS["cnn"])
    meant = int8_nodes(made)
    assert left_float(made, meant) == {}
    sites = [site for site in made.placement.sites if site.node in ("c1", "c2")]
    less = replace(made, kept_float={"c3": "slow"}, placement=replace(made.placement, sites=tuple(sites)))
    following = "what it reads or gives stays in float"
    expected = {"c3": "slow"} | dict.fromkeys(("sum", "c4", "pool", "flat", "y"), following)
    assert left_float(less, meant) == expected
    assert left_float(replace(made, placement=None), ["c1"]) == {"c1": following}


def test_a_network_of_one_layer_may_keep_it(quantized):
    tiny = Tiny(
        "(float[N, 16] x) => (float[N, 16] y) {s = Mul (x, scale) y = MatMul (s, w4)}",
        {name: HURT.weights[name] for name in ("scale", "w4")},
        HURT.inputs,
    )
    assert int8_nodes(quantized(tiny, min_cosine=0.99, keep_float=0.0)) == ["y"]
    made = quantized(tiny, min_cosine=0.99, keep_float=0.25)
    assert list(made.kept_float) == ["y"]
    assert int8_nodes(made) == []
    np.testing.assert_array_equal(outputs(tiny, made.model, "y"), outputs(tiny, loaded(tiny), "y"))


@pytest.mark.parametrize("name", ["cnn", "unbiased", "shared"])
def test_biases_take_up_what_rounding_shifts(quantized, name):
    tiny = replace(NETWORKS[name], weights={**NETWORKS[name].weights})
    for key, array in tiny.weights.items():  # coarse, so that there is something to correct
        if array.ndim > 1:
            tiny.weights[key] = array * np.where(np.arange(array.size) % 7, 1, 12).reshape(array.shape).astype("f4")
    plain, corrected = (quantized(tiny, correct_bias=correct) for correct in (False, True))

    def shifts(model):
        """Return how far channels of the first layer, which alone reads the same, are from the float network's."""
        return np.abs((outputs(tiny, loaded(tiny), "c1") - outputs(tiny, model, "c1")).mean(axis=(0, 2, 3))).mean()

    assert shifts(corrected.model) < 0.5 * shifts(plain.model)


def test_transposed_convolutions_are_corrected_too(quantized):
    """Both with a bias and without: what they give has the mean of the float network's."""
    tiny = replace(NETWORKS["upscaled"], weights={**NETWORKS["upscaled"].weights})
    for key in ("w1", "w2"):  # coarse, so that there is something to correct
        array = tiny.weights[key]
        tiny.weights[key] = array * np.where(np.arange(array.size) % 7, 1, 12).reshape(array.shape).astype("f4")
    plain, corrected = (quantized(tiny, correct_bias=correct) for correct in (False, True))
    for name in ("t1", "t2"):

        def shift(model, name=name):
            return np.abs((outputs(tiny, loaded(tiny), name) - outputs(tiny, model, name)).mean(axis=(0, 2, 3))).mean()

        assert shift(corrected.model) < 0.5 * shift(plain.model), name
    assert cosine(NETWORKS["upscaled"], quantized(NETWORKS["upscaled"], correct_bias=True).model, "y") > 0.999


def test_the_same_twice(quantized):
    first, second = (quantized(NETWORKS["cnn"], correct_bias=True).model for _ in range(2))
    assert grids_of(first.graph) == grids_of(second.graph)
    for (name, codes, scales), other in zip(network_codes(first.graph), network_codes(second.graph), strict=True):
        assert name == other[0]
        np.testing.assert_array_equal(codes, other[1])
        np.testing.assert_array_equal(scales, other[2])


@pytest.mark.parametrize("kind", ["minmax", "percentile", "entropy", "mse"])
def test_every_way_to_find_a_range(quantized, kind):
    for grids in ("shifted", "signed"):
        assert cosine(NETWORKS["cnn"], quantized(NETWORKS["cnn"], range=kind, grids=grids).model, "y") > 0.99


def test_numbers_that_are_not_finite_are_refused(quantized):
    broken = replace(NETWORKS["cnn"], weights={**NETWORKS["cnn"].weights, "b4": np.full(12, np.inf, np.float32)})
    with pytest.raises(CheckpointError, match="not finite"):
        quantized(broken)
