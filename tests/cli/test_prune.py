"""`edgec prune`: what it writes loads in transformers, computes what was left, and builds."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from random_models import save_random
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models
from torch_logits import torch_logits

from edgec import build_checkpoint
from edgec.backends.onnx_cpu import read_codes
from edgec.checkpoint.open import open_checkpoint
from edgec.cli import edgec
from edgec.errors import OutputError, PlanError, UsageError
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe, families
from edgec.graph.weights import float_weights, matrix_name
from edgec.prune.keep import full

PROFILE = """
title = "pruned"
{how}
[weights]
dtype = "{dtype}"
algorithm = "{algorithm}"
group_size = {group}
[calibration]
text = {text}
tokens = 256
window = 32
{calibration}
[verify]
max_perplexity_ratio = 2.0
max_mean_kl = 1.0
min_top1_agreement = 0.0
tokens = 128
window = 32
"""
SLIM = "[slim]\nparameters = 0.1\nmultiple = 8\n"
SPARSE = '[sparse]\npattern = "{}"\nmethod = "{}"\n'
IDS = np.random.default_rng(0).integers(3, 97, (2, 24))


@pytest.fixture
def profile(story_text, tmp_path):
    """Return a function that writes a profile, by default one of float weights."""

    def write(how, *, dtype="fp32", algorithm="rtn", group='"channel"', text=story_text, calibration=""):
        path = tmp_path / "pruned.toml"
        path.write_text(
            PROFILE.format(
                how=how, dtype=dtype, algorithm=algorithm, group=group, text=json.dumps(str(text)),
                calibration=calibration,
            )
        )  # fmt: skip
        return path

    return write


def invoke(command, *arguments):
    return CliRunner().invoke(edgec, [command, *map(str, arguments)], catch_exceptions=False)


def prune(source, profile, out, *options):
    done = invoke("prune", source, "--profile", profile, "--out", out, *options)
    assert done.exit_code == 0, done.output
    return done


def graph(checkpoint):
    return emit(describe(checkpoint), checkpoint, checkpoint.read, 64)


def matrices(model):
    """Return the (out, in) matrices inside the layers of a graph by their names."""
    found = {matrix_name(value): value.const_value.numpy().T for value, _ in float_weights(model.graph)}
    return {name: matrix for name, matrix in found.items() if name.startswith("layers.")}


def is_2_4(matrix):
    return (np.count_nonzero(matrix.reshape(len(matrix), -1, 4), axis=2) <= 2).all()


# Every family's layout is tested in tests/prune/test_put_back.py; these three store matrices most differently.
_COMMON = ("gpt2", "llama", "phi3")


@pytest.mark.parametrize(
    "kind", [kind if kind in _COMMON else pytest.param(kind, marks=pytest.mark.slow) for kind in sorted(families())]
)
def test_every_family_loads_in_transformers_smaller_and_sparse(kind, profile, tmp_path):
    save_random(kind, tmp_path / "source")
    words = models.WordLevel({str(token): token for token in range(97)}, unk_token="0")
    Tokenizer(words).save(str(tmp_path / "source" / "tokenizer.json"))
    np.save(tmp_path / "tokens.npy", np.random.default_rng(2).integers(3, 97, 400))
    prune(
        tmp_path / "source",
        profile(SLIM + SPARSE.format("2:4", "sparsegpt"), text=tmp_path / "tokens.npy"),
        tmp_path / "out",
    )
    source, written = open_checkpoint(tmp_path / "source"), open_checkpoint(tmp_path / "out")
    assert full(describe(written)).mlp < full(describe(source)).mlp
    model = graph(written)
    found = matrices(model)
    assert len(found) == sum(7 if layer.mlp.gate else 6 for layer in describe(source).layers)
    for matrix in found.values():
        assert is_2_4(matrix)
        assert np.mean(matrix == 0) == 0.5
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    with torch.no_grad():
        logits = loaded(torch.from_numpy(IDS), use_cache=False).logits.numpy()
    expected = torch_logits(model, IDS)
    assert expected.std() > 0.05, "logits this small would hide mistakes"
    assert np.abs(logits - expected).max() <= 1e-4


def test_what_stays_of_wanda_is_as_it_was_and_skipped_matrices_are_whole(tiny_llama, profile, tmp_path):
    how = SPARSE.format("50%", "wanda") + 'skip = ["layers.0.*"]'
    prune(tiny_llama, profile(how), tmp_path / "out")
    source, written = (open_checkpoint(folder) for folder in (tiny_llama, tmp_path / "out"))
    assert set(written.tensors) == set(source.tensors)
    for name in source.tensors:
        before, after = source.read(name), written.read(name)
        pruned = before.ndim == 2 and "layers." in name and "layers.0." not in name
        assert np.mean(after == 0) == (0.5 if pruned else 0.0)
        np.testing.assert_array_equal(after, np.where(after == 0, 0, before))


def test_a_build_takes_it_and_keeps_the_zeros(tiny_llama, profile, story_text, tmp_path):
    slim_and_sparse = profile(SLIM + SPARSE.format("2:4", "sparsegpt"))
    prune(tiny_llama, slim_and_sparse, tmp_path / "out")
    done = invoke(
        "build", tmp_path / "out", "--profile", "int8", "--eval-text", story_text, "--out", tmp_path / "bundle"
    )
    assert done.exit_code == 0, done.output
    codes = dict(read_codes(tmp_path / "bundle" / "artifact"))
    inner = [weight.codes for name, weight in codes.items() if "layers." in name]
    assert len(inner) == 21
    assert all(map(is_2_4, inner))


def test_it_is_the_same_again_from_the_cache_and_without(tiny_llama, profile, tmp_path, monkeypatch):
    path = profile(SLIM + SPARSE.format("2:4", "sparsegpt"))
    for name in ("first", "again", "without"):
        if name == "without":
            monkeypatch.setenv("EDGEC_CACHE", str(tmp_path / "cache"))
        prune(tiny_llama, path, tmp_path / name)
        for file in (tmp_path / "first").iterdir():
            assert (tmp_path / name / file.name).read_bytes() == file.read_bytes()


def test_it_says_what_went_and_what_to_do(tiny_llama, profile, tmp_path):
    int4 = {"dtype": "int4", "group": 32, "algorithm": "gptq"}
    done = prune(tiny_llama, profile(SLIM, **int4), tmp_path / "slim")
    flat = " ".join(done.stdout.split())
    assert "parameters 0.1 -> 0.1 M" in flat
    assert "width of the MLPs 96 -> " in flat
    assert "zeros" not in flat
    assert "built with the weights of profile pruned" in flat
    assert f"`edgec build {tmp_path / 'slim'} --target cpu --profile int4-gptq`" in done.stderr

    both = profile(SLIM + SPARSE.format("2:4", "wanda"), **int4)
    done = prune(tiny_llama, both, tmp_path / "both")
    assert "zeros 50.0 % of 21 matrices" in " ".join(done.stdout.split())
    assert "zeros held at zero" in done.stderr
    assert "a copy of profile pruned that has no [slim]" in done.stderr

    sparse = profile(SPARSE.format("75%", "magnitude"))
    done = prune(tiny_llama, sparse, tmp_path / "sparse", "--target", "jetson-orin-nano", "--json")
    found = json.loads(done.stdout)
    assert found["checkpoint"] == str(tmp_path / "sparse")
    assert found["plan"]["target"] == "jetson-orin-nano"
    assert found["pruning"]["zeros"]["share"] == 0.75
    assert f"--target jetson-orin-nano --profile {sparse}`" in done.stderr


@pytest.mark.parametrize("how", [SLIM + 'importance = "magnitude"\n', SPARSE.format("2:4", "magnitude")])
def test_magnitudes_alone_read_no_text_whatever_a_build_would(tiny_llama, profile, tmp_path, monkeypatch, how):
    path = profile(how, dtype="int4", group=32, algorithm="gptq")
    prune(tiny_llama, path, tmp_path / "first")
    monkeypatch.delattr(build_checkpoint, "planned_text")
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path / "cache"))
    prune(tiny_llama, path, tmp_path / "second")
    for file in (tmp_path / "first").iterdir():
        assert (tmp_path / "second" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("how", [SLIM + 'importance = "magnitude"\n', SPARSE.format("2:4", "magnitude")])
def test_magnitudes_alone_need_no_calibration(tiny_llama, profile, tmp_path, how):
    path = profile(how)
    whole = path.read_text()
    start, stop = whole.index("[calibration]"), whole.index("[verify]")
    path.write_text(whole[:start] + whole[stop:])
    prune(tiny_llama, path, tmp_path / "without")
    done = invoke("build", tiny_llama, "--profile", path, "--out", tmp_path / "bundle", "--no-verify")
    assert done.exit_code == 0, done.output
    path.write_text(whole)
    prune(tiny_llama, path, tmp_path / "with")
    for file in (tmp_path / "with").iterdir():
        assert (tmp_path / "without" / file.name).read_bytes() == file.read_bytes()
    planned = invoke("plan", tiny_llama, "--profile", path, "--json")
    assert json.loads(planned.stdout)["plan"]["calibration"] is None


def test_what_flows_through_the_model_needs_calibration(tiny_llama, profile, tmp_path):
    for how in (SLIM, SPARSE.format("50%", "wanda"), SPARSE.format("50%", "magnitude") + 'allocation = "owl"\n'):
        path = profile(how)
        whole = path.read_text()
        path.write_text(whole[: whole.index("[calibration]")] + whole[whole.index("[verify]") :])
        with pytest.raises(UsageError, match=r"give the profile a \[calibration\]"):
            prune(tiny_llama, path, tmp_path / "out")


def test_transforms_are_left_to_a_build(tiny_llama, profile, tmp_path):
    sparse = SPARSE.format("2:4", "magnitude")
    for name, transforms in (("plain", ""), ("turned", 'transforms = ["quarot", "smoothquant"]\n')):
        prune(tiny_llama, profile(transforms + sparse, dtype="int8"), tmp_path / name)
    for file in (tmp_path / "plain").iterdir():
        assert (tmp_path / "turned" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(("dtype", "code"), [("float16", "F16"), ("bfloat16", "BF16")])
def test_half_precision_keeps_the_zeros(tiny_llama, profile, tmp_path, dtype, code):
    prune(tiny_llama, profile(SPARSE.format("2:4", "sparsegpt")), tmp_path / "out", "--dtype", dtype)
    written = open_checkpoint(tmp_path / "out")
    assert {info.dtype for info in written.tensors.values()} == {code}
    assert written.config["torch_dtype"] == dtype
    assert all(map(is_2_4, matrices(graph(written)).values()))


def test_numbers_that_float16_does_not_have_are_refused(make_llama, profile, tmp_path):
    source = make_llama(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(UsageError, match=r"up_proj.* holds 100000, which is more than float16 takes"):
        prune(source, profile(SLIM), tmp_path / "work" / "out", "--dtype", "float16")
    assert list((tmp_path / "work").iterdir()) == []


def test_what_cannot_be_is_refused_before_any_work(tiny_llama, profile, tmp_path):
    path = profile(SLIM)
    with pytest.raises(UsageError, match="prunes nothing") as refused:
        prune(tiny_llama, "int8", tmp_path / "out")
    assert "slim-25-int4" in refused.value.hint
    assert "wanda-50" in refused.value.hint
    with pytest.raises(UsageError, match=r"is for decoder language models only: it has no \[network\]"):
        prune(tmp_path / "missing.onnx", path, tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        prune(tmp_path / "missing", path, tmp_path / "there")
    with pytest.raises(UsageError, match="no file or directory"):
        prune(tmp_path / "missing", path, tmp_path / "out")
    if not torch.cuda.is_available():
        with pytest.raises(PlanError, match="finds none here"):
            prune(tiny_llama, profile(SLIM, calibration='device = "cuda"'), tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pruned.toml", "there"]


def test_an_interruption_leaves_nothing(make_llama, profile, tmp_path):
    source = make_llama(tmp_path / "source", num_hidden_layers=40)
    work, cache = tmp_path / "work", tmp_path / "cache"
    command = [sys.executable, "-m", "edgec", "prune", source, "--out", work / "out"]
    command += ["--profile", profile(SPARSE.format("2:4", "sparsegpt"))]
    environment = {**os.environ, "EDGEC_CACHE": str(cache)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as pruning:
        deadline = time.monotonic() + 60
        while not any(cache.rglob("*.npz")) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [path.name[:5] for path in work.iterdir()] == [".out."]
        pruning.send_signal(signal.SIGINT)
        _, stderr = pruning.communicate(timeout=60)
    assert pruning.returncode == 130
    assert "interrupted" in stderr
    assert list(work.iterdir()) == []
