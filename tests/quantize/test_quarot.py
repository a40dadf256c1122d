"""Rotated models compute what they did: in every family that can be rotated, and in every backend."""

from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
import pytest
from random_models import save_random
from safetensors.numpy import load_file, save_file
from torch_logits import weights_of

from edgec.backends.backend import Job, get_backend
from edgec.backends.tensorrt.compile import write_graph
from edgec.calibrate.flow import Flow, measure
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import PlanError
from edgec.evaluate.integers import check_integers
from edgec.evaluate.streamed import stream
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe, families
from edgec.frontends.rotation import can_rotate
from edgec.graph.blocks import cut
from edgec.graph.store import Store
from edgec.graph.tags import BLOCK
from edgec.graph.torch_run import TorchBlock
from edgec.graph.weights import float_weights, matrix_name
from edgec.quantize.hadamard import random_rotation
from edgec.quantize.matrix import matrices
from edgec.quantize.scheme import Scheme
from edgec.quantize.transforms.quarot import HEAD_ROTATION, rotate
from edgec.quantize.weights import quantize_weights
from edgec.spec.load import load_profile, load_target
from edgec.spec.plan import resolve

IDS = np.random.default_rng(0).integers(3, 97, (1, 30))
IN_THE_WAY = {
    "gpt2": "learned positions",
    "gpt_neox": "layers.0.attention_norm is a LayerNorm",
    "gemma2": "layers.0.attention_post_norm",
    "gemma3_text": "layers.0.attention_post_norm",
    "olmo2": "layers.0.attention_post_norm",
}


class Source:
    """A random checkpoint, and its graph."""

    def __init__(self, folder, kind="llama", **changes):
        save_random(kind, folder, **changes)
        self.open(folder)

    def open(self, folder):
        self.checkpoint = open_checkpoint(folder)
        self.decoder = describe(self.checkpoint)

    def emit(self, read=None):
        return emit(self.decoder, self.checkpoint, read or self.checkpoint.read, 64)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return Source(tmp_path_factory.mktemp("llama"), tie_word_embeddings=True)


def weight(model, node, index=1):
    return next(n for n in model.graph if n.name == node).inputs[index].const_value.numpy()


def logits(model, folder):
    run = stream(model, folder, threads=1)
    return np.concatenate(list(run.logits(run.hidden(IDS))))


def assert_same_function(model, rotated, folder):
    expected, found = logits(model, folder), logits(rotated, folder)
    assert expected.std() > 0.05, "logits this small would hide mistakes"
    assert np.abs(found - expected).max() <= 1e-4


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", sorted(set(families()) - set(IN_THE_WAY)))
def test_logits_stay(kind, tied, tmp_path):
    changes = {"num_hidden_layers": 4} if kind == "smollm3" else {}  # its fourth layer has no rotary embedding
    source = Source(tmp_path / "model", kind, tie_word_embeddings=tied, **changes)
    model, rotated = source.emit(), rotate(source.emit(), source.decoder)
    assert_same_function(model, rotated, tmp_path)
    for name in ("layers.1.attention.q", "layers.1.attention.v", "layers.1.attention.o", "layers.0.mlp.down"):
        assert np.abs(weight(rotated, name) - weight(model, name)).max() > 0.1
    norms = [node for node in rotated.graph if str(node.name).endswith(("attention_norm", "mlp_norm", "final_norm"))]
    assert len(norms) == 2 * len(source.decoder.layers) + 1
    assert all((node.inputs[1].const_value.numpy() == 1).all() for node in norms)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
        ("llama", {"num_key_value_heads": 1}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3}),
        ("llama", {"hidden_size": 46, "num_attention_heads": 1, "num_key_value_heads": 1}),
        ("qwen3", {"attention_bias": True}),
        ("granite", {"attention_bias": True, "mlp_bias": True, "embedding_multiplier": 3.0}),
    ],
    ids=str,
)
def test_variants(kind, changes, tmp_path):
    source = Source(tmp_path / "model", kind, **changes)
    assert_same_function(source.emit(), rotate(source.emit(), source.decoder, seed=3), tmp_path)


def test_parallel_branches_that_share_a_norm(llama, tmp_path):
    layers = tuple(replace(each, parallel=True, mlp_norm=each.attention_norm) for each in llama.decoder.layers)
    decoder = replace(llama.decoder, layers=layers)
    model, rotated = (emit(decoder, llama.checkpoint, llama.checkpoint.read, 64) for _ in range(2))
    assert_same_function(model, rotate(rotated, decoder), tmp_path)


@pytest.mark.parametrize("kind", sorted(IN_THE_WAY))
def test_what_cannot_be_rotated_is_refused(kind, tmp_path):
    source = Source(tmp_path, kind)
    model = source.emit()
    with pytest.raises(PlanError, match=IN_THE_WAY[kind]) as caught:
        rotate(model, source.decoder)
    assert "transforms" in str(caught.value.hint)
    assert not any(node.name == HEAD_ROTATION for node in model.graph)


def test_each_thing_in_the_way_is_named(llama):
    decoder, (first, second) = llama.decoder, llama.decoder.layers
    assert can_rotate(decoder) is None
    final = replace(decoder, final_norm=replace(decoder.final_norm, kind="layer"))
    assert "final_norm is a LayerNorm" in can_rotate(final)
    for change, message in (
        ({"mlp_norm": None}, "layers.1.mlp has no norm"),
        ({"mlp_norm": replace(second.mlp_norm, kind="layer")}, "layers.1.mlp_norm is a LayerNorm"),
        ({"mlp_post_norm": second.mlp_norm}, "layers.1.mlp_post_norm"),
    ):
        assert message in can_rotate(replace(decoder, layers=(first, replace(second, **change))))


