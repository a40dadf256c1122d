"""The commands around a build."""

import json
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from edgec.cli import edgec
from edgec.errors import EdgecError


def invoke(*arguments):
    return CliRunner().invoke(edgec, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def bundle(tiny_llama, story_text, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "int8"
    done = invoke("build", tiny_llama, "--profile", "int8", "--eval-text", story_text, "--out", out)
    assert done.exit_code == 0, done.output
    return out


def test_help_is_instant_and_lists_every_command():
    best = 9.0
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "edgec", "--help"], capture_output=True, text=True, check=True)
        best = min(best, time.perf_counter() - start)
    commands = {"bench", "build", "eval", "inspect", "plan", "profiles", "run", "targets"}
    assert commands <= set(done.stdout.split())
    assert best < 0.3


def test_help_of_commands_imports_nothing_heavy():
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom edgec.cli import edgec\n"
        "for name in edgec.list_commands(None):\n"
        "    assert CliRunner().invoke(edgec, [name, '--help']).exit_code == 0\n"
        "print(sorted({'torch', 'numpy', 'onnxruntime', 'onnx_ir', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_plan_as_table_and_json(tiny_llama):
    assert "groups of 32" in invoke("plan", tiny_llama).stdout
    plan = json.loads(invoke("plan", tiny_llama, "--profile", "int8", "--json").stdout)["plan"]
    assert plan["weights"] == {"dtype": "int8", "group": None, "symmetric": True, "algorithm": "rtn"}


def test_targets_and_profiles():
    assert {t["name"] for t in json.loads(invoke("targets", "--json").stdout)} >= {"cpu", "jetson-orin-nano"}
    assert "jetson-orin-nano" in invoke("targets").stdout
    assert "data sheet" in invoke("targets", "jetson").stdout
    assert json.loads(invoke("profiles", "int4", "--json").stdout)["weights"]["dtype"] == "int4"
    assert "int4-asym" in invoke("profiles").stdout


def test_inspect_a_bundle(bundle):
    shown = invoke("inspect", bundle).stdout
    assert "all files agree with the manifest" in shown
    document = json.loads(invoke("inspect", bundle, "--json").stdout)
    assert set(document) == {"manifest", "plan", "report"}


def test_inspect_finds_damage(bundle, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    data = broken / "artifact" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"!")
    with pytest.raises(EdgecError, match=r"model\.onnx\.data") as caught:
        invoke("inspect", broken)
    assert caught.value.exit_code == 3


def test_inspect_a_checkpoint(tiny_llama):
    assert "LlamaForCausalLM" in invoke("inspect", tiny_llama).stdout
    assert "model.layers.2.mlp.up_proj.weight" in invoke("inspect", tiny_llama, "--tensors").stdout
    assert json.loads(invoke("inspect", tiny_llama, "--json").stdout)["model_type"] == "llama"


def test_eval_alone_and_against_its_source(bundle, tiny_llama, story_text):
    options = ("--eval-text", story_text, "--tokens", 512, "--window", 64, "--json")
    alone = json.loads(invoke("eval", bundle, *options).stdout)
    both = json.loads(invoke("eval", bundle, *options, "--source", tiny_llama).stdout)
    assert alone["perplexity"]["value"] == pytest.approx(both["perplexity"]["value"], rel=1e-5)
    assert both["mean_kl"]["value"] > 0
    assert both["top1_agreement"]["value"] > 0.9
    assert both["perplexity_ratio"]["standard_error"] > 0


def test_eval_agrees_with_the_report(bundle, tiny_llama, story_text):
    report = json.loads((bundle / "report.json").read_text())["verification"]["shipped"]
    again = json.loads(invoke("eval", bundle, "--eval-text", story_text, "--source", tiny_llama, "--json").stdout)
    assert again["mean_kl"]["value"] == pytest.approx(report["mean_kl"], rel=1e-6)


def test_what_is_no_bundle(tmp_path):
    for command in ("eval", "bench"):
        with pytest.raises(EdgecError) as caught:
            invoke(command, tmp_path)
        assert caught.value.exit_code == 3
