"""Tiny networks that are no language models, as .onnx files, with samples for them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from edgec.calibrate.arrays import Batch
from edgec.calibrate.samples import Samples
from edgec.frontends.network import Network
from edgec.frontends.source import NetworkOptions, open_network
from edgec.fuse import Fusions

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Tiny:
    """A network: its graph in ONNX's text form, its weights, and what makes inputs of so many samples."""

    graph: str
    weights: Weights
    inputs: Callable[[np.random.Generator, int], Batch]
    opset: int = 23

    def proto(self) -> onnx.ModelProto:
        """Return the model; nodes are called like their first output."""
        proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {self.opset}]> g {self.graph}')
        proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in self.weights.items())
        for node in proto.graph.node:
            node.name = node.output[0]
        onnx.checker.check_model(proto)
        return proto

    def save(self, path: Path) -> Path:
        onnx.save(self.proto(), path)
        return path

    def open(self, folder: Path) -> tuple[Network, Fusions]:
        """Return what the frontend and fusion make of it."""
        return open_network(str(self.save(folder / "tiny.onnx")), NetworkOptions())

    def samples(self, count: int = 16, *, batch: int = 8, seed: int = 1) -> Samples:
        """Return made-up samples."""
        whole = self.inputs(np.random.default_rng(seed), count)

        def batches():  # type: ignore[no-untyped-def]
            for start in range(0, count, batch):
                yield {name: array[start : start + batch] for name, array in whole.items()}, None

        return Samples("tiny", "0" * 64, count, [str(n) for n in range(count)], "N", batch, batches)


def weights(seed: int = 0, **shapes: tuple[int, ...]) -> Weights:
    """Return random weights; those whose names begin with b are biases, those with g are about 1."""
    rng = np.random.default_rng(seed)

    def make(name: str, shape: tuple[int, ...]) -> np.ndarray:
        normal = rng.standard_normal(shape).astype(np.float32)
        if name.startswith("b"):
            return normal * np.float32(0.3)
        if name.startswith("g"):
            return 1 + normal * np.float32(0.2)
        # Inputs of each output: all but the first axis, or for matrices all but the last.
        fan = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
        return normal * np.float32(1.6 / np.sqrt(fan))

    return {name: make(name, shape) for name, shape in shapes.items()}


def _floats(*shape: int, shift: float = 0.3) -> Callable[[np.random.Generator, int], Batch]:
    return lambda rng, count: {"x": (rng.standard_normal((count, *shape)) + shift).astype(np.float32)}


def _tokens(rng: np.random.Generator, count: int) -> Batch:
    mask = np.ones((count, 9), np.int64)
    mask[::2, 6:] = 0
    return {"ids": rng.integers(0, 1100, (count, 9)), "mask": mask}


def _few(dense: Weights, share: float) -> Weights:
    """Return weights of which few are not 0."""
    rng = np.random.default_rng(3)
    return {name: array * (rng.random(array.shape) < share).astype(array.dtype) for name, array in dense.items()}


