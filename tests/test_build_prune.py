"""Builds that prune: from the profile to the report."""

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from thinned import thinned

from edgec import build_prune
from edgec.build import build
from edgec.bundle.open import find_artifact
from edgec.checkpoint.open import open_checkpoint
from edgec.cli import edgec
from edgec.errors import CheckpointError, PlanError, UsageError
from edgec.evaluate.corpus import load_corpus
from edgec.frontends.families import describe
from edgec.generate.tokenizer import Tokenizer
from edgec.prune import importance
from edgec.prune.importance import choose
from edgec.quantize import sequential
from edgec.spec.layers import matrix_names
from edgec.spec.load import load_profile, load_target
from edgec.spec.plan import resolve
from edgec.spec.prediction import dense_plan

build_module = import_module("edgec.build")
STORIES = Path(__file__).parents[1] / "examples/storyteller/data/validation.txt"
PROFILE = """
title = "pruned"
{how}
[weights]
dtype = "{dtype}"
{algorithm}
[calibration]
text = {text}
tokens = 256
window = 32
[verify]
max_perplexity_ratio = {bound}
max_mean_kl = 1e9
min_top1_agreement = 0.0
tokens = 128
window = 32
"""


@pytest.fixture
def profile(story_text, tmp_path):
    def write(how, dtype="int4", algorithm='group_size = 32\nalgorithm = "gptq"', bound=1e9):
        path = tmp_path / "pruned.toml"
        text = json.dumps(str(story_text))
        path.write_text(PROFILE.format(how=how, dtype=dtype, algorithm=algorithm, text=text, bound=bound))
        return path

    return write


@pytest.fixture
def make(tiny_llama, profile, tmp_path):
    def run(how, name="bundle", backend=None, *, verify=True, window=32, source=tiny_llama, **more):
        checkpoint, target = open_checkpoint(source), load_target("cpu")
        decoder = describe(checkpoint)
        plan = resolve(checkpoint, decoder, target, load_profile(str(profile(how, **more))), backend)
        tokenizer = Tokenizer.from_files(checkpoint.tokenizer_files())
        corpus = load_corpus(STORIES, tokenizer, tokens=128, window=window) if verify else None
        out = tmp_path / name
        return build(checkpoint, decoder, target, plan, out, corpus=corpus, say=lambda *_: lambda _: None), out

    return run


SPARSE = '[sparse]\npattern = "{}"\nmethod = "{}"'
SLIM = "[slim]\nparameters = 0.2\nmultiple = 8"
SLIM_ALONE = f'{SLIM}\nimportance = "magnitude"'


GPTQ = 'group_size = 32\nalgorithm = "gptq"'
STORED = [
    ("int4", GPTQ),
    ("int4", 'group_size = 32\nsymmetric = false\nalgorithm = "mse"'),
    ("int8", ""),
    ("fp16", ""),
    ("fp32", ""),
]


@pytest.mark.parametrize(
    ("method", "pattern", "share", "dtype", "algorithm"),
    [
        *thinned(["magnitude", "wanda", "sparsegpt"], [("2:4", 0.5), ("75%", 0.75)], [("int4", GPTQ)], keep=2),
        *thinned([("sparsegpt", "4:8", 0.5), ("wanda", "50%", 0.5)], STORED, keep=2),
    ],
)
def test_zeros_are_in_the_artifact(make, method, pattern, share, dtype, algorithm):
    report, _ = make(SPARSE.format(pattern, method), dtype=dtype, algorithm=algorithm)
    zeros = report.pruning.zeros
    assert zeros.matrices == 21
    # Rounding makes some more; a share is rounded to whole weights.
    assert share - 1e-3 <= zeros.share < share + (0.2 if dtype == "int4" else 0.02)
    assert "no kernels that skip zeros" in zeros.runtime
    assert not report.verification.failures
    assert report.pruning.predicted.speed == 1
    assert report.pruning.measured.low <= report.pruning.measured.speed <= report.pruning.measured.high
    assert report.pruning.measured.dense_size_bytes == pytest.approx(report.pruning.measured.size_bytes, rel=0.01)


PARTS = ['["mlp"]', '["layers"]', '["mlp", "heads"]', '["mlp", "heads", "hidden", "layers"]']


