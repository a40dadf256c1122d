"""The pass that writes QuantizeLinear and DequantizeLinear."""

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.shape_inference import infer_shapes
from tiny_networks import NETWORKS, Tiny, weights

from edgec.calibrate.run import run
from edgec.graph.integers import flat, grids_of, network_codes
from edgec.graph.rewrite import array_of
from edgec.graph.store import Store
from edgec.quantize.operators import KEEPING
from edgec.quantize.placement import place
from edgec.quantize.qdq import Grid, halve_weights, quantize_network, takes_shift

FOLLOW = frozenset({"Add", "GlobalAveragePool", *KEEPING})


def loaded(tiny):
    return ir.from_proto(infer_shapes(tiny.proto(), data_prop=True))


def model_of(graph, **arrays):
    """Return a model; its weights are named in `arrays`, by shape or as arrays."""
    made = weights(**{name: shape for name, shape in arrays.items() if isinstance(shape, tuple)})
    made |= {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
    return loaded(Tiny(graph, made, None))


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store.bin") as store:
        yield store


def rounded(model, store, *, grid=None, **options):
    """Return the model with all integers that there may be, and one grid for all values."""
    placement = place(model, FOLLOW)
    grids = {name: grid or Grid.over(-4, 4, symmetric=False) for name in placement.groups}
    made = quantize_network(model, placement, grids, store, **options)
    check(made)
    return made


def check(model):
    """Make sure that the model is valid ONNX."""
    onnx.checker.check_model(ir.to_proto(ir.external_data.load_to_model(model.clone())))


def int32_biases(model):
    """Return (codes, scales) of each node's bias."""
    found = {}
    for node in model.graph:
        value = node.inputs[2] if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.inputs) > 2 else None
        maker = value.producer() if value is not None else None
        if maker is not None and maker.op_type == "DequantizeLinear":
            found[node.name] = tuple(array_of(part) for part in maker.inputs)
    return found


