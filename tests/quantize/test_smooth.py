"""Channels that are scaled in front of products: what is moved, where it goes, and that the function stays."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx.shape_inference import infer_shapes
from tiny_networks import Tiny, weights

from edgec.calibrate.run import run
from edgec.graph.rewrite import array_of
from edgec.graph.store import Store
from edgec.quantize.placement import place
from edgec.quantize.qdq import Grid, quantize_network
from edgec.quantize.smooth import Smoothed, smooth

# Two of 24 channels are far larger than the others.
WILD = np.where(np.isin(np.arange(24), (3, 17)), 80, 1).astype(np.float32)
TAME = np.ones(24, np.float32)
SIZES = weights(w=(24, 24), v=(24, 24), b=(24,), g=(24,))


def tiny(body, *names, outputs="float[N, 24] y", **arrays):
    """Return a network; `names` are those of `SIZES` that it reads."""
    text = f"(float[N, 24] x) => ({outputs}) {{{body}}}"
    return Tiny(text, {name: SIZES[name] for name in names} | arrays, None)


def normed(scale, **changes):
    body = "n = LayerNormalization <axis=-1> (x, g, b) y = MatMul (n, w)"
    return tiny(body, "w", g=SIZES["g"] * scale, b=SIZES["b"] * scale, **changes)


def model_of(network):
    return ir.from_proto(infer_shapes(network.proto(), data_prop=True))


def batches(count=4, seed=1):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((40, 24)).astype(np.float32)} for _ in range(count)]


def smoothed(network, **options):
    """Return the float model, the same with scaled channels, and what was found; both compute the same."""
    before = model_of(network)
    after = before.clone()
    found = smooth(after, place(after, ()), batches(), **options)
    unseen = batches(1, seed=9)
    (expected,), (made,) = run(before, unseen, threads=1), run(after, unseen, threads=1)
    for name, array in expected.items():
        np.testing.assert_allclose(made[name], array, atol=1e-6 * np.abs(array).max(), rtol=1e-6)
    return before, after, found


def kinds(model):
    return [node.op_type for node in model.graph]


def error_of_int8(model, expected, tmp_path, *, symmetric):
    """Return the mean square of what int8 changes of y."""
    placement = place(model, ())
    seen = list(run(model, batches(), list(placement.groups), threads=1))
    grids = {
        name: Grid.over(min(s[name].min() for s in seen), max(s[name].max() for s in seen), symmetric=symmetric)
        for name in placement.groups
    }
    with Store(tmp_path / f"{id(model)}.bin") as store:
        made = quantize_network(model, placement, grids, store)
    (found,) = run(made, batches(1, seed=9), threads=1)
    return float(np.square(found["y"] - expected).mean())


@pytest.mark.parametrize("symmetric", [False, True])
def test_of_wild_channels_less_is_lost(symmetric, tmp_path):
    before, after, found = smoothed(normed(WILD), symmetric=symmetric)
    assert len(found) == 1
    assert (found[0].value, found[0].folded) == ("n", True)
    assert found[0].power > 0
    assert 0 < found[0].error < 0.7
    (expected,) = run(before, batches(1, seed=9), threads=1)
    plain, better = (error_of_int8(model, expected["y"], tmp_path, symmetric=symmetric) for model in (before, after))
    assert better < 0.3 * plain
    assert better / plain == pytest.approx(found[0].error, rel=0.5)  # what was foreseen


def test_tame_channels_are_left_alone():
    before, after, found = smoothed(normed(TAME))
    assert found == []
    assert ir.to_proto(after).SerializeToString() == ir.to_proto(before).SerializeToString()


class TestWhereTheScalesGo:
    def test_into_a_norm_that_only_products_read(self):
        before, after, found = smoothed(normed(WILD))
        assert found[0].folded
        assert kinds(after) == kinds(before)
        scales = SIZES["g"] * WILD / array_of(after.graph[0].inputs[1])
        assert len(set(scales.tolist())) > 1
        np.testing.assert_array_equal(np.log2(scales) % 1, 0)  # powers of two: nothing is rounded
        np.testing.assert_array_equal(array_of(after.graph[0].inputs[2]) * scales, SIZES["b"] * WILD)
        np.testing.assert_array_equal(array_of(after.graph[1].inputs[1]), SIZES["w"] * scales[:, None])
        assert not {"g", "b", "w"} & after.graph.initializers.keys()

    @pytest.mark.parametrize(
        "network",
        [
            pytest.param(
                tiny(
                    "n = LayerNormalization <axis=-1> (x, g, b) m = MatMul (n, w) y = Add (m, n)",
                    "w",
                    g=SIZES["g"] * WILD,
                    b=SIZES["b"] * WILD,
                ),
                id="others read it too",
            ),
            pytest.param(normed(WILD, outputs="float[N, 24] y, float[N, 24] n"), id="it is an output"),
            pytest.param(tiny("n = Mul (x, g) y = MatMul (n, w)", "w", g=WILD), id="it is no norm"),
            pytest.param(
                tiny(
                    "h = Tanh (g) n = LayerNormalization <axis=-1> (x, h, b) m = Mul (n, s) y = MatMul (m, w)",
                    *("w", "g", "b"),
                    s=WILD,
                ),
                id="its scale is computed",
            ),
        ],
    )
    def test_else_into_a_multiplication(self, network):
        before, after, found = smoothed(network)
        assert [each.folded for each in found] == [False]
        assert len(kinds(after)) == len(kinds(before)) + 1
        (product,) = (node for node in after.graph if node.op_type == "MatMul")
        assert product.inputs[0].name == f"{found[0].value}.smoothed"
        assert product.inputs[0].producer().op_type == "Mul"
        others = [node for node in after.graph if node.op_type not in ("MatMul", "Mul")]
        assert not any(value is product.inputs[0] for node in others for value in node.inputs)

    def test_a_norm_without_a_bias(self):
        _, after, found = smoothed(
            tiny("n = LayerNormalization <axis=-1> (x, g) y = MatMul (n, w)", "w", g=SIZES["g"] * WILD)
        )
        assert found[0].folded
        assert kinds(after) == ["LayerNormalization", "MatMul"]

    def test_constants_of_a_norm_that_another_reads(self):
        """The other norm keeps them."""
        body = """n = LayerNormalization <axis=-1> (x, g, b) m = MatMul (n, w) t = Tanh (m)
                  o = LayerNormalization <axis=-1> (t, g, b) y = Tanh (o)"""
        _, after, found = smoothed(tiny(body, "w", g=SIZES["g"] * WILD, b=SIZES["b"] * WILD))
        assert [each.value for each in found] == ["n"]
        assert {"g", "b"} <= after.graph.initializers.keys()


class TestReaders:
    def test_all_of_them_get_the_same_scales(self):
        body = """n = LayerNormalization <axis=-1> (x, g, b) p = MatMul (n, w) q = MatMul (n, v) y = Add (p, q)"""
        _, after, found = smoothed(tiny(body, "w", "v", g=SIZES["g"] * WILD, b=SIZES["b"] * WILD))
        assert [(each.value, each.folded) for each in found] == [("n", True)]
        moved = [array_of(after.graph[at].inputs[1]) / SIZES[name] for at, name in ((1, "w"), (2, "v"))]
        np.testing.assert_array_equal(*moved)

    def test_one_multiplication_serves_all(self):
        body = "n = Mul (x, g) p = MatMul (n, w) q = MatMul (n, v) a = Add (p, q) y = Add (a, n)"
        _, after, found = smoothed(tiny(body, "w", "v", g=WILD))
        assert [each.folded for each in found] == [False]
        assert kinds(after) == ["Mul", "Mul", "MatMul", "MatMul", "Add", "Add"]

    @pytest.mark.parametrize("second", ["n", "o"])
    def test_a_weight_that_two_share(self, second):
        """Once behind the same value, once behind another one, for which it stays as it is, or is scaled anew."""
        body = f"""n = Mul (x, g) o = Mul (x, h) p = MatMul (n, w) q = MatMul ({second}, w) t = Mul (p, o)
                   y = Add (q, t)"""
        _, after, found = smoothed(tiny(body, "w", g=WILD, h=TAME))
        assert [each.value for each in found] == ["n"]
        read = [node.inputs[1].name for node in after.graph if node.op_type == "MatMul"]
        assert read == ["w.smooth.n", "w.smooth.n" if second == "n" else "w"]
        both = tiny(body, "w", g=WILD, h=WILD[::-1].copy())
        _, _, found = smoothed(both)
        assert [each.value for each in found] == (["n"] if second == "n" else ["n", "o"])


def test_channels_and_weights_of_zeros():
    """What is nothing has no size to be scaled by, and stays nothing."""
    dead = np.where(np.arange(24) < 4, 0, WILD * 1.0).astype(np.float32)
    w = SIZES["w"].copy()
    w[20:] = 0
    w[:, :3] = 0
    _, after, found = smoothed(tiny("n = Mul (x, g) y = MatMul (n, w)", g=dead, w=w))
    assert [each.value for each in found] == ["n"]
    for value in after.graph.initializers.values():
        assert np.isfinite(array_of(value)).all()
    nothing = tiny("n = Mul (x, g) y = MatMul (n, w)", g=np.zeros(24, np.float32), w=w)
    assert smoothed(nothing)[2] == []


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("y = Tanh (x)", ()),
        ("y = MatMul (x, w)", ("w",)),  # nobody makes the input
        ("n = Mul (x, g) t = Tanh (w) y = MatMul (n, t)", ("w", "g")),
    ],
)
def test_where_nothing_can_be_moved(body, names):
    network = tiny(body, *names)
    model = model_of(network)
    before = ir.to_proto(model).SerializeToString()
    assert smooth(model, place(model, ()), batches()) == []
    assert ir.to_proto(model).SerializeToString() == before


def test_what_stays_in_float_is_left_alone():
    model = model_of(normed(WILD))
    assert smooth(model, place(model, (), lambda name: name == "y"), batches()) == []


def test_batches_are_the_samples_whatever_their_size():
    """Ends are those of all rows; rows are drawn from each batch."""
    model, whole = model_of(normed(WILD)), {"x": np.concatenate([batch["x"] for batch in batches()])}
    pieces = [{"x": whole["x"][at : at + 1]} for at in range(len(whole["x"]))]
    found = [smooth(model.clone(), place(model, ()), some) for some in ([whole], pieces)]
    assert [each[0].value for each in found] == ["n", "n"]
    assert found[0][0].error == pytest.approx(found[1][0].error, rel=0.2)


def test_the_same_twice():
    (_, first, found), (_, second, again) = (smoothed(normed(WILD)) for _ in range(2))
    assert found == again
    assert all(isinstance(each, Smoothed) for each in found)
    assert ir.to_proto(first).SerializeToString() == ir.to_proto(second).SerializeToString()
