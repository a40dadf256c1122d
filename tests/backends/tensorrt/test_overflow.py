"""Numbers beyond float16: refused where the engine computes in float16, and let be where it computes in float32."""

import numpy as np
import pytest
from random_models import save_random
from safetensors.numpy import load_file, save_file

from edgec.backends.backend import Job
from edgec.backends.tensorrt.compile import write_graph
from edgec.backends.tensorrt.session import GraphSession
from edgec.backends.tensorrt.states import trace
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import BundleError, PlanError
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe
from edgec.spec.load import load_profile, load_target
from edgec.spec.plan import resolve

IDS = np.arange(3, 23)[None]
LARGEST = 65504


def write_artifact(source, folder, target, profile="fp16"):
    checkpoint, device = open_checkpoint(source), load_target(target)
    decoder = describe(checkpoint)
    plan = resolve(checkpoint, decoder, device, load_profile(profile), "tensorrt")
    model = emit(decoder, checkpoint, checkpoint.read, plan.context_length)
    folder.mkdir()
    job = Job(model, decoder, plan, device, checkpoint.config, {})
    write_graph(job, folder, lambda _: None, old="tensorrt_rtx" not in device.runtimes)
    return folder


@pytest.mark.parametrize("target", ["rtx-4060", "jetson-orin-nano"])
@pytest.mark.parametrize(
    ("scaled", "name"),
    [("layers.1.mlp.up_proj", "layers.1.mlp.gated"), ("layers.2.self_attn.v_proj", "layers.2.attention.v")],
)
def test_a_number_beyond_float16_is_refused_and_named(scaled, name, target, make_llama, tmp_path):
    path = make_llama(tmp_path / "source") / "model.safetensors"
    weights = load_file(path)
    weights[f"model.{scaled}.weight"] *= np.float32(30000)
    save_file(weights, path)
    artifact = write_artifact(path.parent, tmp_path / "artifact", target)
    with pytest.raises(PlanError, match="engines compute it in float16, which ends at 65504") as caught:
        GraphSession(artifact, "exact").step(IDS)
    assert name in caught.value.what
    assert caught.value.where == str(artifact / "model.onnx")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("target", ["rtx-4060", "jetson-orin-nano"])
def test_a_residual_stream_beyond_float16_is_no_error(target, tmp_path):
    save_random("granite", tmp_path / "source", embedding_multiplier=3e6)
    artifact = write_artifact(tmp_path / "source", tmp_path / "artifact", target)
    stream = dict(trace(artifact, IDS, "evaluate"))
    logits = stream.pop("logits")
    assert min(np.abs(value).max() for name, value in stream.items() if name != "embedding") > 2 * LARGEST
    exact = GraphSession(artifact, "exact").step(IDS)
    assert np.isfinite(exact).all()
    np.testing.assert_allclose(logits, exact, atol=0.02 * exact.std())


def test_in_float32_nothing_is_watched(make_llama, tmp_path):
    source = make_llama(tmp_path / "source")
    artifact = write_artifact(source, tmp_path / "artifact", "rtx-4060", "fp32")
    assert np.isfinite(GraphSession(artifact, "exact").step(IDS)).all()


@pytest.mark.parametrize("mode", ["generate", "evaluate", "exact"])
def test_a_truncated_weights_file_is_refused(mode, make_llama, tmp_path):
    artifact = write_artifact(make_llama(tmp_path / "source"), tmp_path / "artifact", "rtx-4060")
    with (artifact / "model.onnx.data").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(BundleError, match="the graph"):
        GraphSession(artifact, mode)
