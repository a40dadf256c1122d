"""Two models layer by layer: the numbers, the hidden states of every family in every backend, and who is to blame."""

import hashlib
from functools import partial

import numpy as np
import pytest
import transformers
from random_models import save_random

from edgec.backends.backend import Job, get_backend
from edgec.backends.tensorrt.compile import write_graph
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import BundleError, UsageError
from edgec.evaluate.layers import compare_layers, trace_checkpoint
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe
from edgec.graph.store import Store
from edgec.quantize.scheme import Scheme
from edgec.quantize.weights import quantize_weights
from edgec.spec.load import load_profile, load_target
from edgec.spec.plan import resolve

WRITERS = {
    "onnx_cpu": ("cpu", get_backend("onnx_cpu").compile_decoder),
    "openvino": ("cpu", get_backend("openvino").compile_decoder),
    "tensorrt": ("rtx-4060", partial(write_graph, old=False)),
}
INT4 = Scheme("int4", 32)
IDS = np.random.default_rng(0).integers(3, 97, (1, 20))
# What differs in structure: parallel branches, norms behind blocks, learned positions, multipliers.
RESIDUALS = [f"layers.{layer}.{block}_residual" for layer in range(2) for block in ("attention", "mlp")]
KINDS = ("gemma2", "gpt2", "gpt_neox", "granite", "olmo2")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a function that gives the checkpoint of a random model, written once."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            save_random(kind, made[kind])
        return made[kind]

    return get


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    """Return a function that gives the artifact of a random model, written once."""
    made = {}

    def get(writer, kind, storage):
        key = writer, kind, str(storage)
        if key not in made:
            made[key] = write_artifact(writer, source(kind), storage, tmp_path_factory.mktemp(kind))
        return made[key]

    return get


def write_artifact(writer, source, storage, folder):
    target, write = WRITERS[writer]
    checkpoint = open_checkpoint(source)
    decoder, target = describe(checkpoint), load_target(target)
    plan = resolve(checkpoint, decoder, target, load_profile("int4"), writer)
    model = emit(decoder, checkpoint, checkpoint.read, plan.context_length)
    artifact = folder / "artifact"
    artifact.mkdir()
    with Store(folder / "weights.bin") as store:
        quantize_weights(model, lambda *_: storage, store, lambda _: None)
        write(Job(model, decoder, plan, target, checkpoint.config, {}), artifact, lambda _: None)
    return artifact


def trace(artifact, writer, mode="exact"):
    return get_backend(writer).trace(artifact, IDS, mode)


def checkpoint_states(source):
    checkpoint = open_checkpoint(source)
    return trace_checkpoint(checkpoint, describe(checkpoint), IDS)


def random_states(seed, **scales):
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.standard_normal((1, 20, 7))).astype(np.float32) for name, scale in scales.items()}