@pytest.mark.parametrize(("backend", "parts"), thinned(["onnx_cpu", "openvino"], PARTS, keep=2))
def test_shapes_shrink_on_every_backend(make, backend, parts):
    pytest.importorskip("openvino")
    report, bundle = make(f"[slim]\nparameters = 0.2\nparts = {parts}\nmultiple = 8", backend=backend)
    predicted, measured = report.pruning.predicted, report.pruning.measured
    assert predicted.pruned.parameters <= 0.8 * predicted.dense.parameters
    assert predicted.pruned.weight_bytes < predicted.dense.weight_bytes
    assert predicted.pruned.operations_per_token < predicted.dense.operations_per_token
    assert predicted.speed > 1.1
    assert measured.size_bytes < measured.dense_size_bytes
    saved = predicted.dense.weight_bytes - predicted.pruned.weight_bytes
    assert (
        measured.dense_size_bytes - measured.size_bytes > 0.6 * saved
    )  # graphs shrink too, blocks of odd widths are padded
    assert report.pruning.zeros is None
    assert not report.verification.failures  # exact mode: the artifact is what is left of the model
    assert find_artifact(bundle).is_dir()
    assert "## Pruning" in (bundle / "report.md").read_text()


def test_both_go_together_and_builds_repeat(make):
    how = '[slim]\nparameters = 0.2\nmultiple = 8\n[sparse]\npattern = "2:4"'
    report, first = make(how, "first", verify=False)
    assert report.pruning.measured is None
    _, second = make(how, "second", verify=False)
    assert report.pruning.zeros.share >= 0.5
    assert report.pruning.predicted.pruned.parameters < report.pruning.predicted.dense.parameters
    for path in (first / "artifact").iterdir():
        assert path.read_bytes() == (second / "artifact" / path.name).read_bytes()


def test_what_is_in_the_cache_is_of_the_same_choice(make):
    how = '[slim]\nparameters = 0.2\nmultiple = 8\nimportance = "{}"'
    _, taylor = make(how.format("taylor"), "taylor", verify=False)
    _, magnitude = make(how.format("magnitude"), "magnitude", verify=False)
    assert (taylor / "artifact/model.onnx.data").read_bytes() != (magnitude / "artifact/model.onnx.data").read_bytes()


def test_other_builds_of_the_same_choice_find_it(make, monkeypatch):
    how = '[slim]\nparameters = 0.2\nmultiple = 8\nparts = ["mlp", "heads"]'
    kept = []

    def keeping(*arguments, **options):
        kept.append(choose(*arguments, **options))
        return kept[-1]

    monkeypatch.setattr(build_prune, "choose", keeping)
    make(how, "first", verify=False)
    monkeypatch.setattr(importance, "importance", None)
    make(how, "second", dtype="int8", algorithm="", verify=False)
    if find_spec("openvino"):
        make(how, "third", backend="openvino", dtype="fp16", algorithm="", verify=False)
    make(how.replace("0.2", "0.3"), "fourth", verify=False)
    assert kept[0] == kept[1]
    assert kept[-1].sizes.mlp < kept[0].sizes.mlp
    with pytest.raises(TypeError):  # nothing is there to measure with
        make(how + '\nimportance = "wanda"', "fifth", verify=False)


@pytest.mark.parametrize(
    ("how", "stored"),
    [
        (SPARSE.format("2:4", "magnitude"), {"dtype": "fp32", "algorithm": ""}),
        (SPARSE.format("50%", "magnitude") + '\nallocation = "global"', {"dtype": "fp16", "algorithm": ""}),
        (SPARSE.format("2:4", "magnitude"), {"dtype": "int8", "algorithm": 'algorithm = "rtn"'}),
        ('[slim]\nparameters = 0.2\nmultiple = 8\nimportance = "magnitude"', {"dtype": "fp16", "algorithm": ""}),
    ],
)
def test_magnitudes_alone_read_no_text(make, monkeypatch, how, stored):
    report, _ = make(how, "with", **stored)
    for module in (build_module, sequential, importance):
        monkeypatch.delattr(module, "planned_text" if module is build_module else "Flow")
    again, _ = make(how, "again", **stored)
    assert again.size_bytes == report.size_bytes
    assert not report.verification.failures
    if "sparse" in how:
        assert report.pruning.zeros.share >= 0.49


@pytest.mark.parametrize(
    ("method", "dtype", "algorithm"),
    thinned(["magnitude", "wanda", "sparsegpt"], [("fp32", ""), ("int4", GPTQ)], keep=2),
)
def test_zero_weights_and_inputs_that_never_occur(make, make_llama, tmp_path, method, dtype, algorithm):
    source = make_llama(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][5] = 0  # a row, so that an input of down never occurs
    tensors["model.layers.1.self_attn.o_proj.weight"][:] = 0
    tensors["model.layers.2.post_attention_layernorm.weight"][:] = 0  # no input of gate and up ever occurs
    save_file(tensors, source / "model.safetensors")
    report, _ = make(SPARSE.format("2:4", method), dtype=dtype, algorithm=algorithm, source=source)
    assert report.pruning.zeros.share >= 0.5
    assert not report.verification.failures


