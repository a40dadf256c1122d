import io
import re
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgec.calibrate.run import run
from edgec.errors import PlanError, UsageError
from edgec.frontends.onnx_upgrade import upgrade
from edgec.frontends.onnx_values import name_all
from edgec.fuse import fuse
from edgec.graph.rewrite import array_of
from edgec.prune.channels import prune_channels
from edgec.prune.channels_cost import cost_of
from edgec.prune.channels_groups import components, find_groups
from edgec.prune.channels_scores import measure_channels, score_channels

torch.set_num_threads(1)

SIZE = 12


def conv(inputs, outputs, kernel=3, stride=1, groups=1, bias=True):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)


def head(channels, classes=5):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Net(nn.Module):
    """A module made of parts and a function of them and x."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.function = forward

    def forward(self, x):
        return self.function(self.parts, x)


def chain():
    return nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 24, stride=2), nn.SiLU(), conv(24, 16, 1), head(16))


def residual():
    def forward(m, x):
        x = functional.relu(m["stem"](x))
        x = functional.relu(x + m["b"](functional.relu(m["a"](x))))
        return m["head"](functional.relu(x + m["d"](functional.relu(m["c"](x)))))

    return Net(forward, stem=conv(3, 16), a=conv(16, 24), b=conv(24, 16), c=conv(16, 8), d=conv(8, 16), head=head(16))


def projections():
    def block(inputs, outputs):
        return Net(
            lambda m, x: functional.relu(m["skip"](x) + m["b"](functional.relu(m["a"](x)))),
            a=conv(inputs, outputs, stride=2),
            b=conv(outputs, outputs),
            skip=conv(inputs, outputs, 1, 2),
        )

    return nn.Sequential(conv(3, 16), nn.MaxPool2d(3, 1, 1), block(16, 24), block(24, 32), head(32))


def dense():
    """Pre-activations: batch norm has nothing to be folded into."""

    def layer(inputs, outputs):
        norm = nn.BatchNorm2d(inputs)
        for each in (norm.running_mean, norm.weight.data, norm.bias.data):
            each.copy_(torch.randn(inputs))
        return nn.Sequential(norm, nn.ReLU(), conv(inputs, outputs, bias=False))

    def forward(m, x):
        x = m["stem"](x)
        for name in ("a", "b", "c"):
            x = torch.cat((x, m[name](x)), 1)
        return m["head"](functional.relu(m["transition"](x)))

    return Net(
        forward,
        stem=conv(3, 16),
        a=layer(16, 8),
        b=layer(24, 8),
        c=layer(32, 8),
        transition=layer(40, 20),
        head=head(20),
    )


def inception():
    def forward(m, x):
        x = m["stem"](x)
        pooled = functional.avg_pool2d(x, 3, 1, 1)
        return m["head"](torch.cat((m["a"](x), functional.pad(m["b"](x), (1, 1, 1, 1)), m["c"](pooled), x), 1))

    return Net(forward, stem=conv(3, 16), a=conv(16, 8, 1), b=nn.Conv2d(16, 12, 3), c=conv(16, 16), head=head(52))


def mobile():
    """Depthwise convolutions, squeeze and excitation, an inverted residual."""

    def excited(m, x):
        scale = functional.hardsigmoid(m["up"](functional.relu(m["down"](x.mean((2, 3), keepdim=True)))))
        return m["narrow"](x * scale)

    def forward(m, x):
        x = functional.hardswish(m["stem"](x))
        x = x + excited(m, functional.hardswish(m["deep"](functional.relu6(m["wide"](x)))))
        return m["head"](functional.relu(m["multiplied"](x)))

    return Net(
        forward,
        stem=conv(3, 16, stride=2),
        wide=conv(16, 48, 1),
        deep=conv(48, 48, 5, groups=48),
        down=conv(48, 12, 1),
        up=conv(12, 48, 1),
        narrow=conv(48, 16, 1),
        multiplied=conv(16, 32, groups=16),
        head=head(32),
    )


def grouped():
    """Many small groups, then few large ones."""
    return nn.Sequential(
        conv(3, 32), nn.ReLU(), conv(32, 64, groups=8), nn.ReLU(), conv(64, 32, groups=2), nn.ReLU(), head(32)
    )


def flattened():
    return nn.Sequential(
        conv(3, 8), nn.MaxPool2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 32), nn.ReLU(), nn.Linear(32, 5)
    )


def shuffled():
    def unit(width):
        def forward(m, x):
            kept, changed = x.chunk(2, 1)
            x = torch.cat((kept, m["b"](m["a"](changed))), 1)
            n, c, h, w = x.shape
            return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

        return Net(forward, a=nn.Sequential(conv(width, width, 1), nn.ReLU()), b=conv(width, width, groups=width))

    return nn.Sequential(conv(3, 32), unit(16), unit(16), conv(32, 16, 1), head(16))


def gated():
    def forward(m, x):
        a, b, c = m["stem"](x).split((16, 16, 12), 1)
        return m["head"](m["last"](a * torch.sigmoid(b))) + m["other"](c)

    return Net(forward, stem=conv(3, 44), last=conv(16, 24), head=head(24), other=head(12))


def upsampled():
    def forward(m, x):
        skip = functional.relu(m["a"](x))
        deep = functional.relu(m["b"](functional.max_pool2d(skip, 2)))
        grown = functional.interpolate(deep, scale_factor=2.0, mode="nearest")
        x = torch.cat((skip, grown, m["up"](deep)), 1)
        return m["d"](functional.pixel_shuffle(functional.relu(m["c"](x)), 2)[:, 1:7].mean((2, 3)))

    return Net(
        forward,
        a=conv(3, 16),
        b=conv(16, 24),
        up=nn.ConvTranspose2d(24, 8, 2, 2),
        c=conv(48, 32),
        d=nn.Linear(6, 5),
    )


def shared():
    def forward(m, x):
        x = functional.relu(m["stem"](x))
        return m["head"](m["twice"](functional.relu(m["twice"](x))))

    return Net(forward, stem=conv(3, 16), twice=conv(16, 16), head=head(16))


def attending():
    """One channel that all others meet, and a constant for each channel and place."""

    def forward(m, x):
        x = m["stem"](x)
        return m["head"](x * torch.sigmoid(m["where"](x)) + m["place"].weight.view(1, 16, SIZE, SIZE))

    place = nn.Embedding(16, SIZE * SIZE)
    return Net(forward, stem=conv(3, 16), where=conv(16, 1), place=place, head=head(16))


def tokens():
    """Channels that become the last axis, then an MLP with a residual that LayerNormalization holds."""

    def forward(m, x):
        x = m["patches"](x).flatten(2).transpose(1, 2)
        return m["out"](m["norm"](m["in"](x) + m["down"](functional.gelu(m["up"](x)))))

    return Net(
        forward,
        patches=nn.Conv2d(3, 24, 4, 4),
        up=nn.Linear(24, 48),
        down=nn.Linear(48, 16),
        norm=nn.LayerNorm(16),
        out=nn.Linear(16, 5),
        **{"in": nn.Linear(24, 16)},
    )


NETS = (
    *(chain, residual, projections, dense, inception, mobile, grouped, flattened, shuffled, gated, upsampled),
    *(shared, attending, tokens),
)


def canonical(model):
    model = upgrade(model, Path("model.onnx"))
    name_all(model, tuple(value.name for value in model.graph.outputs))
    fuse(model, "canonical")
    return model


def export(module):
    buffer = io.BytesIO()
    x = torch.zeros(1, 3, SIZE, SIZE)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (x,),
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "batch"}},
        )
    return canonical(ir.serde.deserialize_model(onnx.load_from_string(buffer.getvalue())))


@cache
def _exported(make):
    torch.manual_seed(0)
    return export(make())


def opened(make):
    return _exported(make).clone()


def parsed(graph, **initializers):
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]>\n{graph}')
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(data.astype(np.float32), name) for name, data in initializers.items()
    )
    return canonical(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, strict_mode=True)))


def batch(count=3):
    return {"x": np.random.default_rng(7).standard_normal((count, 3, SIZE, SIZE)).astype(np.float32)}


def evaluate(model, count=3):
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    (outputs,) = run(model, [batch(count)], threads=1)
    return next(iter(outputs.values()))


def random_scores(model, seed=0):
    rng = np.random.default_rng(seed)
    return {group.name: rng.random(len(group.channels)) for group in find_groups(model).groups}


def read_less(model, **how):
    """Return the dense network, in which weights are 0 that the network pruned in this way does not have.

    Numbers of weights are told apart by pruning a network whose weights are numbered.
    """
    masked, numbered = model.clone(), model.clone()
    for name, value in numbered.graph.initializers.items():
        if value.dtype == ir.DataType.FLOAT:
            shape = array_of(value).shape
            value.const_value = ir.tensor(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), name=name)
    pruned, _ = prune_channels(numbered, **how)
    for name, value in masked.graph.initializers.items():
        if value.dtype == ir.DataType.FLOAT and len(value.shape) > 1:
            left = array_of(pruned.graph.initializers[name]).astype(int)
            weight = array_of(value).copy()
            np.put(weight, np.setdiff1d(np.arange(weight.size), left), 0)
            value.const_value = ir.tensor(weight, name=name)
    return masked


def size_of(model):
    return sum(array_of(v).size for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT)


@pytest.mark.parametrize("make", NETS)
def test_pruned_network_computes_what_is_left_of_the_dense_one(make):
    model = opened(make)
    how = {"share": 0.25, "scores": random_scores(model), "multiple": 1}
    pruned, rows = prune_channels(model, **how)
    np.testing.assert_allclose(evaluate(pruned), evaluate(read_less(model, **how)), rtol=1e-4, atol=1e-5)
    assert size_of(pruned) <= 0.75 * size_of(model)
    assert cost_of(pruned).parameters == size_of(pruned)
    assert cost_of(pruned).multiply_adds < cost_of(model).multiply_adds
    assert all(0 < row.kept <= row.channels for row in rows)
    assert any(row.kept < row.channels for row in rows)
    assert size_of(model) == size_of(opened(make))


@pytest.mark.parametrize("make", NETS)
def test_a_pruned_network_can_be_pruned_again_and_knows_its_shapes(make):
    once, _ = prune_channels(opened(make), share=0.1, multiple=4)
    how = {"share": 0.1, "scores": random_scores(once), "multiple": 2, "of": "multiply_adds"}
    twice, _ = prune_channels(once, **how)
    np.testing.assert_allclose(evaluate(twice), evaluate(read_less(once, **how)), rtol=1e-4, atol=1e-5)
    assert cost_of(twice).multiply_adds <= 0.9 * cost_of(once).multiply_adds
    values = [value for node in twice.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    (found,) = run(twice, [batch(2)], [str(value.name) for value in values], threads=1)
    for value in values:
        assert [size if isinstance(size, int) else 2 for size in value.shape] == list(found[value.name].shape)


def silent(module, indices, *layers):
    """Make channels of layers 0, whatever comes in."""
    for layer in layers:
        layer.weight.data[indices] = 0
        layer.bias.data[indices] = 0
    return module


def silent_chain():
    net = chain()
    return silent(silent(net, [1, 4, 5, 15], net[0]), [0, 2, 3, 8, 9, 10, 21, 23], net[2])


def silent_residual():
    net = residual()
    parts = net.parts
    return silent(silent(net, range(3, 15, 2), parts["stem"], parts["b"], parts["d"]), [0, 7, 20, 23], parts["a"])


def silent_projections():
    net = projections()
    first, second = net[2].parts, net[3].parts
    net = silent(silent(net, [1, 2, 5, 9], first["b"], first["skip"]), range(8), second["b"], second["skip"])
    return silent(net, range(10, 18), first["a"])


def silent_mobile():
    net = mobile()
    parts = net.parts
    silent(net, range(16, 32), parts["wide"], parts["deep"], parts["up"])
    return silent(silent(net, range(8), parts["multiplied"]), range(4), parts["stem"], parts["narrow"])


def silent_flattened():
    net = flattened()
    return silent(silent(net, [2, 3, 6, 7], net[0]), range(8), net[4])


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (silent_chain, [12, 16, 16]),
        (silent_residual, [10, 20, 8]),
        (silent_projections, [16, 20, 16, 24, 32]),
        (silent_mobile, [12, 32, 12]),
        (silent_flattened, [4, 24]),
    ],
)
def test_channels_that_are_always_0_go_first_and_change_nothing(make, kept):
    model = opened(make)
    scores = score_channels(model, "magnitude")
    zero = {name: int((score == 0).sum()) for name, score in scores.items()}
    sizes = {name: len(score) - zero[name] for name, score in scores.items() if zero[name]}
    pruned, rows = prune_channels(model, sizes=sizes, scores=scores)
    np.testing.assert_allclose(evaluate(pruned), evaluate(model), rtol=1e-4, atol=1e-5)
    assert [row.kept for row in rows][: len(kept)] == kept


def test_outputs_keep_their_channels():
    model = opened(chain)
    *inner, last = find_groups(model).groups
    assert [group.refused for group in inner] == [None] * 3
    assert last.refused == "y is an output"


def test_few_multiples_are_rounded_to_half_and_nothing_goes_entirely():
    model = opened(chain)
    _, rows = prune_channels(model, share=0.3, scores=random_scores(model))
    assert [row.channels for row in rows] == [16, 24, 16, 5]
    assert all(row.kept % 4 == 0 for row in rows[:3])
    _, rows = prune_channels(model, sizes={row.layers[0]: 1 for row in rows[:3]})
    assert [row.kept for row in rows] == [1, 1, 1, 5]


def test_wide_layers_are_rounded_to_the_multiple():
    model = opened(mobile)
    _, rows = prune_channels(model, share=0.3, scores=random_scores(model))
    assert [row.kept % 8 for row in rows if row.channels == 48] == [0]


def test_many_small_groups_go_whole_and_few_large_ones_give_up_the_same_positions():
    first, second, _ = find_groups(opened(grouped)).groups
    assert [len(first.layers), len(second.layers)] == [2, 1]
    assert [len(first.channels), len(second.channels)] == [4, 16]  # 8 groups, of which the two large ones hold 4 each
    pruned, _ = prune_channels(opened(grouped), sizes={first.name: 3, second.name: 10})
    convs = [node for node in pruned.graph if node.op_type == "Conv"]
    assert [node.attributes.get_int("group", 1) for node in convs] == [1, 6, 2]
    assert [list(node.inputs[1].shape) for node in convs] == [[24, 3, 3, 3], [48, 4, 3, 3], [20, 24, 3, 3]]


def test_a_shuffle_ties_what_it_mixes():
    first, *_ = find_groups(opened(shuffled)).groups
    assert len(first.layers) == 5
    assert len(first.channels) == 32  # of 96: what is next to each other after a shuffle stays so


def test_a_channel_that_meets_all_others_stays():
    where = next(group for group in find_groups(opened(attending)).groups if len(group.channels) == 1)
    assert "Mul" in where.refused
    assert where.refused.endswith("spreads it over other channels")


def test_normalization_over_channels_holds_them():
    refused = [group.refused for group in find_groups(opened(tokens)).groups]
    assert sum(reason is not None for reason in refused) == 2
    assert any("LayerNormalization" in str(reason) for reason in refused)


TWO_LAYERS = """
two (float[1, 3, 12, 12] x) => (float[] y) {{
  a = Conv <pads = [1, 1, 1, 1]> (x, wa, ba)
  {middle}
  y = Conv (b, wb)
}}"""


def two_layers(middle, width=8):
    rng = np.random.default_rng(0)
    return parsed(
        TWO_LAYERS.format(middle=middle),
        wa=rng.standard_normal((8, 3, 3, 3)),
        ba=rng.standard_normal(8),
        wb=rng.standard_normal((5, width, 1, 1)),
        slope=rng.random((8, 1, 1)),
        gain=rng.random(8),
        along=rng.random(12),
    )


INTEGERS = {"zero": [0], "one": [1], "two": [2], "three": [3], "nine": [9], "minus": [-1], "end": [99]}
INTEGERS |= {"space": [0, 1, 2, 3], "pads": [0, 1, 0, 0, 0, 1, 0, 0], "around": [0, 0, 1, 1, 0, 0, 1, 1]}
INTEGERS |= {"kernel": [8, 8, 1, 1], "to": [1, 9, 16, 8], "as": [1, 8, 12, 12], "big": [1, 8, 24, 24]}
INTEGERS |= {"back": [1, 8, 12, 12], "joined": [1, -1, 12], "halves": [1, 2, 4, 144]}


def with_integers(middle):
    """Define the constants that a graph's text reads."""
    read = [name for name in INTEGERS if re.search(rf"[(,] *{name}\b", middle)]
    return "".join(f"{name} = Constant <value_ints = {INTEGERS[name]}> ()\n" for name in read) + middle


