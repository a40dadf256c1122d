"""`edgec diff` on real artifacts: of two backends, of a checkpoint, and damaged ones."""

import json
import shutil
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from edgec.cli import edgec
from edgec.errors import EdgecError, RegressionError, UsageError


def invoke(*arguments):
    return CliRunner().invoke(edgec, [str(a) for a in arguments], catch_exceptions=False)


def document(*arguments):
    return json.loads(invoke("diff", *arguments, "--json").stdout)


def build(source, backend, out, profile="int4"):
    done = invoke("build", source, "--backend", backend, "--profile", profile, "--out", out, "--no-verify")
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="module")
def bundles(tiny_llama, tmp_path_factory):
    """The same plan on two backends."""
    folder = tmp_path_factory.mktemp("bundles")
    return {backend: build(tiny_llama, backend, folder / backend) for backend in ("onnx_cpu", "openvino")}


def test_two_backends(bundles, story_text):
    found = document(bundles["onnx_cpu"], bundles["openvino"], "--exact", "--text", story_text, "--tokens", 64)
    assert [state["name"] for state in found["states"]] == [
        "embedding",
        *(f"layers.{i}.{block}_residual" for i in range(3) for block in ("attention", "mlp")),
        "logits",
    ]
    assert all(state["snr_db"] is None or state["snr_db"] > 80 for state in found["states"])
    assert found["predictions"]["mean_kl"] < 1e-6
    assert found["predictions"]["top1_agreement"] == 1
    assert found["integers"] == {"weights": 22, "different": [], "activations": 0}
    assert found["tokens"] == 64
    assert found["failures"] == []


def test_an_artifact_and_its_checkpoint(bundles, tiny_llama):
    found = document(tiny_llama, bundles["onnx_cpu"])
    assert found["tokens"] == 128  # the model's context
    assert found["integers"] is None
    assert all(5 < state["snr_db"] < 40 for state in found["states"])
    assert found["predictions"]["mean_kl"] > 0
    with pytest.raises(RegressionError, match="embedding is the first layer that diverges"):
        invoke("diff", tiny_llama, bundles["onnx_cpu"], "--min-snr", 60)
    with pytest.raises(RegressionError, match="mean KL divergence is"):
        invoke("diff", tiny_llama, bundles["onnx_cpu"], "--max-kl", 1e-6)


def test_a_checkpoint_and_itself(tiny_llama):
    found = document(tiny_llama, tiny_llama, "--min-snr", 1000, "--max-kl", 0)
    assert {(state["snr_db"], state["max_error"]) for state in found["states"]} == {(None, 0)}


def test_the_table(bundles):
    shown = invoke("diff", bundles["onnx_cpu"] / "artifact", bundles["openvino"], "--exact").stdout
    for text in ("layers.2.mlp_residual", "SNR dB", "128 tokens of python-docs", "22 weights, all the same", "KL"):
        assert text in shown


def flip_onnx_cpu(artifact, layer):
    """Flip every code of an attention's output matrix."""
    graph = onnx.load(artifact / "model_all_logits.onnx", load_external_data=False).graph
    (node,) = (node for node in graph.node if node.name == f"layers.{layer}.attention.o")
    (weight,) = (tensor for tensor in graph.initializer if tensor.name == node.input[1])
    place = {entry.key: entry.value for entry in weight.external_data}
    flip(artifact / place["location"], int(place["offset"]), int(place["length"]))


def flip_openvino(artifact, layer):
    layers = ET.parse(artifact / "openvino_model.xml").getroot().find("layers")
    start = f"model.layers.{layer}.self_attn.o_proj.weight:"
    (weight,) = (
        node.find("data")
        for node in layers
        if node.get("name").startswith(start) and node.get("name").endswith(".codes")
    )
    flip(artifact / "openvino_model.bin", int(weight.get("offset")), int(weight.get("size")))


def flip(path, offset, size):
    data = np.memmap(path, np.uint8, "r+", offset, (size,))
    data ^= 0x77
    data.flush()


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize(
    ("backend", "damage", "reference"),
    [("onnx_cpu", flip_onnx_cpu, "onnx_cpu"), ("openvino", flip_openvino, "onnx_cpu")],
)
def test_the_damaged_layer_is_blamed(backend, damage, reference, layer, bundles, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(bundles[backend], damaged)
    damage(damaged / "artifact", layer)
    done = CliRunner().invoke(edgec, ["diff", str(bundles[reference]), str(damaged), "--exact", "--json"])
    assert isinstance(done.exception, RegressionError)
    guilty = f"layers.{layer}.attention_residual"
    assert done.exception.what.startswith(f"{guilty} is the first layer that diverges")
    found = json.loads(done.stdout)
    assert found["failures"] == [done.exception.what]
    assert found["largest_drop"]["name"] == guilty
    assert found["integers"]["different"] == [f"model.layers.{layer}.self_attn.o_proj.weight"]


def test_what_cannot_be_compared(bundles, make_llama, tmp_path):
    deeper = make_llama(tmp_path / "deeper", num_hidden_layers=4)
    with pytest.raises(UsageError, match="A has 3 layers, B has 4"):
        invoke("diff", bundles["onnx_cpu"], deeper)
    wider = make_llama(tmp_path / "wider", vocab_size=512)
    with pytest.raises(UsageError, match="'logits' is"):
        invoke("diff", bundles["openvino"], wider)
    other = make_llama(tmp_path / "other")
    settings = json.loads((other / "tokenizer.json").read_text())
    settings["pre_tokenizer"]["add_prefix_space"] = True
    (other / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match="split python-docs differently"):
        invoke("diff", bundles["onnx_cpu"], other)


def test_what_is_no_model(bundles, tmp_path):
    shutil.copy(bundles["onnx_cpu"] / "manifest.json", tmp_path / "manifest.json")
    for path, code in ((tmp_path / "nothing", 2), (tmp_path, 3), (bundles["onnx_cpu"] / "plan.json", 3)):
        with pytest.raises(EdgecError) as caught:
            invoke("diff", path, bundles["onnx_cpu"])
        assert caught.value.exit_code == code