@pytest.mark.parametrize("how", [SPARSE.format("2:4", "magnitude"), SPARSE.format("2:4", "wanda"), SLIM, SLIM_ALONE])
def test_numbers_that_are_none_are_refused(make, make_llama, tmp_path, how):
    source = make_llama(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not finite|NaN"):
        make(how, dtype="fp32", algorithm="", source=source)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("allocation", ["global", "owl", "sensitivity"])
def test_a_share_is_spread(make, allocation):
    report, _ = make(
        f'[sparse]\npattern = "50%"\nmethod = "wanda"\nallocation = "{allocation}"', dtype="fp32", algorithm=""
    )
    assert report.pruning.zeros.share == pytest.approx(0.5, abs=0.03 if allocation == "sensitivity" else 0.005)


def test_skipped_matrices_stay_dense(make, tiny_llama):
    report, _ = make(SPARSE.format("50%", "wanda") + '\nskip = ["layers.0.*", "*.down"]', dtype="fp32", algorithm="")
    assert report.pruning.zeros.matrices == 12


def test_static_activations_take_ranges_of_the_pruned_model(make):
    how = SPARSE.format("2:4", "sparsegpt") + '\n[activations]\nmode = "static"'
    report, _ = make(how, dtype="int8", algorithm='algorithm = "gptq"')
    assert report.pruning.zeros.share >= 0.5
    assert report.pruning.measured.size_bytes == report.pruning.measured.dense_size_bytes
    assert not report.verification.failures


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        (SPARSE.format("3:4:5", "wanda"), UsageError, "3:4:5"),
        (SPARSE.format("4:4", "wanda"), UsageError, "4:4"),
        (SPARSE.format("100%", "wanda"), UsageError, "100%"),
        (SPARSE.format("2:4", "obs"), UsageError, "obs"),
        (SPARSE.format("2:4", "wanda") + '\nallocation = "owl"', UsageError, "the same everywhere"),
        (SPARSE.format("95%", "wanda") + '\nallocation = "owl"', UsageError, "no room"),
        (SPARSE.format("2:4", "wanda") + '\nskip = ["layers.9.*"]', UsageError, "layers.9"),
        ("[slim]\nparameters = 0.9", PlanError, "MLP"),
        ('[slim]\nparameters = 0.2\nparts = ["mlp", "mlp"]', UsageError, "twice"),
        ('[slim]\nparameters = 0.99\nparts = ["layers"]', PlanError, "layers"),
        ("[slim]\nparameters = 1.5", UsageError, "parameters"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_done(make, how, error, words, tmp_path):
    with pytest.raises(error, match=words):
        make(how)
    assert not (tmp_path / "bundle").exists()


def test_the_command_shows_what_was_predicted_and_what_came(tiny_llama, profile, tmp_path):
    path = profile('[slim]\nparameters = 0.2\nmultiple = 8\n[sparse]\npattern = "2:4"', bound=1.0)
    planned = CliRunner().invoke(edgec, ["plan", str(tiny_llama), "--profile", str(path)])
    assert planned.exit_code == 0, planned.output
    flat = " ".join(planned.output.split())
    assert "speed of decoding" in flat
    assert "no kernels that skip zeros" in flat
    arguments = ["build", str(tiny_llama), "--profile", str(path), "--eval-text", str(STORIES)]
    built = CliRunner().invoke(edgec, [*arguments, "--out", str(tmp_path / "b")])
    assert built.exit_code == 1, built.output  # pruned outside of its bounds
    assert "remove less" in built.output + str(built.exception)
    flat = " ".join(built.output.split())
    assert "predicted" in flat
    assert "measured" in flat


@pytest.mark.parametrize(("target", "kernels"), [("jetson-orin-nano", 21), ("rtx-4060", 0), ("cpu", 0)])
def test_a_plan_lists_what_sparse_kernels_may_take(tiny_llama, profile, target, kernels):
    path = profile(SPARSE.format("2:4", "sparsegpt"), dtype="fp16", algorithm="")
    done = CliRunner().invoke(edgec, ["plan", str(tiny_llama), "--profile", str(path), "--target", target, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)["pruning"]
    assert len(found["sparse_kernels"]) == kernels
    assert bool(kernels) == ("sparse kernels, where those are faster" in found["zeros"])


def test_zeros_are_codes_of_zero(make, tiny_llama):
    from edgec.backends.onnx_cpu import read_codes

    _, bundle = make(SPARSE.format("2:4", "sparsegpt"), dtype="int8", algorithm='algorithm = "gptq"')
    codes = dict(read_codes(bundle / "artifact"))
    weight = codes["model.layers.1.mlp.down_proj.weight"]
    assert (np.count_nonzero(weight.codes.reshape(len(weight.codes), -1, 4), axis=2) <= 2).all()


def test_a_jetson_tries_sparse_kernels(tiny_llama, profile, tmp_path):
    pytest.importorskip("tensorrt_rtx_bindings")
    for name, how in (("sparse", SPARSE.format("2:4", "wanda")), ("half", SPARSE.format("50%", "wanda"))):
        path = profile(how, dtype="fp16", algorithm="")
        arguments = ["build", str(tiny_llama), "--target", "jetson-orin-nano", "--profile", str(path), "--no-verify"]
        done = CliRunner().invoke(edgec, [*arguments, "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        recipe = json.loads((tmp_path / name / "artifact/recipe.json").read_text())
        assert recipe["build"]["sparse_weights"] == (name == "sparse")


@pytest.mark.parametrize(
    ("dtype", "pattern", "fits"), [("fp32", "90%", True), ("fp16", "90%", True), ("fp32", "50%", False)]
)
def test_files_leave_zeros_out_where_that_is_smaller(make, dtype, pattern, fits):
    report, _ = make(SPARSE.format(pattern, "magnitude"), dtype=dtype, algorithm="", bound=1e30)
    measured = report.pruning.measured
    assert not report.verification.failures
    assert any("ONNX sparse tensors" in remark for remark in report.remarks) == fits
    assert (measured.size_bytes < 0.9 * measured.dense_size_bytes) == fits


@pytest.mark.parametrize(("pattern", "dtype"), [("90%", "fp32"), ("90%", "fp16"), ("50%", "fp32"), ("95%", "int8")])
def test_the_size_of_files_without_zeros_is_predicted(make, pattern, dtype):
    static = dtype == "int8"
    how = SPARSE.format(pattern, "magnitude") + ('\n[activations]\nmode = "static"' if static else "")
    report, _ = make(how, dtype=dtype, algorithm='group_size = "channel"' if static else "", bound=1e30)
    predicted, measured = report.pruning.predicted, report.pruning.measured
    saved = predicted.dense.weight_bytes - predicted.pruned.weight_bytes
    # Both graphs name each tensor of places, which is much beside a tiny model.
    assert saved == pytest.approx(measured.dense_size_bytes - measured.size_bytes, abs=8000)
    assert (saved > 0) == (pattern != "50%")


@pytest.mark.parametrize("how", [SPARSE.format("2:4", "wanda"), '[slim]\nparameters = 0.3\nparts = ["layers"]'])
def test_static_activations_race_the_dense_model_too(make, how):
    report, _ = make(f'{how}\n[activations]\nmode = "static"\nskip = ["layers.*.mlp.down"]', dtype="int8", algorithm="")
    measured = report.pruning.measured
    assert measured.low <= measured.speed <= measured.high
    assert not report.verification.failures
    if "slim" in how:
        assert measured.size_bytes < 0.9 * measured.dense_size_bytes


def test_a_short_context_is_enough_to_race(make, profile):
    how = f"context_length = 16\n{SPARSE.format('2:4', 'magnitude')}"
    report, _ = make(how, dtype="fp32", algorithm="", bound=1e30, window=16)
    assert report.pruning.measured.dense_size_bytes > 0


def test_the_dense_model_is_stored_as_what_is_left(tiny_llama, profile):
    checkpoint, target = open_checkpoint(tiny_llama), load_target("cpu")
    decoder = describe(checkpoint)
    how = '[slim]\nparameters = 0.3\nparts = ["layers"]\n[[layers]]\nmatch = "layers.*"\ndtype = "fp32"'
    plan = resolve(checkpoint, decoder, target, load_profile(str(profile(how))))
    dense = dense_plan(plan, decoder)
    assert dense.slim is None
    assert {dense.storage_of(name) for name in matrix_names(decoder)} == {"fp32"}
    assert len(plan.layers) < len(matrix_names(decoder))
