"""Running networks on samples: outputs, counts of inner values, budgets, and what is refused."""

import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest

from edgec.calibrate import observe as observing
from edgec.calibrate.histogram import Histogram
from edgec.calibrate.observe import observe
from edgec.calibrate.run import open_model, run
from edgec.errors import CheckpointError, UsageError
from edgec.graph.store import Store

RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "w": RANDOM.normal(size=(16, 64)).astype(np.float32),  # large enough to be handed over in memory
    "b": RANDOM.normal(size=64).astype(np.float32),
    "v": RANDOM.normal(size=(64, 8)).astype(np.float32),
}
MODEL = """
<ir_version: 10, opset_import: ["" : 23]>
net (float[batch, length, 16] x, float[batch, length, 1] mask) => (float[batch, length, 8] y)
<float[16, 64] w, float[64] b, float[64, 8] v> {
    product = MatMul(x, w)
    sum = Add(product, b)
    hidden = Relu(sum)
    masked = Mul(hidden, mask)
    y = MatMul(masked, v)
}
"""
NAMES = ("x", "sum", "hidden", "y", "masked")


@pytest.fixture
def model():
    return ir.from_onnx_text(MODEL, [ir.tensor(array, name=name) for name, array in WEIGHTS.items()])


def samples(count, length=5, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, length, 16)).astype(np.float32)
    return {"x": x, "mask": (random.random((count, length, 1)) < 0.8).astype(np.float32)}


BATCHES = [samples(4, seed=1), samples(3, length=9, seed=2), samples(1, seed=3)]


def by_hand(batch):
    total = batch["x"] @ WEIGHTS["w"] + WEIGHTS["b"]
    hidden = np.maximum(total, 0)
    masked = hidden * batch["mask"]
    return {"x": batch["x"], "sum": total, "hidden": hidden, "masked": masked, "y": masked @ WEIGHTS["v"]}


def test_outputs_are_those_of_numpy(model):
    for made, batch in zip(run(model, BATCHES, threads=1), BATCHES, strict=True):
        assert list(made) == ["y"]
        np.testing.assert_allclose(made["y"], by_hand(batch)["y"], rtol=1e-4, atol=1e-5)
    (made,) = run(model, BATCHES[:1], ["y", "x", "sum"])
    assert list(made) == ["y", "x", "sum"]
    np.testing.assert_array_equal(made["x"], BATCHES[0]["x"])
    np.testing.assert_allclose(made["sum"], by_hand(BATCHES[0])["sum"], rtol=1e-4, atol=1e-5)


def test_weights_in_a_file_need_not_be_large(model, tmp_path):
    """ONNX Runtime, which gets the graph from memory, would not find the file."""
    with Store(tmp_path / "weights.bin") as store:
        for name, value in model.graph.initializers.items():
            value.const_value = store.add(name, WEIGHTS[name], ir.DataType.FLOAT, WEIGHTS[name].shape)
        store.flush()
        sizes = [value.const_value.nbytes for value in model.graph.initializers.values()]
        assert min(sizes) < 4096 <= max(sizes)  # handed over apart, and not
        for made, batch in zip(run(model, BATCHES, threads=1), BATCHES, strict=True):
            np.testing.assert_allclose(made["y"], by_hand(batch)["y"], rtol=1e-4, atol=1e-5)
        assert all(isinstance(v.const_value, ir.ExternalTensor) for v in model.graph.initializers.values())


# All at once; two samples; one; some values of one.
@pytest.mark.parametrize("budget", [1 << 28, 12_000, 6_000, 2_000, 1])
def test_counts_are_those_of_the_values_whatever_the_budget(model, budget):
    found = observe(model, NAMES, iter(BATCHES), threads=1, budget_bytes=budget)
    assert list(found) == list(NAMES)
    for name, histogram in found.items():
        expected = Histogram()
        for batch in BATCHES:
            expected.add(by_hand(batch)[name])
        assert histogram.lowest == pytest.approx(expected.lowest, rel=1e-4)
        assert histogram.highest == pytest.approx(expected.highest, rel=1e-4)
        assert (histogram.zeros, histogram.limit) == (expected.zeros, expected.limit)
        # A number next to an edge may be counted on its other side.
        assert np.abs(histogram.counts - expected.counts).sum() <= 1e-3 * expected.counts.sum()


