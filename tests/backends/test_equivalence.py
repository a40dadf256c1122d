"""One test body for every backend, family and scheme: the artifact is the canonical graph.

The integers in its files are the canonical graph's, bit for bit, in exact mode it gives its logits, and in shipped mode
a trained model stays within its profile's bounds.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from random_models import save_random

from edgec.backends.backend import Job, backend_names, get_backend
from edgec.backends.tensorrt.compile import write_graph
from edgec.checkpoint.open import open_checkpoint
from edgec.evaluate.corpus import load_corpus
from edgec.evaluate.integers import check_integers
from edgec.evaluate.streamed import stream
from edgec.evaluate.verify import broken_bounds, compare
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe, families
from edgec.generate.tokenizer import Tokenizer
from edgec.graph.store import Store
from edgec.quantize.scheme import Scheme
from edgec.quantize.weights import quantize_weights
from edgec.report.model import Exact
from edgec.spec.load import load_profile, load_target
from edgec.spec.plan import resolve

# Engines take seconds each: here the graph that they are compiled from, for new and old TensorRT; engines have their
# own tests.
WRITERS = {
    "onnx_cpu": ("onnx_cpu", "cpu", get_backend("onnx_cpu").compile_decoder),
    "openvino": ("openvino", "cpu", get_backend("openvino").compile_decoder),
    "tensorrt": ("tensorrt", "rtx-4060", partial(write_graph, old=False)),
    "tensorrt-10.3": ("tensorrt", "jetson", partial(write_graph, old=True)),
}
STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"
PROMPT_THEN_TOKENS = ((0, 30), (30, 31), (31, 39), (39, 40))
INT4, INT8 = Scheme("int4", 32), Scheme("int8", None)


def test_no_backend_is_left_out():
    assert {name for name, _, _ in WRITERS.values()} == set(backend_names())


class Built:
    """A random model, quantized, and its artifact for one backend."""

    def __init__(self, writer, source, folder, storage, profile="int4"):
        name, target, write = WRITERS[writer]
        self.backend, self.artifact = get_backend(name), folder / "artifact"
        self.artifact.mkdir()
        checkpoint = open_checkpoint(source)
        decoder = describe(checkpoint)
        target = load_target(target)
        plan = resolve(checkpoint, decoder, target, load_profile(profile), name)
        self.model = emit(decoder, checkpoint, checkpoint.read, plan.context_length)
        with Store(folder / "weights.bin") as store:
            quantize_weights(self.model, lambda *_: storage, store, lambda _: None)
        write(Job(self.model, decoder, plan, target, checkpoint.config, {}), self.artifact, lambda _: None)
        self.folder, self.plan = folder, plan

    def exact_error(self):
        """Return the largest difference of a logit, in standard deviations, over a prompt and decoded tokens."""
        ids = np.random.default_rng(0).integers(3, 97, (1, 40))
        reference = stream(self.model, self.folder)
        expected = np.concatenate(list(reference.logits(reference.hidden(ids))))
        session = self.backend.open_session(self.artifact, "exact", threads=1)
        found = np.concatenate([session.step(ids[:, a:b])[0] for a, b in PROMPT_THEN_TOKENS])
        return np.abs(found - expected).max() / expected.std()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a function that gives the checkpoint of a random model, written once."""
    made = {}

    def get(kind, **changes):
        key = json.dumps([kind, changes], sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(kind)
            save_random(kind, made[key], **changes)
        return made[key]

    return get


# Groups of 128 divide neither 64 nor 80 inputs: backends write smaller blocks, or pad.
STORAGES = [INT4, Scheme("int4", 128), Scheme("int4", None), INT8, "fp16", "fp32"]


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("kind", sorted(families()))
@pytest.mark.parametrize("writer", WRITERS)
def test_integers_and_logits(writer, kind, storage, source, tmp_path):
    built = Built(writer, source(kind), tmp_path, storage)
    integers = check_integers(built.model, built.backend.read_codes(built.artifact))
    assert integers.different == ()
    assert (integers.weights > 0) == isinstance(storage, Scheme)
    assert built.exact_error() < 1e-4


@pytest.mark.parametrize("cols", [160, 288])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_last_group_with_fewer_blocks_than_the_others(writer, cols, source, tmp_path):
    built = Built(writer, source("llama", intermediate_size=cols), tmp_path, Scheme("int4", 128))
    assert check_integers(built.model, built.backend.read_codes(built.artifact)).different == ()
    assert built.exact_error() < 1e-4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("writer", ["onnx_cpu", "openvino"])
def test_zero_points(writer, tied, source, tmp_path):
    built = Built(writer, source("qwen2", tie_word_embeddings=tied), tmp_path, Scheme("int4", 32, symmetric=False))
    assert check_integers(built.model, built.backend.read_codes(built.artifact)).different == ()
    assert built.exact_error() < 1e-4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("writer", WRITERS)
def test_tied_and_untied(writer, tied, source, tmp_path):
    assert Built(writer, source("qwen2", tie_word_embeddings=tied), tmp_path, INT4).exact_error() < 1e-4


@pytest.mark.parametrize("fraction", [0.25, 0.5])
@pytest.mark.parametrize("writer", WRITERS)
def test_partly_rotated_heads(writer, fraction, source, tmp_path):
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": fraction}
    checkpoint = source("gpt_neox", rope_parameters=rope, hidden_size=256)
    assert Built(writer, checkpoint, tmp_path, INT4).exact_error() < 1e-4


@pytest.mark.parametrize("kind", sorted(families()))
@pytest.mark.parametrize("writer", WRITERS)
def test_generation_gives_the_last_logits_of_evaluation(writer, kind, source, tmp_path):
    built = Built(writer, source(kind), tmp_path, INT4)
    ids = np.random.default_rng(0).integers(3, 97, (1, 20))
    last = built.backend.open_session(built.artifact, "generate", threads=1).step(ids)
    everything = built.backend.open_session(built.artifact, "evaluate", threads=1).step(ids)
    assert last.shape == (1, 1, 97)
    assert everything.shape == (1, 20, 97)
    # One row and twenty may take kernels that round differently: int8 or bfloat16 activations, a float16 cache.
    assert np.abs(last[:, 0] - everything[:, -1]).max() < 0.1 * everything.std()
    settings = built.backend.read_settings(built.artifact)
    assert settings.eos_ids == {2}
    assert settings.context_length == 64


@pytest.mark.parametrize(("profile", "storage"), [("int4", INT4), ("int8", INT8), ("fp16", "fp16"), ("fp32", "fp32")])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_trained_model_in_shipped_mode(writer, profile, storage, tmp_path):
    source = STORYTELLER / "checkpoint"
    built = Built(writer, source, tmp_path, storage, profile)
    text = STORYTELLER / "data" / "heldout.txt"
    windows = load_corpus(text, Tokenizer.from_directory(source), tokens=1024, window=128).windows

    def session():
        return built.backend.open_session(built.artifact, "evaluate")

    checkpoint = open_checkpoint(source)
    floats = emit(describe(checkpoint), checkpoint, checkpoint.read, built.plan.context_length)
    against_source = compare(stream(floats, tmp_path), session, windows, lambda _: None)
    exact = Exact(0.0, 0.0, 0, 1.0)  # has its own test
    integers = check_integers(built.model, built.backend.read_codes(built.artifact))
    assert broken_bounds(integers, exact, against_source, built.plan.verify) == ()
    # What the runtime's activations and cache add to what the integers cost.
    against_canonical = compare(stream(built.model, tmp_path), session, windows, lambda _: None)
    assert against_canonical.perplexity_ratio == pytest.approx(1, abs=0.005)
    assert 0 < against_canonical.mean_kl < 0.002


@pytest.mark.parametrize("writer", WRITERS)
def test_a_changed_integer_is_found(writer, source, tmp_path):
    built = Built(writer, source("llama"), tmp_path, INT4)
    codes = dict(built.backend.read_codes(built.artifact))
    name = sorted(codes)[3]
    codes[name].codes[2, 5] ^= 1
    assert check_integers(built.model, codes.items()).different == (name,)
    del codes[name]
    assert check_integers(built.model, codes.items()).different == (name,)