def test_numbers_are_their_definitions():
    a, b = random_states(0, logits=3), random_states(1, logits=3)
    (state,) = compare_layers(a.items(), b.items(), IDS % 7).states
    x, y = a["logits"][0].astype(np.float64), b["logits"][0].astype(np.float64)
    noise_to_signal = ((x - y) ** 2).sum(axis=1) / (x**2).sum(axis=1)
    cosine = (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert state.snr_db == pytest.approx(-10 * np.log10(noise_to_signal.mean()))
    assert state.cosine == pytest.approx(cosine.mean())
    assert state.max_error == pytest.approx(np.abs(x - y).max())


def test_one_huge_token_does_not_hide_the_others():
    a, b = random_states(0, logits=1), random_states(1, logits=1)
    before = compare_layers(a.items(), b.items(), IDS % 7).states[0].snr_db
    a["logits"][0, 0] = b["logits"][0, 0] = 1e6
    assert compare_layers(a.items(), b.items(), IDS % 7).states[0].snr_db == pytest.approx(before, abs=1)


def test_equal_models():
    states = random_states(0, embedding=1, logits=1)
    comparison = compare_layers(states.items(), states.items(), IDS % 7)
    assert [(s.snr_db, s.max_error, s.cosine) for s in comparison.states] == [(np.inf, 0, pytest.approx(1))] * 2
    assert comparison.first_below(1000) is None
    assert comparison.largest_drop()[1] == 0
    assert comparison.predictions.mean_kl == pytest.approx(0, abs=1e-12)
    assert comparison.predictions.top1_agreement == 1


def test_what_is_not_a_number_diverges():
    names = ("embedding", "layers.0.mlp_residual", "layers.1.mlp_residual", "logits")
    a = random_states(0, **dict.fromkeys(names, 1))
    b = {name: value.copy() for name, value in a.items()}
    b["layers.1.mlp_residual"][0, 3] = np.nan
    comparison = compare_layers(a.items(), b.items(), IDS % 7)
    assert comparison.first_below(-1000).name == "layers.1.mlp_residual"
    assert comparison.largest_drop()[0].name == "layers.1.mlp_residual"


def test_only_common_values_are_compared():
    a = random_states(0, **{"layers.0.mlp_residual": 1, "logits": 1})
    b = random_states(1, embedding=1, logits=1)
    assert [s.name for s in compare_layers(a.items(), b.items(), IDS % 7).states] == ["logits"]


def test_other_architectures_are_refused():
    a = random_states(0, **{"layers.0.mlp_residual": 1, "logits": 1})
    more = random_states(0, **{"layers.0.mlp_residual": 1, "layers.1.mlp_residual": 1, "logits": 1})
    with pytest.raises(UsageError, match="A has 1 layers, B has 2"):
        compare_layers(a.items(), more.items(), IDS % 7)
    wide = {name: np.repeat(value, 2, axis=2) for name, value in a.items()}
    with pytest.raises(UsageError, match=r"'layers\.0\.mlp_residual' is \(20, 7\) in A and \(20, 14\) in B"):
        compare_layers(a.items(), wide.items(), IDS % 7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_has_the_hidden_states_of_transformers(kind, source):
    import torch

    states = dict(checkpoint_states(source(kind)))
    model = transformers.AutoModelForCausalLM.from_pretrained(source(kind), dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor(IDS), output_hidden_states=True)
    assert list(states)[1:] == [*RESIDUALS, "logits"]
    first, after_layer_0, _ = expected.hidden_states
    for name, value in (
        (next(iter(states)), first),
        ("layers.0.mlp_residual", after_layer_0),
        ("logits", expected.logits),
    ):
        assert np.abs(states[name] - value.numpy()).max() < 1e-4 * value.std(), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("writer", ["openvino", "tensorrt"])
def test_backends_agree_in_exact_mode(writer, kind, built):
    reference, test = (built(name, kind, INT4) for name in ("onnx_cpu", writer))
    comparison = compare_layers(trace(reference, "onnx_cpu"), trace(test, writer), IDS)
    assert [state.name for state in comparison.states][-5:] == [*RESIDUALS, "logits"]
    assert comparison.states[0].name == "embedding"
    assert comparison.first_below(80) is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_unquantized_artifact_agrees_with_its_checkpoint(kind, source, built):
    artifact = built("onnx_cpu", kind, "fp32")
    comparison = compare_layers(checkpoint_states(source(kind)), trace(artifact, "onnx_cpu"), IDS)
    assert len(comparison.states) == 6
    assert comparison.first_below(80) is None


@pytest.mark.parametrize("writer", WRITERS)
def test_logits_are_those_of_a_session_and_files_stay(writer, built):
    artifact = built(writer, "llama", INT4)
    before = hashes(artifact)
    *states, (name, logits) = trace(artifact, writer, "evaluate")
    assert [state for state, _ in states] == ["embedding", *RESIDUALS]
    assert name == "logits"
    assert np.array_equal(logits, get_backend(writer).open_session(artifact, "evaluate").step(IDS))
    assert hashes(artifact) == before


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_damaged_artifact(writer, built, tmp_path):
    for path in built(writer, "llama", INT4).iterdir():
        if path.suffix not in (".onnx", ".xml"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(BundleError):
        list(trace(tmp_path, writer))