def test_values_at_once_fit_the_budget(model):
    """A sample of length 5 has 1280 bytes in each of three values, and 160 in y."""
    for budget, most, groups in (
        (12_000, 3, [("sum", "hidden", "y", "masked")]),
        (4_000, 1, [("sum", "hidden", "y", "masked")]),
        (3_000, 1, [("sum", "hidden", "y"), ("masked",)]),
        (1, 1, [("sum",), ("hidden",), ("y",), ("masked",)]),
    ):
        tap = observing._Tap(model, NAMES[1:], 1, budget)
        assert tap._plan(samples(1)) == (most, groups)
        pieces = list(tap.values(samples(4)))
        assert max(len(array) for _, array in pieces) == most
        for name in NAMES[1:]:
            assert sum(len(array) for found, array in pieces if found == name) == 4


def test_memory_does_not_grow_with_samples(model):
    def peak(count):
        tracemalloc.start()
        observe(model, NAMES, (samples(8, 400, seed) for seed in range(count)), threads=1, budget_bytes=1 << 20)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes

    peak(1)
    assert peak(12) <= 1.1 * peak(2)


def test_the_model_is_left_alone(model):
    def text():
        return ir.to_proto(model).SerializeToString()

    before = text()
    observe(model, NAMES, BATCHES, threads=1)
    list(run(model, BATCHES, ["sum"]))
    assert text() == before


def test_ticks_count_batches(model):
    ticks = []
    observe(model, ["x"], BATCHES, tick=ticks.append)
    assert ticks == ["1", "2", "3"]


SUBGRAPHS = """
<ir_version: 10, opset_import: ["" : 23]>
net (float[n, 4] x, bool flag) => (float[n, 4] y) <float[64, 64] w> {
    big = Shape(w)
    doubled = Add(x, x)
    y = If(flag) <then_branch = one () => (float[n, 4] a) { a = Neg(doubled) },
                  else_branch = two () => (float[n, 4] b) { b = Add(doubled, x) }>
}
"""


def test_values_beside_subgraphs():
    model = ir.from_onnx_text(SUBGRAPHS, [ir.tensor(np.ones((64, 64), np.float32), name="w")])
    x = RANDOM.normal(size=(3, 4)).astype(np.float32)
    batches = [{"x": x, "flag": np.array(flag)} for flag in (True, False)]
    assert [made["y"].tolist() for made in run(model, batches)] == [(-2 * x).tolist(), (3 * x).tolist()]
    found = observe(model, ["doubled", "y"], batches, budget_bytes=1)  # a scalar has no samples: batches stay whole
    assert found["doubled"].highest == 2 * x.max()
    assert found["y"].highest == max(3 * x.max(), -2 * x.min())
    with pytest.raises(ValueError, match="the main graph does not compute a"):
        observe(model, ["a"], batches)


def test_a_constant_may_be_an_output():
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 23]> g (float[N, 2] x) => (float[N, 2] y, float[2] k) { y = Add (x, k) }',
        [ir.tensor(np.array([1, 2], np.float32), name="k")],
    )
    model.graph.outputs[1] = model.graph.initializers["k"]
    (made,) = run(model, [{"x": np.zeros((3, 2), np.float32)}])
    assert made["y"].tolist() == [[1, 2]] * 3
    assert made["k"].tolist() == [1, 2]


def test_a_fixed_batch_is_not_cut():
    model = ir.from_onnx_text(MODEL.replace("batch", "4"), [ir.tensor(a, name=n) for n, a in WEIGHTS.items()])
    assert observe(model, ["y"], BATCHES[:1], budget_bytes=1)["y"].counts.sum() == 4 * 5 * 8
    with pytest.raises(UsageError, match="not what the model takes"):
        observe(model, ["y"], BATCHES[1:2])