@pytest.mark.parametrize(
    ("middle", "width"),
    [
        ("s = Squeeze (a, zero)\n r = Relu (s)\n b = Unsqueeze (r, zero)", 8),
        ("f = Flatten (a)\n g = Relu (f)\n b = Reshape (g, back)", 8),
        ('b = DepthToSpace <blocksize = 2, mode = "CRD"> (a)', 2),
        ("b = DepthToSpace <blocksize = 2> (a)", 2),
        ("b = SpaceToDepth <blocksize = 3> (a)", 72),
        ("p, q, r = Split <axis = 1, num_outputs = 3> (a)\n b = Concat <axis = 1> (r, p)", 5),
        ("p, q = Split <axis = 2, num_outputs = 2> (a)\n b = Add (p, q)", 8),
        ("n = Neg (a)\n b = Concat <axis = 3> (a, n)", 8),
        ("b = Concat <axis = 1> (x, a)", 11),
        ('b = Resize <mode = "nearest"> (a, , , big)', 8),
        ("c = ReduceMean <keepdims = 0> (a, three)\n b = Unsqueeze (c, three)", 8),
        ("c = ReduceL2 <keepdims = 0> (a, two)\n d = Transpose (c)\n e = Transpose (d)\n b = Unsqueeze (e, two)", 8),
        ("b = Slice (a, one, nine, two)", 8),
        ("b = Slice (a, minus, end, two)\n", 8),
        ("b = Slice (a, two, end, one)", 6),
        ("p = Pad (a, around)\n b = LpPool <kernel_shape = [2, 2]> (p)", 8),
        ("b = Softmax <axis = 3> (a)", 8),
        ("b, m = Dropout (a)", 8),
        ("b = PRelu (a, slope)", 8),
        ("b = InstanceNormalization (a, gain, gain)", 8),
        ("c = Greater (a, slope)\n n = Neg (a)\n b = Where (c, a, n)", 8),
        ("c = Reshape (a, joined)\n d = Relu (c)\n b = Reshape (d, back)", 8),
        ("c = Reshape (a, halves)\n d = Relu (c)\n b = Reshape (d, back)", 8),
        ("b = LayerNormalization <axis = 3> (a, along)", 8),
    ],
)
def test_what_moves_channels_is_followed(middle, width):
    model = two_layers(with_integers(middle), width)
    how = {"share": 0.2, "scores": random_scores(model), "multiple": 1}
    pruned, rows = prune_channels(model, **how)
    assert rows[0].kept < rows[0].channels
    np.testing.assert_allclose(evaluate(pruned, 1), evaluate(read_less(model, **how), 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        ("b = LRN <size = 3> (a)", "what it does with channels is not known"),
        ("b = Softmax <axis = 1> (a)", "its result depends on how many there are"),
        ("m = ReduceMax (a, one)\n b = Sub (a, m)", "it reduces them to one number"),
        ("s = Slice (a, zero, nine, one, two)\n b = Concat <axis = 1> (s, s)", "it takes some of them by steps"),
        ("b = Reshape (a, to)", "their axis is lost"),
        ("b = Pad (a, pads)", "it adds channels"),
        ("c = ReduceMean (x, one)\n d = Expand (c, as)\n b = Mul (a, d)", "whose channels stay"),
        ("p = ReduceMean (x, space)\n k = Expand (p, kernel)\n b = Conv (a, k)", "its weight is not a constant"),
    ],
)
def test_what_is_not_known_holds_channels_and_says_why(middle, reason):
    width = {"b = Pad (a, pads)": 10, "b = Reshape (a, to)": 9}.get(middle, 8)
    model = two_layers(with_integers(middle), width)
    group = find_groups(model).groups[0]
    assert reason in group.refused
    assert group.refused.split()[0] in middle
    with pytest.raises(PlanError, match="no channels of this network can be removed") as error:
        prune_channels(model, share=0.1)
    assert reason in error.value.hint


