"""Small graphs of old opsets, one for each operator that changed before the canonical opset."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser

_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
_POOL = "kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]"

# name -> (opset, graph)
CASES: dict[str, tuple[int, str]] = {
    **{
        f"Reduce{kind}-{axes}-{opset}": (
            opset,
            f"g (float[2, 3, 4] x) => (float[{shape}] y) {{ y = Reduce{kind} <{attributes}> (x) }}",
        )
        for kind in _REDUCTIONS
        for opset, axes, shape, attributes in (
            (13, "all", "1, 1, 1", "keepdims=1"),
            (13, "some", "2, 1, 4", "axes=[1], keepdims=1"),
            (17, "last", "2, 3", "axes=[-1], keepdims=0"),
        )
    },
    "Split-13": (
        13,
        "g (float[4, 6] x) => (float[4, 2] a, float[4, 2] b, float[4, 2] c) {a, b, c = Split <axis=1> (x)}",
    ),
    "Split-sizes-13": (
        13,
        "g (float[4, 6] x) => (float[4, 1] a, float[4, 5] b) <int64[2] s = {1, 5}> {a, b = Split <axis=1> (x, s)}",
    ),
    "Split-17": (17, "g (float[4, N] x) => (float[2, N] a, float[2, N] b) {a, b = Split (x)}"),
    "BatchNormalization-13": (
        13,
        """g (float[2, 3, 4] x) => (float[2, 3, 4] y)
        <float[3] s = {1, 2, 3}, float[3] b = {0, 1, 2}, float[3] m = {0.5, 0, 1}, float[3] v = {1, 2, 0.5}>
        {y = BatchNormalization <epsilon=0.01> (x, s, b, m, v)}""",
    ),
    "BatchNormalization-14": (
        14,
        """g (float[2, 3, 4] x) => (float[2, 3, 4] y)
        <float[3] s = {1, 2, 3}, float[3] b = {0, 1, 2}, float[3] m = {0.5, 0, 1}, float[3] v = {1, 2, 0.5}>
        {y = BatchNormalization <training_mode=0> (x, s, b, m, v)}""",
    ),
    **{
        f"RoiAlign-{opset}": (
            opset,
            f"""g (float[1, 2, 8, 8] x) => (float[2, 2, 3, 3] y)
            <float[2, 4] r = {{0.0, 0.0, 4.0, 4.0, 1.2, 2.7, 6.4, 7.9}}, int64[2] i = {{0, 0}}>
            {{y = RoiAlign <output_height=3, output_width=3, sampling_ratio=2, spatial_scale=0.9{more}> (x, r, i)}}""",
        )
        for opset, more in ((13, ""), (15, ""), (16, ""), (17, ', coordinate_transformation_mode="output_half_pixel"'))
    },
    **{
        f"GridSample-{mode or 'default'}-{opset}": (
            opset,
            "g (float[1, 2, 4, 4] x, float[1, 3, 3, 2] grid) => (float[1, 2, 3, 3] y) {y = GridSample "
            + (f'<mode="{mode}", padding_mode="border", align_corners=1>' if mode else "<align_corners=0>")
            + " (x, grid)}",
        )
        for opset, mode in ((16, ""), (16, "bilinear"), (17, "bicubic"), (19, "nearest"), (20, "linear"), (20, "cubic"))
    },
    "DFT-17": (17, "g (float[2, 8, 4, 1] x) => (float[2, 8, 4, 2] y) {y = DFT (x)}"),
    "DFT-axis-17": (17, "g (float[2, 8, 4, 1] x) => (float[2, 8, 3, 2] y) {y = DFT <axis=2, onesided=1> (x)}"),
    "DFT-length-19": (
        19,
        "g (float[2, 8, 4, 2] x) => (float[2, 16, 4, 2] y) <int64 n = {16}> {y = DFT <inverse=1> (x, n)}",
    ),
    "DFT-20": (20, "g (float[2, 8, 4, 1] x) => (float[2, 8, 4, 2] y) <int64 a = {2}> {y = DFT (x, , a)}"),
    "GroupNormalization-21": (
        21,
        """g (float[2, 6, 5] x) => (float[2, 6, 5] y)
        <float[6] s = {1, 2, 3, 4, 5, 6}, float[6] b = {6, 5, 4, 3, 2, 1}>
        {y = GroupNormalization <num_groups=3, epsilon=0.01> (x, s, b)}""",
    ),
    **{
        f"Pad-{mode}-{opset}": (
            opset,
            f"""g (float[2, 5] x) => (float[3, 8] y) <int64[4] p = {{1, 2, 0, 1}}, float c = {{7}}>
            {{y = Pad <mode="{mode}"> (x, p{value})}}""",
        )
        for opset, mode, value in ((13, "constant", ", c"), (13, "reflect", ""), (15, "edge", ""), (18, "constant", ""))
    },
    "Pad-axes-18": (
        18,
        "g (float[2, 5] x) => (float[2, 8] y) <int64[2] p = {2, 1}, int64[1] a = {-1}> {y = Pad (x, p, , a)}",
    ),
    **{
        f"Resize-{i}-{opset}": (
            opset,
            f"""g (float[1, 2, 4, 4] x) => (float[1, 2, H, W] y)
            <float[8] r = {{0, 0, 0.1, 0.1, 1, 1, 0.8, 0.9}}, float[4] s = {{1, 1, 2.5, 1.75}},
            int64[4] n = {{1, 2, 7, 3}}>
            {{y = Resize <{attributes}> (x, {rest})}}""",
        )
        for i, (opset, attributes, rest) in enumerate(
            (
                (13, 'mode="nearest"', ", s"),
                (13, 'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"', ", , n"),
                (13, 'mode="linear", coordinate_transformation_mode="align_corners"', ", s"),
                (13, 'mode="linear", coordinate_transformation_mode="pytorch_half_pixel"', ", , n"),
                (13, 'mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1', ", s"),
                (17, 'mode="linear", coordinate_transformation_mode="tf_crop_and_resize"', "r, , n"),
                (18, 'mode="linear", antialias=1', ", , n"),
            )
        )
    },
    **{
        f"{kind}-{opset}": (opset, f"g (float[2, 3, 4] x) => (float[2, 3, 4] y) {{y = {kind} <axis={axis}> (x)}}")
        for kind in ("Softmax", "LogSoftmax", "Hardmax")
        for opset, axis in ((13, -1), (17, 1))
    },
    **{
        f"AveragePool-{i}-{opset}": (
            opset,
            f"g (float[1, 2, 6, 6] x) => (float[1, 2, H, W] y) {{y = AveragePool <{_POOL}, {attributes}> (x)}}",
        )
        for i, (opset, attributes) in enumerate(((13, "ceil_mode=0"), (13, "count_include_pad=1"), (19, "ceil_mode=1")))
    },
    "MaxPool-13": (13, f"g (float[1, 2, 7, 7] x) => (float[1, 2, H, W] y) {{y = MaxPool <{_POOL}, ceil_mode=1> (x)}}"),
    "LpPool-13": (13, f"g (float[1, 2, 6, 6] x) => (float[1, 2, H, W] y) {{y = LpPool <{_POOL}, p=2> (x)}}"),
    "QuantizeLinear-13": (
        13,
        """g (float[2, 3] x) => (float[2, 3] y) <float[3] s = {0.1, 0.2, 0.3}, uint8[3] z = {0, 128, 3}>
        {q = QuantizeLinear <axis=1> (x, s, z) y = DequantizeLinear <axis=1> (q, s, z)}""",
    ),
    "Cast-13": (13, "g (float[2, 3] x) => (int64[2, 3] y) {y = Cast <to=7> (x)}"),
    "Clip-13": (13, "g (float[2, 3] x) => (float[2, 3] y) <float h = {0.5}> {y = Clip (x, , h)}"),
    "Dropout-13": (13, "g (float[2, 3] x) => (float[2, 3] y) {y = Dropout (x)}"),
    "ScatterElements-13": (
        13,
        """g (float[3, 3] x, float[1, 3] u) => (float[3, 3] y) <int64[1, 3] i = {2, 0, 1}>
        {y = ScatterElements <axis=0> (x, i, u)}""",
    ),
    "ScatterND-13": (
        13,
        "g (float[3, 3] x, float[2, 3] u) => (float[3, 3] y) <int64[2, 1] i = {2, 0}> {y = ScatterND (x, i, u)}",
    ),
    "Shape-13": (13, "g (float[N, 3] x) => (int64[2] y) {y = Shape (x)}"),
    "Reshape-13": (13, "g (float[2, 3] x) => (float[6] y) <int64[1] s = {-1}> {y = Reshape (x, s)}"),
    "TopK-13": (13, "g (float[2, 6] x) => (float[2, 2] y, int64[2, 2] i) <int64[1] k = {2}> {y, i = TopK (x, k)}"),
    "CumSum-13": (13, "g (float[2, 6] x) => (float[2, 6] y) <int64 a = {1}> {y = CumSum <reverse=1> (x, a)}"),
    "LayerNormalization-17": (
        17,
        "g (float[2, 3] x) => (float[2, 3] y) <float[3] s = {1, 2, 3}> {y = LayerNormalization <axis=1> (x, s)}",
    ),
    "Attention-24": (
        24,
        "g (float[1, 2, 3, 4] q, float[1, 2, 5, 4] k) => (float[1, 2, 3, 4] y) {y = Attention (q, k, k)}",
    ),
    "If-captures-13": (
        13,
        """g (bool c, float[N, 4] x) => (float[N, 2] y) <float[4, 4] w = {1,2,3,4,5,6,7,8,9,8,7,6,5,4,3,2}> {
        m = MatMul (x, w)
        y = If (c) <
          then_branch = t () => (float[N, 2] a) { a, p = Split <axis=1> (m) },
          else_branch = e () => (float[N, 2] a) {
            s = Constant <value_ints=[2, 2]> ()
            k = ReduceMean <axes=[1]> (m)
            q = Add (m, k)
            p, a = Split <axis=1> (q, s)
          }>
        }""",
    ),
    "Loop-13": (
        13,
        """g (int64 n, float[2, 4] x) => (float[2, 4] y, float[T, 2, 1] z) <bool go = {1}, float half = {0.5}> {
        y, z = Loop (n, go, x) <body = b (int64 i, bool c, float[2, 4] s) => (bool d, float[2, 4] r, float[2, 1] m) {
          d = Identity (c)
          h = Mul (s, half)
          r = Add (h, x)
          m = ReduceMax <axes=[-1]> (r)
        }>
        }""",
    ),
    "Scan-13": (
        13,
        """g (float[4] a, float[3, 4] x) => (float[4] b, float[3, 1] y) {
        b, y = Scan <num_scan_inputs=1, body = s (float[4] p, float[4] q) => (float[4] r, float[1] m) {
          r = Add (p, q)
          m = ReduceSumSquare <axes=[0]> (r)
        }> (a, x)
        }""",
    ),
}


def parse(opset: int, graph: str, *, ir_version: int = 8) -> onnx.ModelProto:
    """Return a model of one graph in ONNX's text form."""
    return onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}]> {graph}')


def save(model: onnx.ModelProto, folder: Path) -> Path:
    """Write a model, without a look at whether it is valid."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def recurrent(kind: str, opset: int) -> onnx.ModelProto:
    """Return a layer that runs both ways, and of which only the last state is used."""
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind]
    rng = np.random.default_rng(0)
    w, r, b = (
        onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w", (2, gates * 4, 3)), ("r", (2, gates * 4, 4)), ("b", (2, gates * 8)))
    )
    info = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node(kind, ["x", "w", "r", "b"], ["", "y"], hidden_size=4, direction="bidirectional")
    inputs, outputs = [info("x", 1, [5, "batch", 3])], [info("y", 1, [2, "batch", 4])]
    graph = onnx.helper.make_graph([node], "g", inputs, outputs, [w, r, b])
    return onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", opset)])