class TestGrid:
    RANGES = (
        (0, 6), (-1, 1), (-3, 5), (0.1, 7), (-8, -2), (-1e-3, 900), (-900, 1e-3), (0, 1e-30), (-1e30, 1e30),
        (-128, 127), (0, 255), (-1.7, 0), (0, 1e38),
    )  # fmt: skip

    @pytest.mark.parametrize("symmetric", [False, True])
    @pytest.mark.parametrize(("low", "high"), RANGES)
    def test_it_holds_the_range_and_zero(self, low, high, symmetric):
        grid = Grid.over(low, high, symmetric=symmetric)
        assert grid.signed == symmetric
        assert grid.zero_point == 0 if symmetric else 0 <= grid.zero_point <= 255
        first, last = (-128, 127) if symmetric else (0, 255)
        bottom, top = ((end - grid.zero_point) * grid.scale for end in (first, last))
        # Half a step where the zero point is rounded, a quarter where the scale is.
        slack = (0.125 if symmetric else 0.25 if min(low, 0) == 0 or max(high, 0) == 0 else 0.75) * grid.scale
        assert bottom <= min(low, 0) + slack
        assert top >= max(high, 0) - slack
        assert (grid.scale * 2**11 / 2 ** math.frexp(grid.scale)[1]).is_integer()
        for end in (bottom, top, grid.scale):
            assert float(np.float32(end)) == end

    @pytest.mark.parametrize(("low", "high"), [(0, 6), (-2, 0), (-0.25, 0), (0, 0.999)])
    def test_it_ends_inside_the_bound_that_it_stands_for(self, low, high):
        grid = Grid.over(low, high, symmetric=False)
        assert (255 - grid.zero_point) * grid.scale <= high
        assert -grid.zero_point * grid.scale >= low

    def test_ranges_on_one_side(self):
        assert Grid.over(2, 6, symmetric=False) == Grid.over(0, 6, symmetric=False)
        assert Grid.over(2, 6, symmetric=False).zero_point == 0
        assert Grid.over(-6, -2, symmetric=False) == Grid.over(-6, 0, symmetric=False)
        assert Grid.over(-6, -2, symmetric=False).zero_point == 255

    @pytest.mark.parametrize("symmetric", [False, True])
    def test_nothing_but_zeros(self, symmetric):
        assert Grid.over(0, 0, symmetric=symmetric) == Grid(1.0, 0, symmetric)

    @pytest.mark.parametrize("symmetric", [False, True])
    def test_tiny_ranges_have_a_normal_scale(self, symmetric):
        scale = Grid.over(-1e-40, 1e-44, symmetric=symmetric).scale
        assert np.float32(scale) * np.float32(2**-14) >= np.finfo(np.float32).tiny

    @pytest.mark.parametrize(("low", "high"), [(math.nan, 1), (0, math.inf), (-math.inf, math.inf)])
    def test_what_is_no_range(self, low, high):
        with pytest.raises(ValueError, match="range"):
            Grid.over(low, high, symmetric=False)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_weights_and_biases_are_rounded_to_the_nearest_integers(name, symmetric, store):
    model = loaded(NETWORKS[name])
    before = ir.to_proto(model).SerializeToString()
    made = rounded(model, store, grid=Grid.over(-4, 4, symmetric=symmetric))
    assert ir.to_proto(model).SerializeToString() == before

    placement, axes = place(model, FOLLOW), {}
    for weight in placement.weights.values():
        axes[weight.name] = weight.axis
    found = {name: (codes, scales) for name, codes, scales in network_codes(made.graph)}
    assert found.keys() == axes.keys()
    for weight, (codes, scales) in found.items():
        rows = flat(NETWORKS[name].weights[weight], axes[weight])
        assert codes.dtype == np.int8
        assert codes.shape == rows.shape
        assert scales.shape == (len(rows),)
        assert (np.abs(codes * scales[:, None] - rows) <= 0.5001 * scales[:, None]).all()
        assert np.abs(codes).max() >= 126  # scales are float16 numbers

    scale = np.float32(Grid.over(-4, 4, symmetric=symmetric).scale)
    biases = int32_biases(made)
    assert biases.keys() == {site.node for site in placement.sites if site.bias is not None}
    for site in placement.sites:
        if site.bias is not None:
            codes, scales = biases[site.node]
            assert codes.dtype == np.int32
            np.testing.assert_array_equal(scales, found[site.weight.name][1] * scale)
            wanted = NETWORKS[name].weights[site.bias]
            assert (np.abs(codes.astype(float) * scales - wanted) <= 0.5001 * scales).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_who_reads_rounded_values(name, store):
    model = loaded(NETWORKS[name])
    made = rounded(model, store)
    placement = place(model, FOLLOW)
    assert grids_of(made.graph).keys() == placement.groups.keys()
    kinds = [(str(node.name), node) for node in made.graph]
    assert len({name for name, _ in kinds}) == len(kinds)
    assert len({v.name for _, node in kinds for v in node.outputs}) == sum(len(node.outputs) for _, node in kinds)
    sites = {site.node: site for site in placement.sites}
    for node_name, node in kinds:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for value in node.inputs:
            maker = value.producer() if value is not None else None
            is_rounded = maker is not None and maker.op_type == "DequantizeLinear" and maker.inputs[0].producer()
            origin = maker.inputs[0].producer().inputs[0].name if is_rounded else value and value.name
            if node_name in sites and origin in sites[node_name].data:
                assert is_rounded
            if origin in placement.groups and not is_rounded:
                assert origin not in placement.shared
        for value in node.outputs:  # one rounding for each value
            assert [user.op_type for user, _ in value.uses()].count("QuantizeLinear") <= 1


def test_no_value_is_rounded_twice_in_a_row(store):
    made = rounded(loaded(NETWORKS["cnn"]), store)
    for node in made.graph:
        if node.op_type == "QuantizeLinear":
            maker = node.inputs[0].producer()
            assert (
                maker is None
                or maker.op_type not in ("DequantizeLinear", "QuantizeLinear", "Conv")
                or node.name == "c3.quantize"
            )


def test_the_graph_computes_nearly_the_same(store):
    tiny = NETWORKS["cnn"]
    inputs = [batch for batch, _ in tiny.samples().batches()]
    model = loaded(tiny)
    names = list(place(model, FOLLOW).groups)
    seen = list(run(model, inputs, names))
    grids = {
        name: Grid.over(min(s[name].min() for s in seen), max(s[name].max() for s in seen), symmetric=False)
        for name in names
    }
    made = quantize_network(model, place(model, FOLLOW), grids, store)
    for expected, found in zip(run(model, inputs), run(made, inputs), strict=True):
        assert np.abs(expected["y"] - found["y"]).max() < 0.1 * expected["y"].std()


def test_operators_that_keep_numbers_keep_their_scale(store):
    model = loaded(NETWORKS["unbiased"])
    placement = place(model, FOLLOW)
    assert placement.groups["pool"] == placement.groups["flat"] == "a2"
    grids = {name: Grid.over(0, number, symmetric=False) for number, name in enumerate(placement.groups, 1)}
    found = grids_of(quantize_network(model, placement, grids, store).graph)
    assert found["pool"] == found["flat"] == found["a2"]
    assert found["x"] != found["a2"]