def test_the_residual_stream_is_turned(llama, tmp_path):
    q = random_rotation(64, np.random.default_rng(5)).turn(np.eye(64))
    hidden, turned = (
        stream(model, tmp_path, 1).hidden(IDS) for model in (llama.emit(), rotate(llama.emit(), llama.decoder, seed=5))
    )
    np.testing.assert_allclose(turned, hidden @ q, atol=1e-4 * hidden.std())


def test_the_seed_decides_the_weights(llama):
    def bytes_of(seed):
        model = rotate(llama.emit(), llama.decoder, seed)
        return [value.const_value.tobytes() for value in model.graph.initializers.values()]

    assert bytes_of(0) == bytes_of(0)
    assert bytes_of(0) != bytes_of(1)


def test_weights_are_read_when_they_are_asked_for(llama):
    asked = []

    def read(name):
        asked.append(name)
        return llama.checkpoint.read(name)

    model = rotate(llama.emit(read), llama.decoder)
    assert asked == []
    weight(model, "layers.0.mlp.up")
    assert asked == ["model.layers.0.mlp.up_proj.weight", "model.layers.0.post_attention_layernorm.weight"]
    assert all(isinstance(value.const_value, ir.LazyTensor) for value, _ in float_weights(model.graph))


def test_a_norm_with_an_outlier_leaves_none_in_the_matrices_behind_it(tmp_path):
    save_random("llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.input_layernorm.weight"][5] = 60
    tensors["model.layers.0.mlp.down_proj.weight"][9] *= 20  # a dimension of the residual stream
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    source = Source.__new__(Source)
    source.open(tmp_path)
    model, rotated = source.emit(), rotate(source.emit(), source.decoder)
    gains = weight(model, "layers.0.attention_norm")[:, None]

    def peak(array):
        return np.abs(array).max() / np.sqrt(np.square(array).mean())

    assert peak(weight(rotated, "layers.0.attention.q")) < 0.6 * peak(gains * weight(model, "layers.0.attention.q"))
    assert peak(weight(rotated, "layers.0.mlp.down")) < 0.6 * peak(weight(model, "layers.0.mlp.down"))


def test_calibration_sees_the_rotated_inputs(llama):
    def importance(model):
        *body, head = cut(model)
        flow = Flow(IDS)
        for block in body:
            read = {name for other in [*body, head] for name in other.inputs}
            flow.advance(TorchBlock(block), weights_of(block), read)
        return measure(flow, TorchBlock(head), weights_of(head), [matrices(head)[-1].input], hessian=False)

    (turned,) = importance(rotate(llama.emit(), llama.decoder)).items()
    (plain,) = importance(llama.emit()).items()
    assert (turned[0], plain[0]) == (HEAD_ROTATION, "final_norm")
    # What goes into the output matrix is turned, and no longer or shorter for it.
    found, expected = (each.importance.numpy() for _, each in (turned, plain))
    assert found.sum() == pytest.approx(expected.sum(), rel=1e-4)
    assert np.abs(found - expected).max() > 0.01


WRITERS = {
    "onnx_cpu": ("onnx_cpu", "cpu", get_backend("onnx_cpu").compile_decoder),
    "openvino": ("openvino", "cpu", get_backend("openvino").compile_decoder),
    "tensorrt": ("tensorrt", "rtx-4060", partial(write_graph, old=False)),
    "tensorrt-10.3": ("tensorrt", "jetson", partial(write_graph, old=True)),
}


@pytest.mark.parametrize("around", ["fp16", "fp32"])
@pytest.mark.parametrize("writer", WRITERS)
def test_backends_take_the_matrix_in_front_of_a_tied_head(writer, around, llama, tmp_path):
    name, target, write = WRITERS[writer]
    backend, device, artifact = get_backend(name), load_target(target), tmp_path / "artifact"
    artifact.mkdir()
    plan = resolve(llama.checkpoint, llama.decoder, device, load_profile("int4"), name)
    model = rotate(llama.emit(), llama.decoder)
    added = next(node for node in model.graph if node.name == HEAD_ROTATION)
    assert added.metadata_props[BLOCK] == "head"

    def choose(value, _):
        return around if matrix_name(value) == HEAD_ROTATION else Scheme("int4", 32)

    with Store(tmp_path / "weights.bin") as store:
        quantize_weights(model, choose, store, lambda _: None)
    write(Job(model, llama.decoder, plan, device, llama.checkpoint.config, {}), artifact, lambda _: None)
    integers = check_integers(model, backend.read_codes(artifact))
    assert integers.different == ()
    assert integers.weights == 7 * 2 + 1
    expected = logits(model, tmp_path)
    session = backend.open_session(artifact, "exact", threads=1)
    found = np.concatenate([session.step(IDS[:, a:b])[0] for a, b in ((0, 20), (20, 21), (21, 30))])
    assert np.abs(found - expected).max() < 1e-4 * expected.std()
    everything = backend.open_session(artifact, "evaluate", threads=1).step(IDS)
    last = backend.open_session(artifact, "generate", threads=1).step(IDS)
    assert np.abs(last[:, 0] - everything[:, -1]).max() < 0.1 * everything.std()