def test_rounded_values_are_multiplied_as_floats():
    """Integer kernels would give other sums where they saturate, or round outputs."""
    text = """
    <ir_version: 10, opset_import: ["" : 23]>
    net (float[n, 16] x) => (float[n, 64] y) <float s, uint8 z, float[64] t, int8[16, 64] w> {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        f = DequantizeLinear<axis=1>(w, t)
        y = MatMul(d, f)
    }
    """
    codes = RANDOM.integers(-127, 128, (16, 64)).astype(np.int8)
    scales = RANDOM.random(64).astype(np.float32)
    constants = {"s": np.float32(0.02), "z": np.uint8(120), "t": scales, "w": codes}
    model = ir.from_onnx_text(text, [ir.tensor(np.array(array), name=name) for name, array in constants.items()])
    x = RANDOM.normal(size=(50, 16)).astype(np.float32)
    rounded = (np.clip(np.rint(x / np.float32(0.02)) + 120, 0, 255) - 120) * 0.02
    (made,) = run(model, [{"x": x}])
    np.testing.assert_allclose(made["y"], rounded @ (codes * scales.astype(float)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"x": np.zeros((2, 5, 16))},
        {"x": np.zeros((2, 5, 15), np.float32)},
        {"x": np.zeros((2, 16), np.float32)},
        {"x": np.zeros((3, 5, 16), np.float32)},  # other samples than the mask
        {"y": np.zeros(2)},
    ],
)
def test_samples_that_do_not_fit_are_refused(model, change):
    with pytest.raises(UsageError, match="not what the model takes") as error:
        observe(model, ["y"], [samples(2) | change])
    assert error.value.hint == "it takes x float32 [batch,length,16], mask float32 [batch,length,1]"
    with pytest.raises(UsageError, match="not what the model takes"):
        next(run(model, [samples(2) | change]))


def test_missing_inputs_and_samples_are_refused(model):
    with pytest.raises(UsageError, match="not what the model takes"):
        observe(model, ["y"], [{"x": samples(1)["x"]}])
    with pytest.raises(UsageError, match="no samples"):
        observe(model, ["y"], [])
    with pytest.raises(ValueError, match="does not compute nothing, w"):
        observe(model, ["y", "nothing", "w"], BATCHES)


@pytest.mark.filterwarnings("ignore:overflow")
def test_numbers_that_are_not_finite_are_refused(model):
    batch = samples(2)
    batch["x"][1, 2, 3] = 3e38
    with pytest.raises(CheckpointError, match="not finite") as error:
        observe(model, ["hidden"], [samples(2), {**batch, "x": batch["x"] * np.float32(1.1)}])
    assert error.value.where == "hidden"
    batch["x"][1, 2, 3] = np.nan
    with pytest.raises(UsageError, match="not finite") as refused:
        observe(model, ["x"], [batch])
    assert refused.value.where == "x"


def test_what_onnx_runtime_refuses(model):
    next(node for node in model.graph if node.op_type == "Relu").op_type = "Rely"
    with pytest.raises(CheckpointError, match="cannot load the model") as error:
        open_model(model, ["y"])
    assert error.value.where == "net"
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        net (float[n] x) => (float[a, b] y) <int64[2] shape> { y = Reshape(x, shape) }""",
        [ir.tensor(np.array([3, -1]), name="shape")],
    )
    with pytest.raises(UsageError, match=r"not run on these samples \(x \[4\]\): The input tensor cannot") as refused:
        next(run(model, [{"x": np.zeros(4, np.float32)}]))
    assert "--input x:float32[576]" in str(refused.value.hint)
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        net (float[4] x, int64[2] shape) => (float[a, b] y) { y = Reshape(x, shape) }"""
    )
    with pytest.raises(CheckpointError, match="cannot run the model"):
        next(run(model, [{"x": np.zeros(4, np.float32), "shape": np.array([3, -1])}]))


def test_the_node_that_fails_is_named_and_nothing_is_logged(capfd):
    """Also where it is in a branch: the innermost, in a sentence, and no log of ONNX Runtime."""
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        net (float[b, n] x, bool on) => (float[k, m] y) <int64[2] shape> {
            y = If (on) <then_branch = t () => (float[c, d] p) {p = Reshape (x, shape)},
                         else_branch = e () => (float[f, g] q) {q = Neg (x)}>
        }""",
        [ir.tensor(np.array([3, -1]), name="shape")],
    )
    for number, node in enumerate(model.graph.all_nodes()):
        node.name = f"{node.op_type}.{number}"
    with pytest.raises(UsageError) as refused:
        next(run(model, [{"x": np.zeros((1, 4), np.float32), "on": np.array(True)}]))
    assert str(refused.value.where).startswith("Reshape.")
    assert "Non-zero status" not in refused.value.what
    assert "--input x:float32[1,576]" in str(refused.value.hint)
    assert capfd.readouterr() == ("", "")