def test_weights_alone(store):
    made = rounded(loaded(NETWORKS["cnn"]), store)
    alone = quantize_network(loaded(NETWORKS["cnn"]), place(loaded(NETWORKS["cnn"]), ()), {}, store)
    assert grids_of(alone.graph) == {}
    assert int32_biases(alone) == {}
    first, second = ({n: (c.tobytes(), s.tobytes()) for n, c, s in network_codes(m.graph)} for m in (made, alone))
    assert first == second


def test_each_node_rounds_a_bias_that_it_shares(store):
    model = loaded(NETWORKS["shared"])
    names = list(place(model, FOLLOW).groups)
    grids = {name: Grid.over(0, 2.0**number, symmetric=False) for number, name in enumerate(names)}
    made = quantize_network(model, place(model, FOLLOW), grids, store)
    biases = int32_biases(made)
    first, second = biases["c1"], biases["c2"]
    assert not np.array_equal(first[0], second[0])
    for codes, scales in (first, second):
        np.testing.assert_allclose(codes * scales, NETWORKS["shared"].weights["b"], atol=float(scales.max()))
    assert "b" not in made.graph.initializers
    assert "c3" not in biases
    # One copy of the integers for three nodes.
    assert sum(node.op_type == "DequantizeLinear" and node.inputs[0].name == "w.codes" for node in made.graph) == 1


def test_a_weight_that_floats_read_too_stays(store):
    model = loaded(NETWORKS["shared"])
    placement = place(model, FOLLOW, {"c2"}.__contains__)
    made = quantize_network(model, placement, {n: Grid.over(0, 1, symmetric=False) for n in placement.groups}, store)
    assert {"w", "b", "w.codes"} <= made.graph.initializers.keys()
    check(made)
    inside = loaded(NETWORKS["branch"])  # the subgraph reads it
    assert {"w2", "b2", "w2.codes"} <= rounded(inside, store).graph.initializers.keys()


def test_large_biases_beside_small_scales(store):
    graph = "(float[1, 2, 4, 4] x) => (float[1, 4, 4, 4] y) {y = Conv (x, w, b)}"
    w = np.full((4, 2, 1, 1), 1e-4, np.float32)
    w[3] = 0
    b = np.array([3e4, -2e6, 0.1, 700], np.float32)
    made = rounded(model_of(graph, w=w, b=b), store, grid=Grid.over(0, 1e-4, symmetric=False))
    ((codes, scales),) = int32_biases(made).values()
    assert (np.abs(codes.astype(np.int64)) <= 2**30).all()
    np.testing.assert_allclose(codes * scales.astype(float), b, rtol=1e-5, atol=float(scales.max()))
    x = np.full((1, 2, 4, 4), 1e-4, np.float32)
    (found,) = run(made, [{"x": x}])
    np.testing.assert_allclose(found["y"][0, :, 0, 0], b, rtol=1e-5)


@pytest.mark.parametrize("top", [6.0, 900.0])
def test_channels_of_zeros_keep_their_bias(top, store):
    """The scale of nothing is free, and the bias is all that the channel gives."""
    graph = "(float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y) {y = Conv (x, w, b)}"
    w = np.zeros((2, 3, 1, 1), np.float32)
    w[0] = 0.3
    b = np.array([0.123, 0.3217], np.float32)
    grid = Grid.over(0, top, symmetric=False)
    made = rounded(model_of(graph, w=w, b=b), store, grid=grid)
    ((codes, scales),) = int32_biases(made).values()
    assert abs(codes[1] * float(scales[1]) - b[1]) < 1e-3 * grid.scale
    assert (next(iter(network_codes(made.graph)))[1][1] == 0).all()


def test_what_is_added_twice(store):
    model = model_of(
        """(float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y) {
            c = Conv (x, w)
            s = Add (c, c)
            y = Conv (s, v)
        }""",
        w=(2, 3, 1, 1), v=(2, 2, 1, 1),
    )  # fmt: skip
    made = rounded(model, store)
    (add,) = (node for node in made.graph if node.op_type == "Add")
    assert add.inputs[0] is add.inputs[1]
    assert add.inputs[0].producer().op_type == "DequantizeLinear"