def test_channels_that_a_branch_reads_stay():
    group, *_ = find_groups(
        two_layers("""
          m = ReduceMax <keepdims = 0> (x)
          c = Cast <to = 9> (m)
          b = If (c) <then_branch = t () => (float[1, 8, 12, 12] u) { u = Relu (a) },
                      else_branch = e () => (float[1, 8, 12, 12] v) { v = Neg (a) }>""")
    ).groups
    assert group.refused.endswith("is in a branch or a loop")


def test_a_weight_that_is_also_read_as_a_whole_stays():
    middle = "m = ReduceMax <keepdims = 0> (x)\n w = Mul (wa, m)\n n = ReduceMax <keepdims = 0> (w)\n b = Mul (a, n)"
    group, *_ = find_groups(two_layers(middle)).groups
    assert group.refused.startswith("Mul")
    assert group.refused.endswith("reads wa too")


def test_a_network_without_layers_says_so():
    model = parsed("none (float[1, 3, 12, 12] x) => (float[] y) { y = Relu (x) }")
    with pytest.raises(PlanError, match="no channels of this network can be removed") as error:
        prune_channels(model, share=0.5)
    assert error.value.hint == "it has no layers that give channels"


def test_a_share_that_cannot_go_is_refused():
    with pytest.raises(PlanError, match=r"a share of 99.0% shall go, but at most \d\d.\d% can"):
        prune_channels(opened(chain), share=0.99)


