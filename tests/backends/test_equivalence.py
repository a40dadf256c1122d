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
from thinned import thinned

from edgec.backends.backend import Job, backend_names, get_backend
from edgec.backends.tensorrt.compile import write_graph
from edgec.calibrate.ranges import measure_clips
from edgec.checkpoint.open import open_checkpoint
from edgec.evaluate.corpus import load_corpus
from edgec.evaluate.integers import check_integers
from edgec.evaluate.streamed import stream
from edgec.evaluate.verify import broken_bounds, compare
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe, families
from edgec.generate.tokenizer import Tokenizer
from edgec.graph.store import Store
from edgec.graph.weights import matrix_name
from edgec.quantize.activations import multiplied, quantize_activations
from edgec.quantize.cache import cached, quantize_cache
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
OTHER_WRITERS = {"onnx_cpu without VNNI": ("onnx_cpu", "x86-avx2", get_backend("onnx_cpu").compile_decoder)}
STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"
PROMPT_THEN_TOKENS = ((0, 30), (30, 31), (31, 39), (39, 40))
INT4, INT8 = Scheme("int4", 32), Scheme("int8", None)
KINDS = sorted(families())


def test_no_backend_is_left_out():
    assert {name for name, _, _ in WRITERS.values()} == set(backend_names())


class Built:
    """A random model, quantized, and its artifact for one backend."""

    def __init__(self, writer, source, folder, storage, profile="int4"):
        name, target, write = {**WRITERS, **OTHER_WRITERS}[writer]
        self.backend, self.artifact = get_backend(name), folder / "artifact"
        self.artifact.mkdir()
        checkpoint = open_checkpoint(source)
        decoder = describe(checkpoint)
        target = load_target(target)
        plan = resolve(checkpoint, decoder, target, load_profile(profile), name)
        self.model = emit(decoder, checkpoint, checkpoint.read, plan.context_length)
        with Store(folder / "weights.bin") as store:
            choose = storage if callable(storage) else lambda _: storage
            quantize_weights(self.model, lambda value, _: choose(matrix_name(value)), store, lambda _: None)
        self.shipped = self.with_ranges(plan, folder)
        write(Job(self.shipped, decoder, plan, target, checkpoint.config, {}), self.artifact, lambda _: None)
        self.folder, self.plan = folder, plan

    def with_ranges(self, plan, folder):
        windows, shipped = np.random.default_rng(1).integers(3, 97, (4, 40)), self.model
        if plan.static is not None:
            parts = dict.fromkeys(multiplied(self.model, plan.static.matrices), 1)
            clips = measure_clips(self.model, parts, windows, folder, method=plan.static.range)
            ranges = {name: (-clip, clip) for name, (clip,) in clips.items()}
            shipped = quantize_activations(shipped, plan.static.matrices, ranges)
        if plan.kv_cache == "int8" and self.backend.LIMITS.static_cache:
            clips = measure_clips(self.model, cached(self.model), windows, folder, method="minmax")
            shipped = quantize_cache(shipped, clips)
        return shipped

    def errors(self, mode, model):
        """Return the largest difference of a logit of each token, in standard deviations: a prompt, then tokens."""
        ids = np.random.default_rng(0).integers(3, 97, (1, 40))
        reference = stream(model, self.folder)
        expected = np.concatenate(list(reference.logits(reference.hidden(ids))))
        session = self.backend.open_session(self.artifact, mode, threads=1)
        found = np.concatenate([session.step(ids[:, a:b])[0] for a, b in PROMPT_THEN_TOKENS])
        return np.abs(found - expected).max(1) / expected.std()

    def exact_error(self):
        """Return the largest difference of a logit from the graph whose activations are floats."""
        return self.errors("exact", self.model).max()


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


@pytest.mark.parametrize(("writer", "kind", "storage"), thinned(list(WRITERS), KINDS, STORAGES, keep=3))
def test_integers_and_logits(writer, kind, storage, source, tmp_path):
    built = Built(writer, source(kind), tmp_path, storage)
    integers = check_integers(built.model, built.backend.read_codes(built.artifact))
    assert integers.different == ()
    assert (integers.weights > 0) == isinstance(storage, Scheme)
    assert built.exact_error() < 1e-4


# Matrices of one input: none alike in the first layer, some alike in the second.
MIXED = {
    "layers.0": {"q": INT8, "k": INT4, "v": "fp16", "o": Scheme("int4", 128), "gate": INT4, "up": Scheme("int4", 16)},
    "layers.1": {"q": INT4, "k": INT8, "v": INT8, "o": "fp16", "gate": "fp16", "up": "fp16", "down": INT4},
}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("writer", WRITERS)
def test_every_matrix_has_its_own_scheme(writer, kind, source, tmp_path):
    def choose(matrix):
        layer, _, name = matrix.rpartition(".")
        return MIXED.get(layer.rpartition(".")[0], {}).get(name, INT8)

    built = Built(writer, source(kind), tmp_path, choose)
    integers = check_integers(built.model, built.backend.read_codes(built.artifact))
    assert integers.different == ()
    assert built.exact_error() < 1e-4