NETWORKS = {
    "cnn": Tiny(
        """(float[N, 3, 12, 12] x) => (float[N, 5] y) <float low = {0}, float high = {6}> {
            c1 = Conv <kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]> (x, w1, b1)
            a1 = Clip (c1, low, high)
            c2 = Conv <kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=8> (a1, w2, b2)
            a2 = Clip (c2, low, high)
            c3 = Conv (a2, w3, b3)
            sum = Add (c3, a1)
            c4 = Conv (sum, w4, b4)
            a4 = Relu (c4)
            pool = GlobalAveragePool (a4)
            flat = Flatten (pool)
            y = Gemm <transB=1> (flat, w5, b5)
        }""",
        weights(
            w1=(8, 3, 3, 3), b1=(8,), w2=(8, 1, 3, 3), b2=(8,), w3=(8, 8, 1, 1), b3=(8,),
            w4=(12, 8, 1, 1), b4=(12,), w5=(5, 12), b5=(5,),
        ),
        _floats(3, 12, 12),
    ),
    "pruned": Tiny(
        """(float[N, 16, 6, 6] x) => (float[N, 160] y) {
            c1 = Conv <kernel_shape=[3, 3], pads=[1, 1, 1, 1]> (x, w1, b1)
            a1 = Relu (c1)
            flat = GlobalAveragePool (a1)
            rows = Flatten (flat)
            y = MatMul (rows, w2)
        }""",
        _few(weights(w1=(64, 16, 3, 3), b1=(64,), w2=(64, 160)), 0.08),
        _floats(16, 6, 6),
    ),
    "mlp": Tiny(
        """(float[N, 24] x) => (float[N, 16] z, float[N, 1] y) {
            m1 = MatMul (x, w1)
            h1 = Add (m1, b1)
            n1 = LayerNormalization <axis=-1> (h1, g1, b2)
            a1 = Gelu (n1)
            m2 = MatMul (a1, w2)
            z = Add (m2, b3)
            t = Tanh (z)
            y = MatMul (t, w3)
        }""",
        weights(w1=(24, 48), b1=(48,), g1=(48,), b2=(48,), w2=(48, 16), b3=(16,), w3=(16, 1)),
        _floats(24),
    ),
    "encoder": Tiny(
        """(int64[N, S] ids, int64[N, S] mask) => (float[N, S, 32] hidden, float[N, 32] pooled)
        <int64[2] axes = {1, 2}, int64[1] second = {1}, int64[1] one = {1}> {
            rows = Gather (table, ids)
            n1 = LayerNormalization <axis=-1> (rows, g1, b1)
            q = MatMul (n1, wq)
            qb = Add (q, bq)
            k = MatMul (n1, wk)
            v = MatMul (n1, wv)
            vb = Add (v, bv)
            seen = Cast <to=9> (mask)
            keys = Unsqueeze (seen, axes)
            n = Shape <end=1> (ids)
            s = Shape <start=1> (ids)
            sizes = Concat <axis=0> (n, one, s, s)
            pairs = Expand (keys, sizes)
            att = Attention <q_num_heads=4, kv_num_heads=4> (qb, k, vb, pairs)
            o = MatMul (att, wo)
            ob = Add (o, bo)
            r1 = Add (ob, n1)
            n2 = LayerNormalization <axis=-1> (r1, g2, b2)
            u = MatMul (n2, wu)
            ub = Add (u, bu)
            act = Gelu (ub)
            d = MatMul (act, wd)
            hidden = Add (d, n2)
            pooled = ReduceMean <keepdims=0> (hidden, second)
        }""",
        weights(
            table=(1100, 32), g1=(32,), b1=(32,), wq=(32, 32), bq=(32,), wk=(32, 32), wv=(32, 32), bv=(32,),
            wo=(32, 32), bo=(32,), g2=(32,), b2=(32,), wu=(32, 64), bu=(64,), wd=(64, 32),
        ),
        _tokens,
    ),
    "sound": Tiny(
        """(float[N, 1, 48] x) => (float[N, 6] y) <int64[1] first = {0}> {
            c1 = Conv <kernel_shape=[5], strides=[2], pads=[2, 2]> (x, w1, b1)
            a1 = Relu (c1)
            c2 = Conv <kernel_shape=[3], strides=[2], pads=[1, 1]> (a1, w2, b2)
            a2 = Relu (c2)
            steps = Transpose <perm=[2, 0, 1]> (a2)
            all, last = LSTM <hidden_size=6> (steps, w, r, b)
            y = Squeeze (last, first)
        }""",
        weights(w1=(8, 1, 5), b1=(8,), w2=(10, 8, 3), b2=(10,), w=(1, 24, 10), r=(1, 24, 6), b=(1, 48)),
        _floats(1, 48),
    ),
    "upscaled": Tiny(
        """(float[N, 4, 6, 6] x) => (float[N, 2, 12, 12] y) {
            t1 = ConvTranspose <kernel_shape=[2, 2], strides=[2, 2]> (x, w1, b1)
            a1 = Relu (t1)
            t2 = ConvTranspose <kernel_shape=[3, 3], pads=[1, 1, 1, 1]> (a1, w2)
            c3 = Conv <kernel_shape=[3, 3], pads=[1, 1, 1, 1]> (t2, w3, b3)
            y = Sigmoid (c3)
        }""",
        weights(w1=(4, 6, 2, 2), b1=(6,), w2=(6, 5, 3, 3), w3=(2, 5, 3, 3), b3=(2,)),
        _floats(4, 6, 6),
    ),
    "unbiased": Tiny(
        """(float[N, 3, 8, 8] x) => (float[N, 1] y) {
            c1 = Conv <kernel_shape=[3, 3]> (x, w1)
            a1 = Relu (c1)
            c2 = Conv (a1, w2)
            a2 = Relu (c2)
            pool = MaxPool <kernel_shape=[2, 2], strides=[2, 2]> (a2)
            flat = Flatten (pool)
            y = Gemm (flat, w3)
        }""",
        weights(w1=(6, 3, 3, 3), w2=(7, 6, 1, 1), w3=(63, 1)),
        _floats(3, 8, 8),
    ),
    "shared": Tiny(
        """(float[N, 6, 8, 8] x, float[N, 12] f) => (float[N, 6, 8, 8] y, float[N, 12] z, float[N, 12] t) {
            c1 = Conv (x, w, b)
            a1 = Relu (c1)
            c2 = Conv (a1, w, b)
            a2 = Relu (c2)
            c3 = Conv (a2, w)
            a3 = Relu (c3)
            y = Conv (a3, other, same)
            m = MatMul (f, square)
            s = Tanh (m)
            z = Gemm (s, square, bz)
            t = Gemm <transB=1> (s, square)
        }""",
        {
            **(made := weights(w=(6, 6, 1, 1), b=(6,), other=(6, 6, 1, 1), square=(12, 12), bz=(12,))),
            "same": made["b"].copy(),
        },
        lambda rng, n: {**_floats(6, 8, 8)(rng, n), "f": rng.standard_normal((n, 12)).astype(np.float32)},
    ),
    "middle": Tiny(
        """(float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] c1, float[N, 4, 6, 6] a2, float[N, 4, 6, 6] y) {
            c1 = Conv (x, w1, b1)
            a1 = Relu (c1)
            c2 = Conv (a1, w2, b2)
            a2 = Relu (c2)
            sum = Add (c1, a2)
            c3 = Conv (sum, w3, b3)
            y = Relu (c3)
        }""",
        weights(w1=(4, 3, 1, 1), b1=(4,), w2=(4, 4, 1, 1), b2=(4,), w3=(4, 4, 1, 1), b3=(4,)),
        _floats(3, 6, 6),
    ),
    "readers": Tiny(
        """(float[N, 3, 6, 6] x) => (float[N, 4] y, float[N, 4, 6, 6] s, float[N, 36, 6] p, float[N, 4, 4] q)
        <int64[2] axes = {2, 3}, int64[3] rows = {0, 4, -1}> {
            c1 = Conv (x, w1, b1)
            a1 = Relu (c1)
            c2 = Conv (a1, w2, b2)
            s = Softmax <axis=1> (a1)
            wide = Reshape (a1, rows)
            turned = Transpose <perm=[0, 2, 1]> (wide)
            p = MatMul (turned, w3)
            q = MatMul (wide, turned)
            a2 = Sigmoid (c2)
            y = ReduceMean <keepdims=0> (a2, axes)
        }""",
        weights(w1=(4, 3, 1, 1), b1=(4,), w2=(4, 4, 1, 1), b2=(4,), w3=(4, 6)),
        _floats(3, 6, 6),
    ),
    "branch": Tiny(
        """(float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y, float[N, 4, 6, 6] z) <float zero = {0}> {
            c1 = Conv (x, w1, b1)
            a1 = Relu (c1)
            c2 = Conv (a1, w2, b2)
            total = ReduceSum <keepdims=0> (x)
            is_more = Greater (total, zero)
            z = If (is_more) <
                then_branch = more () => (float[N, 4, 6, 6] t) { t = Conv (a1, w2, b2) },
                else_branch = less () => (float[N, 4, 6, 6] e) { e = Neg (c2) }
            >
            y = Relu (c2)
        }""",
        weights(w1=(4, 3, 1, 1), b1=(4,), w2=(4, 4, 1, 1), b2=(4,)),
        _floats(3, 6, 6),
    ),
    "odd": Tiny(
        """(float[N, 4, 6, 6] x) => (float[N, 8] y, float[N, 8] z, float[N, 4, 6, 6] d, float[N, 5] u)
        <int64[3] axes = {0, 2, 3}> {
            bias = ReduceMean <keepdims=0> (x, axes)
            c1 = Conv (x, w1, bias)
            a1 = Relu (c1)
            c2 = Conv (a1, w2, b2)
            a2 = Relu (c2)
            pool = GlobalMaxPool (a2)
            flat = Flatten (pool)
            y = Gemm (flat, w3, b3)
            z = Gemm <alpha=0.5, transB=1> (flat, w4, b4)
            u = Gemm <transB=1> (flat, w5, b5)
            d = Sigmoid (a1)
        }""",
        weights(
            w1=(4, 4, 1, 1), w2=(6, 4, 1, 1), b2=(6,), w3=(6, 8), b3=(1, 8), w4=(8, 6), b4=(8,), w5=(5, 6), b5=(1,)
        ),
        _floats(4, 6, 6),
    ),
}  # fmt: skip


def opener(tmp_path_factory):
    """Return a function that gives each network by its name, once, as the frontend and fusion make it."""
    known = {}

    def get(name):
        if name not in known:
            known[name] = NETWORKS[name].open(tmp_path_factory.mktemp(name))[0]
        return known[name]

    return get