@pytest.mark.parametrize(("size", "error"), [(0, "can keep 1 to 16 channels, not 0"), (17, "not 17")])
def test_sizes_that_cannot_be_are_refused(size, error):
    model = opened(chain)
    name = find_groups(model).groups[0].name
    with pytest.raises(UsageError, match=error):
        prune_channels(model, sizes={name: size})
    with pytest.raises(UsageError, match="no group of channels is called nobody"):
        prune_channels(model, sizes={"nobody": 1})
    last = find_groups(model).groups[-1].name
    with pytest.raises(UsageError, match="can keep 5 to 5 channels, not 4: y is an output"):
        prune_channels(model, sizes={last: 4})


def test_without_scores_no_weight_is_read():
    def unread():
        raise AssertionError("a weight was read")

    model = opened(mobile)
    for name, value in model.graph.initializers.items():
        if value.dtype == ir.DataType.FLOAT and value.const_value.size > 8:
            value.const_value = ir.LazyTensor(unread, value.dtype, value.shape, name=name)
    pruned, rows = prune_channels(model, share=0.25, multiple=1)
    assert cost_of(pruned).parameters <= 0.75 * cost_of(model).parameters
    shares = [row.kept / row.channels for row in rows if row.refused is None]
    assert max(shares) - min(shares) < 0.1


