"""Which nodes compute in int8, and which values are rounded once for all."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.shape_inference import infer_shapes
from tiny_networks import NETWORKS, Tiny, weights

from edgec.quantize.operators import KEEPING
from edgec.quantize.placement import Weight, place, rounded_values

FOLLOW = frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", *KEEPING})


def model_of(graph, **arrays):
    """Return a model; its weights are named in `arrays`, by shape or as arrays."""
    made = weights(**{name: shape for name, shape in arrays.items() if isinstance(shape, tuple)})
    made |= {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
    return ir.from_proto(infer_shapes(Tiny(graph, made, None).proto(), data_prop=True))


def network(name):
    return ir.from_proto(infer_shapes(NETWORKS[name].proto(), data_prop=True))


def nodes(placement):
    return [site.node for site in placement.sites]


def test_a_convolutional_network_stays_in_integers():
    placement = place(network("cnn"), FOLLOW)
    assert nodes(placement) == ["c1", "c2", "c3", "sum", "c4", "pool", "flat", "y"]
    sites = {site.node: site for site in placement.sites}
    assert sites["sum"].data == ("c3", "a1")
    assert sites["sum"].weight is None
    assert (sites["c2"].data, sites["c2"].weight, sites["c2"].bias) == (("a1",), Weight("w2", 0), "b2")
    assert sites["y"].weight == Weight("w5", 0)  # transposed
    # What is rounded: the input, behind activations, and both sides of the addition. Flatten keeps the scale.
    assert dict(placement.groups) == {name: name for name in ("x", "a1", "a2", "c3", "sum", "a4", "pool", "flat")} | {
        "flat": "pool"
    }
    assert placement.shared == {"a1", "a2", "c3", "sum", "a4", "pool", "flat"}
    assert placement.floats == {}
    assert list(rounded_values(placement)) == ["x", "a1", "a2", "c3", "sum", "a4", "pool"]
    assert placement.weights == {f"w{n}": Weight(f"w{n}", 0) for n in range(1, 6)}


def test_without_followers_anchors_are_alone():
    placement = place(network("cnn"), ())
    assert nodes(placement) == ["c1", "c2", "c3", "c4", "y"]
    assert set(placement.groups) == {"x", "a1", "a2", "sum", "flat"}
    assert placement.shared == {"a1", "a2"}


def test_the_model_is_left_alone():
    model = network("cnn")
    before = ir.to_proto(model).SerializeToString()
    place(model, FOLLOW, round_convolutions=True)
    assert ir.to_proto(model).SerializeToString() == before


def test_followers_lead_to_anchors():
    model = model_of(
        """(float[N, 3, 8, 8] x) => (float[N, 4, 4, 4] p, float[N, 4, 8, 8] q) {
            c = Conv (x, w, b)
            a = Relu (c)
            p = MaxPool <kernel_shape=[2, 2], strides=[2, 2]> (a)
            q = Conv (a, v)
        }""",
        w=(4, 3, 1, 1), b=(4,), v=(4, 4, 1, 1),
    )  # fmt: skip
    assert nodes(place(model, FOLLOW)) == ["c", "q"]


def test_an_operator_with_a_float_side_does_not_follow():
    model = model_of(
        """(float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
            c = Conv (x, w)
            t = Tanh (c)
            s = Add (c, t)
            k = Add (c, b)
            y1 = Conv (s, w)
            y2 = Conv (k, w)
            y = Sub (y1, y2)
        }""",
        w=(4, 4, 1, 1), b=np.ones((4, 1, 1), np.float32),
    )  # fmt: skip
    placement = place(model, FOLLOW)
    assert nodes(placement) == ["c", "y1", "y2"]
    assert set(placement.groups) == {"x", "s", "k"}  # what c gives is read by floats alone


def test_an_activation_that_is_read_twice_is_not_absorbed():
    model = model_of(
        """(float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
            c = Conv (x, w)
            a = Relu (c)
            d = Conv (c, w)
            e = Conv (a, w)
            y = Mul (d, e)
        }""",
        w=(4, 4, 1, 1),
    )
    placement = place(model, FOLLOW)
    assert set(placement.groups) == {"x", "c", "a"}
    assert placement.shared == {"c"}  # Relu reads it rounded; what Relu gives was not made of integers


def test_outputs_are_given_as_floats():
    placement = place(network("middle"), FOLLOW)
    assert nodes(placement) == ["c1", "c2", "sum", "c3"]
    assert set(placement.groups) == {"x", "a1", "c1", "a2", "sum"}
    assert placement.shared.isdisjoint({"c1", "a2"})
    assert "sum" in placement.shared


def test_shapes_are_changed_in_integers():
    placement = place(network("readers"), FOLLOW)
    assert nodes(placement) == ["c1", "c2", "wide", "turned", "p"]
    assert placement.groups["wide"] == placement.groups["turned"] == "a1"
    assert placement.floats == {"q": "its weight is no constant of its own"}


def test_subgraphs_stay_in_float():
    model = network("branch")
    name_nodes(model)
    placement = place(model, FOLLOW)
    assert nodes(placement) == ["c1", "c2"]
    assert placement.floats == {"t": "inside If: stays float"}
    # Rounded where the graph itself reads it; its name is not lost for the subgraph.
    assert set(placement.groups) == {"x", "a1"}


def test_the_option_that_decides_an_if_is_named():
    model = model_of(
        """(float[N, 4] x, int64 rate) => (float[N, 4] y) <int64 wide = {16000}> {
            c = Equal (rate, wide)
            y = If (c) <then_branch = t () => (float[N, 4] a) {a = MatMul (x, w)},
                        else_branch = e () => (float[N, 4] b) {h = MatMul (x, x) b = MatMul (h, w)}>
        }""",
        w=(4, 4),
    )
    name_nodes(model)
    why = "inside If: stays float; --fix rate=16000 decides which branch runs"
    assert place(model, FOLLOW).floats == {"a": why, "b": why}  # h has no weight


def name_nodes(model):
    for node in model.graph.all_nodes():
        node.name = node.outputs[0].name


REFUSED = {
    "its weight is no constant of its own": [
        ("(float[2, 4] x) => (float[2, 2] y) {t = Transpose (x) y = MatMul (x, t)}", {}),
        ("(float[4, 2] x) => (float[3, 2] y) {y = MatMul (w, x)}", {"w": (3, 4)}),
        ("(float[2, 3, 4] x) => (float[2, 3, 5] y) {y = MatMul (x, w)}", {"w": (2, 4, 5)}),
        ("(float[2, 4] x) => (float[2, 3] y, float[4, 3] w) {y = MatMul (x, w)}", {"w": (4, 3)}),
        ("(double[2, 4] x) => (double[2, 3] y) {y = MatMul (x, w)}", {"w": np.ones((4, 3))}),
    ],
    "it scales or transposes what it reads": [
        ("(float[2, 4] x) => (float[2, 3] y) {y = Gemm <alpha=0.5> (x, w)}", {"w": (4, 3)}),
        ("(float[2, 4] x) => (float[2, 3] y) {y = Gemm <beta=2.0> (x, w, b)}", {"w": (4, 3), "b": (3,)}),
        ("(float[4, 2] x) => (float[2, 3] y) {y = Gemm <transA=1> (x, w)}", {"w": (4, 3)}),
    ],
    "a transposed convolution in groups has no scale per output": [
        ("(float[1, 4, 5, 5] x) => (float[1, 4, 5, 5] y) {y = ConvTranspose <group=2> (x, w)}", {"w": (4, 2, 1, 1)}),
    ],
    "what it multiplies is a constant, too": [
        ("(float[2, 3] x) => (float[2, 3] y) {m = MatMul (v, w) y = Add (x, m)}", {"v": (2, 4), "w": (4, 3)}),
    ],
}


@pytest.mark.parametrize(("reason", "graph", "arrays"), [(r, g, a) for r, cases in REFUSED.items() for g, a in cases])
def test_what_cannot_be_int8_says_why(reason, graph, arrays):
    placement = place(model_of(graph, **arrays), FOLLOW)
    assert placement.sites == ()
    assert list(placement.floats.values()) == [reason]


def test_a_weight_has_scales_along_one_axis():
    placement = place(network("shared"), FOLLOW)
    weights = {site.node: (site.weight, site.bias) for site in placement.sites}
    assert weights["c1"] == weights["c2"] == (Weight("w", 0), "b")
    assert weights["c3"] == (Weight("w", 0), None)
    assert weights["m"] == (Weight("square", 1), None)
    assert weights["z"] == (Weight("square", 1), "bz")
    assert placement.floats == {"t": "its weight has scales along the other axis, for another node"}
    # Where the first reader stays in float, the other one may have its way.
    rest = place(network("shared"), FOLLOW, {"m", "z"}.__contains__)
    assert rest.weights["square"] == Weight("square", 0)


@pytest.mark.parametrize(
    ("graph", "rows", "is_lookup"),
    [
        ("y = Gather (w, i)", 1024, True),
        ("y = Gather (w, i)", 1023, False),
        ("y = Gather <axis=1> (w, i)", 1024, False),
        ("r = Gather (w, i) s = Gather (w, i) y = Add (r, s)", 1024, False),
    ],
)
def test_rows_of_large_tables_are_looked_up_as_integers(graph, rows, is_lookup):
    model = model_of(f"(int64[3] i) => (float[A, B] y) {{{graph}}}", w=(rows, 8))
    placement = place(model, FOLLOW)
    assert [(site.op_type, site.data, site.weight) for site in placement.sites] == (
        [("Gather", (), Weight("w", 0))] if is_lookup else []
    )
    assert placement.groups == {}
    assert place(model, FOLLOW, lambda _: True).sites == ()


def test_biases_of_other_shapes_are_added_as_floats():
    sites = {site.node: site for site in place(network("odd"), FOLLOW).sites}
    assert sites["c1"].bias is None  # computed
    assert sites["y"].bias is None  # (1, outputs)
    assert sites["u"].bias == "b5"  # one number for all
    assert sites["c2"].bias == "b2"


def test_nodes_that_are_skipped():
    placement = place(network("cnn"), FOLLOW, {"c3", "sum"}.__contains__)
    assert nodes(placement) == ["c1", "c2", "c4", "pool", "flat", "y"]
    assert placement.floats == {"c3": "asked for"}
    # A follower that is fed a float does not follow: what it gives is rounded for the next anchor alone.
    assert "sum" not in nodes(place(network("cnn"), FOLLOW, {"c3"}.__contains__))


def test_only_some_operators_may_be_anchors():
    """As where scales are found while the network runs: no runtime does that for convolutions."""
    why = "dynamic int8 covers products only"
    placement = place(network("cnn"), (), anchors=("MatMul", "Gemm"))
    assert nodes(placement) == ["y"]
    assert dict(placement.groups) == {"flat": "flat"}
    assert placement.floats == dict.fromkeys(("c1", "c2", "c3", "c4"), why)
    nothing = place(network("upscaled"), FOLLOW, anchors=("MatMul", "Gemm"))
    assert (nothing.sites, dict(nothing.groups)) == ((), {})
    assert nothing.floats == dict.fromkeys(("t1", "t2", "c3"), why)
    # What the user asked for, and what cannot be, is said first.
    told = place(network("odd"), (), {"c1"}.__contains__, anchors=("MatMul", "Gemm"))
    assert (told.floats["c1"], told.floats["c2"]) == ("asked for", why)
    assert told.floats["z"] == "it scales or transposes what it reads"
    # Tables are no anchors: they are looked up as integers all the same.
    table = model_of("(int64[3] i) => (float[A, B] y) {y = Gather (w, i)}", w=(1024, 8))
    assert nodes(place(table, (), anchors=())) == ["y"]


class TestRoundedConvolutions:
    def test_what_only_floats_read_is_rounded_too(self):
        model = network("upscaled")
        without, placement = place(model, FOLLOW), place(model, FOLLOW, round_convolutions=True)
        assert set(placement.groups) - set(without.groups) == {"c3"}
        assert placement.groups["c3"] == "c3"
        assert placement.shared - without.shared == {"c3"}
        assert nodes(placement) == nodes(without)

    def test_behind_the_activation(self):
        assert "a2" in place(network("sound"), FOLLOW, round_convolutions=True).shared

    def test_outputs_and_what_subgraphs_read_are_not(self):
        model = model_of(
            """(float[1, 3, 6, 6] x, bool c) => (float[1, 4, 6, 6] o, float[1, 4, 6, 6] z) {
                o = Conv (x, w)
                s = Conv (x, v)
                z = If (c) <then_branch = t () => (float[1, 4, 6, 6] a) {a = Neg (s)},
                            else_branch = e () => (float[1, 4, 6, 6] b) {b = Abs (s)}>
            }""",
            w=(4, 3, 1, 1), v=(4, 3, 1, 1),
        )  # fmt: skip
        assert set(place(model, FOLLOW, round_convolutions=True).groups) == {"x"}
        assert "y" not in place(network("middle"), FOLLOW, round_convolutions=True).groups


def test_every_group_is_read_by_a_site_or_ends_a_convolution():
    for name in NETWORKS:
        for round_convolutions in (False, True):
            placement = place(network(name), FOLLOW, round_convolutions=round_convolutions)
            read = {value for site in placement.sites for value in site.data}
            assert read <= set(placement.groups), name
            assert set(placement.groups) - read <= placement.shared, name
            assert set(placement.groups.values()) <= set(placement.groups), name
            if not round_convolutions:
                assert read == set(placement.groups), name
            assert len(set(nodes(placement))) == len(placement.sites), name
            onnx.checker.check_model(NETWORKS[name].proto())