@pytest.mark.parametrize("writer", ["onnx_cpu", "openvino"])
def test_some_matrices_have_zero_points(writer, source, tmp_path):
    def choose(matrix):
        return Scheme("int4", 32, symmetric=not matrix.endswith((".k", ".up", ".down")))

    built = Built(writer, source("llama"), tmp_path, choose)
    assert check_integers(built.model, built.backend.read_codes(built.artifact)).different == ()
    assert built.exact_error() < 1e-4


STATIC = """
title = "int8 activations with calibrated scales"
weights.dtype = "int8"
[activations]
mode = "static"
range = "minmax"
[calibration]
[verify]
max_perplexity_ratio = 1.05
max_mean_kl = 0.05
min_top1_agreement = 0.85
"""


@pytest.fixture
def static(tmp_path):
    """Return a profile with static activations everywhere."""
    path = tmp_path / "static.toml"
    path.write_text(STATIC)
    return str(path)


@pytest.mark.parametrize(("writer", "kind"), thinned([*WRITERS, *OTHER_WRITERS], KINDS, keep=2))
def test_static_activations(writer, kind, source, static, tmp_path):
    built = Built(writer, source(kind), tmp_path, INT8, static)
    scales = built.backend.read_scales(built.artifact)
    layers = {name.split(".")[1] for name in built.plan.static.matrices}
    assert len(scales) == 4 * len(layers)  # of q, k and v; of o; of gate and up; of down
    integers = check_integers(built.shipped, built.backend.read_codes(built.artifact), scales)
    assert integers.different == ()
    assert integers.activations == len(scales)
    assert built.exact_error() < 1e-4
    name = sorted(scales)[1]
    changed = {**scales, name: (1.001 * scales[name][0],)}
    assert check_integers(built.shipped, built.backend.read_codes(built.artifact), changed).different == (name,)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("writer", ["onnx_cpu", "onnx_cpu without VNNI"])
def test_integer_kernels_compute_what_the_canonical_graph_does(writer, kind, source, static, tmp_path):
    built = Built(writer, source(kind), tmp_path, lambda m: INT8 if m.startswith("layers.") else "fp32", static)
    errors = built.errors("evaluate", built.shipped)
    # A number between two integers may be rounded to either, and then all later tokens differ by that.
    assert errors[0] < 1e-5
    assert np.median(errors) < 1e-5
    assert (built.errors("evaluate", built.model) > 1e-3).all()


@pytest.mark.parametrize(("writer", "kind"), thinned(["onnx_cpu", "tensorrt"], KINDS, keep=2))
def test_an_int8_cache_with_a_scale_for_each_head(writer, kind, source, tmp_path):
    head, bounds = STATIC.split("weights.dtype", maxsplit=1)[0], STATIC[STATIC.index("[calib") :]
    (tmp_path / "cache.toml").write_text(f'{head}weights.dtype = "fp32"\nruntime.kv_cache = "int8"\n{bounds}')
    built = Built(writer, source(kind), tmp_path, "fp32", str(tmp_path / "cache.toml"))
    scales = built.backend.read_scales(built.artifact)
    integers = check_integers(built.shipped, built.backend.read_codes(built.artifact), scales)
    assert integers.different == ()
    assert integers.activations == len(scales) == 2 * len({name.split(".")[1] for name in scales})
    assert built.exact_error() < 1e-4
    assert built.errors("evaluate", built.shipped).max() < 1e-4  # the kernel rounds as the canonical graph does
    assert built.errors("evaluate", built.model).max() > 1e-3


@pytest.mark.parametrize("writer", WRITERS)
def test_some_matrices_read_static_activations(writer, source, static, tmp_path):
    def choose(matrix):
        return INT4 if matrix in ("layers.0.attention.k", "layers.0.mlp.up", "layers.1.mlp.down") else INT8

    overrides = (
        'layers = [{ match = ["layers.0.attention.k", "layers.0.mlp.up", "layers.1.mlp.down"], dtype = "int4" }]'
    )
    Path(static).write_text(overrides + STATIC.replace("[calib", 'skip = ["*.0.attention.o", "*.1.mlp.up"]\n[calib'))
    built = Built(writer, source("llama"), tmp_path, choose, static)
    scales = built.backend.read_scales(built.artifact)
    assert set(scales) == {
        *("layers.0.attention_norm", "layers.0.mlp_norm", "layers.0.mlp.gated"),
        *("layers.1.attention_norm", "layers.1.attention"),
    }
    assert check_integers(built.shipped, built.backend.read_codes(built.artifact), scales).different == ()
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


@pytest.mark.parametrize(("writer", "kind"), thinned(list(WRITERS), KINDS, keep=2))
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


TRAINED = {"int4": INT4, "int8": INT8, "fp16": "fp16", "fp32": "fp32", "int8-static": INT8}


@pytest.mark.parametrize(("writer", "profile"), thinned(list(WRITERS), list(TRAINED), keep=2))
def test_a_trained_model_in_shipped_mode(writer, profile, tmp_path):
    source = STORYTELLER / "checkpoint"
    built = Built(writer, source, tmp_path, TRAINED[profile], profile)
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
    against_canonical = compare(stream(built.shipped, tmp_path), session, windows, lambda _: None)
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