def test_cost_counts_each_product():
    cost = cost_of(opened(chain))
    places = SIZE * SIZE
    assert cost.parameters == 16 * 27 + 16 + 24 * 144 + 24 + 16 * 24 + 16 + 5 * 16 + 5
    assert cost.multiply_adds == places * 16 * 27 + places // 4 * (24 * 144 + 16 * 24) + 5 * 16


def test_cost_of_a_depthwise_and_a_turned_convolution():
    net = nn.Sequential(conv(3, 6, groups=3, bias=False), nn.ConvTranspose2d(6, 4, 2, 2, bias=False))
    places = SIZE * SIZE
    assert cost_of(export(net)).multiply_adds == places * 6 * 9 + places * 6 * 4 * 4


def test_share_of_multiply_adds_and_of_channels():
    model = opened(residual)
    for of, count in (("multiply_adds", lambda m: cost_of(m).multiply_adds), ("channels", None)):
        pruned, rows = prune_channels(model, share=0.3, scores=random_scores(model), multiple=1, of=of)
        if count is None:
            assert sum(row.kept for row in rows) <= 0.7 * sum(row.channels for row in rows)
        else:
            assert 0.65 * count(model) < count(pruned) <= 0.7 * count(model)


def test_scores_are_shares_of_squares():
    model = opened(chain)
    groups = {group.name: group for group in find_groups(model).groups}
    name, group = next(iter(groups.items()))
    first, second = (each for each in find_groups(model).trace.filters if each.labels[0] in group.channels)
    weight = array_of(first.weight).astype(float)
    magnitude = np.square(weight).sum((1, 2, 3))
    np.testing.assert_allclose(score_channels(model, "magnitude")[name], magnitude / magnitude.sum())

    (values,) = run(model, [batch(4)], [str(second.read.name)], threads=1)
    array = values[second.read.name].astype(float)
    found = measure_channels(model, [{"x": batch(4)["x"][:1]}, {"x": batch(4)["x"][1:]}], threads=1)
    rows = array.transpose(1, 0, 2, 3).reshape(16, -1)
    statistic = found[second.read.name]
    np.testing.assert_allclose(statistic.mean, rows.mean(1), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(statistic.products, rows @ rows.T / rows.shape[1], rtol=1e-4, atol=1e-6)
    size = np.square(np.abs(rows).mean(1))
    np.testing.assert_allclose(score_channels(model, "activation", found)[name], size / size.sum(), 1e-5)
    read = np.square(rows).mean(1) * np.square(array_of(second.weight).astype(float)).sum((0, 2, 3))
    np.testing.assert_allclose(score_channels(model, "wanda", found)[name], read / read.sum(), 1e-5)


@pytest.mark.parametrize("make", [projections, mobile, grouped, upsampled])
def test_every_group_that_may_shrink_is_scored(make):
    model = opened(make)
    statistics = measure_channels(model, [batch()], threads=1)
    for method in ("magnitude", "wanda", "activation"):
        scores = score_channels(model, method, statistics)
        for group in find_groups(model).groups:
            assert group.refused or scores[group.name].max() > 0


def test_statistics_are_needed():
    with pytest.raises(UsageError, match="there are no samples"):
        score_channels(opened(chain), "wanda")


def following():
    """Half of the channels follow from the others, or are always the same; layers of three kinds read them."""

    def forward(m, x):
        x = functional.relu(m["a"](x))
        x = functional.relu(m["b"](x)).flatten(2).transpose(1, 2)
        return m["d"](functional.relu(m["c"](x)).mean(1))

    net = Net(forward, a=conv(3, 16), b=conv(16, 8, 1, bias=False), c=nn.Linear(8, 12), d=nn.Linear(12, 5))
    for layer in (net.parts[name] for name in "abc"):
        weight = layer.weight.data
        half = len(weight) // 2
        weight[half:] = 2 * weight[:half]
        weight[-1] = 0
        if layer.bias is not None:
            layer.bias.data[half:] = 2 * layer.bias.data[:half]
            layer.bias.data[-1] = 1
    return net


def test_what_follows_from_other_channels_is_made_up_for():
    model = opened(following)
    statistics = measure_channels(model, [batch()], threads=1)
    groups = [group for group in find_groups(model).groups if group.refused is None]
    assert [len(group.channels) for group in groups] == [16, 8, 12]
    how = {"sizes": {group.name: len(group.channels) // 2 for group in groups}}
    dense, bare = evaluate(model), evaluate(prune_channels(model, **how)[0])
    fitted = evaluate(prune_channels(model, **how, statistics=statistics)[0])
    assert np.abs(fitted - dense).max() < 0.05 * np.abs(bare - dense).max()


@pytest.mark.parametrize("make", NETS)
def test_fitting_changes_no_shape(make):
    model = opened(make)
    how = {"share": 0.25, "scores": random_scores(model)}
    fitted, _ = prune_channels(model, **how, statistics=measure_channels(model, [batch()], threads=1))
    assert evaluate(fitted).shape == evaluate(model).shape
    assert cost_of(fitted).multiply_adds == cost_of(prune_channels(model, **how)[0]).multiply_adds


def test_a_value_of_constants_is_fitted_by_its_mean():
    model = opened(chain)
    name = find_groups(model).groups[0].name
    zeros = {"x": np.zeros((1, 3, SIZE, SIZE), np.float32)}
    statistics = measure_channels(model, [zeros], threads=1)
    pruned, _ = prune_channels(model, sizes={name: 4}, statistics=statistics)
    assert np.isfinite(evaluate(pruned)).all()


def test_measuring_needs_samples():
    with pytest.raises(UsageError, match="there are no samples"):
        measure_channels(opened(chain), [], threads=1)


def test_components_are_those_of_a_search():
    rng = np.random.default_rng(3)
    for count in (1, 7, 200):
        ties = [(rng.integers(count, size=n), rng.integers(count, size=n)) for n in (0, 1, count // 3, count // 3)]
        expected = np.arange(count)
        for _ in range(count):
            for a, b in zip(*(np.concatenate(side) for side in zip(*ties, strict=True)), strict=True):
                expected[[a, b]] = min(expected[a], expected[b])
        np.testing.assert_array_equal(components(count, ties), expected)
    np.testing.assert_array_equal(components(3, []), [0, 1, 2])