def test_names_that_look_like_ours_are_told_apart(store):
    """A model may call its own constants `a.scale`."""
    model = model_of(
        """(float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y) {
            c = Conv (x, w)
            a = Relu (c)
            d = Conv (a, v)
            y = Mul (d, a_scale)
        }""",
        w=(2, 3, 1, 1), v=(2, 2, 1, 1), a_scale=np.full(1, 7, np.float32),
    )  # fmt: skip
    model.graph.initializers["a_scale"].name = "a.scale"
    made = rounded(model, store, grid=Grid.over(0, 2, symmetric=False))
    assert array_of(made.graph.initializers["a.scale"]) == 7
    assert grids_of(made.graph)["a"][0] == Grid.over(0, 2, symmetric=False).scale


class TestShifts:
    def test_biases_take_them_up(self, store):
        model = loaded(NETWORKS["cnn"])
        shift = np.linspace(-1, 1, 12)
        plain, moved = (int32_biases(rounded(model, store, shifts=s))["c4"] for s in ({}, {"c4": shift}))
        np.testing.assert_allclose((moved[0] - plain[0]) * plain[1], shift, atol=float(plain[1].max()))

    def test_a_convolution_without_a_bias_gets_one(self, store):
        model = loaded(NETWORKS["unbiased"])
        nodes = {node.name: node for node in model.graph}
        shifts = {"c1": np.linspace(-1, 1, 6), "y": np.array([0.5])}
        assert all(takes_shift(nodes[name]) for name in shifts)
        made = rounded(model, store, shifts=shifts)
        biases = int32_biases(made)
        assert biases.keys() == {"c1", "y"}
        for name, shift in shifts.items():
            codes, scales = biases[name]
            np.testing.assert_allclose(codes * scales, shift, atol=float(scales.max()))

    def test_transposed_convolutions_take_them_up(self, store):
        """One with a bias, and one without, whose outputs are along the second axis of its weight."""
        shifts = {"t1": np.linspace(-1, 1, 6), "t2": np.linspace(0.1, 1, 5)}
        plain, moved = (int32_biases(rounded(loaded(NETWORKS["upscaled"]), store, shifts=s)) for s in ({}, shifts))
        assert plain.keys() == {"t1", "c3"}
        for name, (codes, scales) in moved.items():
            before = plain[name][0] if name in plain else 0
            np.testing.assert_allclose((codes - before) * scales, shifts.get(name, 0), atol=float(scales.max()))

    def test_where_there_is_no_place_for_them(self):
        odd = {node.name: node for node in loaded(NETWORKS["odd"]).graph}
        assert not takes_shift(odd["c1"])  # a bias that is computed
        assert not takes_shift(odd["y"])  # one row for all
        mlp = {node.name: node for node in loaded(NETWORKS["mlp"]).graph}
        assert not takes_shift(mlp["m1"])
        upscaled = {node.name: node for node in loaded(NETWORKS["upscaled"]).graph}
        assert all(takes_shift(upscaled[name]) for name in ("t1", "t2"))


class TestHalves:
    def test_large_weights_are_halves(self, store):
        model = model_of("(float[2, 40] x) => (float[2, 40] y) {a = MatMul (x, w) b = MatMul (a, w) y = Add (b, c)}",
                         w=(40, 40), c=(40,))  # fmt: skip
        before = ir.to_proto(model).SerializeToString()
        made = halve_weights(model, store)
        assert ir.to_proto(model).SerializeToString() == before
        check(made)
        assert [node.op_type for node in made.graph] == ["Cast", "MatMul", "MatMul", "Add"]
        assert made.graph.initializers.keys() == {"w.half", "c"}
        x = {"x": np.random.default_rng(0).standard_normal((2, 40)).astype(np.float32)}
        (expected,), (found,) = run(model, [x]), run(made, [x])
        np.testing.assert_allclose(found["y"], expected["y"], atol=1e-2)

    def test_what_halves_cannot_hold_stays(self, store):
        w = np.full((20, 20), 7e4, np.float32)
        made = halve_weights(model_of("(float[2, 20] x) => (float[2, 20] y) {y = MatMul (x, w)}", w=w), store)
        assert made.graph.initializers.keys() == {"w"}

    def test_outputs_integers_and_what_subgraphs_read_stay(self, store):
        model = model_of(
            """(float[2, 20] x, bool c) => (float[2, 20] z, float[20, 20] w) {
                a = MatMul (x, w)
                b = MatMul (a, v)
                z = If (c) <then_branch = t () => (float[2, 20] p) {p = MatMul (a, v)},
                            else_branch = e () => (float[2, 20] q) {q = Neg (b)}>
            }""",
            w=(20, 20), v=(20, 20),
        )  # fmt: skip
        assert halve_weights(model, store).graph.initializers.keys() == {"w", "v"}
