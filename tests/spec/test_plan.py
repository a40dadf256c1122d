"""The plan: resolved, checked, hashable."""

import msgspec
import pytest

from edgec.checkpoint.open import open_checkpoint
from edgec.errors import PlanError
from edgec.frontends.families import describe
from edgec.quantize.scheme import Scheme
from edgec.spec.load import load_profile, load_target
from edgec.spec.plan import Plan, encode_plan, resolve


@pytest.fixture
def planned(tiny_llama):
    def make(target="cpu", profile="int4", backend=None, **changes):
        checkpoint = open_checkpoint(tiny_llama)
        wanted = msgspec.structs.replace(load_target(target), **changes)
        return resolve(checkpoint, describe(checkpoint), wanted, load_profile(profile), backend)

    return make


def test_everything_is_resolved(planned):
    plan = planned()
    assert plan.weights == plan.embedding == Scheme("int4", 32, algorithm="mse")
    assert (list(plan.calibration.files), plan.calibration.window, plan.calibration.seed) == (["python-docs"], 128, 0)
    assert planned(profile="int8").calibration is None
    assert plan.context_length == 128  # the model's, which is less than the profile's
    assert plan.backend == "onnx_cpu"
    assert set(plan.source.files) >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_a_plan_survives_its_own_json(planned):
    plan = planned()
    again = msgspec.json.decode(encode_plan(plan), type=Plan)
    assert again == plan
    assert again.sha256() == plan.sha256()
    assert planned(profile="int8").sha256() != plan.sha256()


@pytest.mark.parametrize(("profile", "share"), [("fp32", 1.0), ("fp16", 0.5), ("int8", 0.26), ("int4", 0.15)])
def test_the_estimate_is_near_the_artifact(planned, profile, share):
    # TensorRT keeps weights as they are stored; what others make of them is in test_memory.py.
    whole = planned("rtx-4060", "fp32").estimate.weight_bytes
    assert planned("rtx-4060", profile).estimate.weight_bytes == pytest.approx(share * whole, rel=0.1)


def test_what_does_not_fit_is_refused(planned):
    with pytest.raises(PlanError, match="KV cache"):
        planned(memory_gib=1e-4)


def test_weights_without_kernels_are_refused(planned):
    with pytest.raises(PlanError, match="no kernels for int4"):
        planned(weight_dtypes=("fp32", "int8"))


def test_a_backend_that_the_target_lacks(planned):
    with pytest.raises(PlanError, match="no backend 'tensorrt'"):
        planned(backend="tensorrt")


def test_blocks_that_nvfp4_cannot_write_are_refused(make_llama, tmp_path):
    checkpoint = open_checkpoint(make_llama(tmp_path, hidden_size=72, num_attention_heads=4, num_key_value_heads=4))
    with pytest.raises(PlanError, match="blocks of 16 do not divide the 72 inputs") as caught:
        resolve(checkpoint, describe(checkpoint), load_target("rtx-5090"), load_profile("nvfp4"))
    assert caught.value.where == "layers.0.attention, q"


@pytest.mark.parametrize(("tied", "wanted", "rounds"), [
    (True, "gptq", "mse"), (True, "autoround", "mse"), (True, "kquant", "kquant"),
    (False, "gptq", "gptq"), (False, "autoround", "gptq"), (False, "rtn", "rtn"),
])  # fmt: skip
def test_the_plan_names_the_algorithm_that_rounds_the_table(make_llama, tmp_path, tied, wanted, rounds):
    source = make_llama(tmp_path / "model", tie_word_embeddings=tied)
    (tmp_path / "p.toml").write_text(
        f'title = ""\n[weights]\ndtype = "int4"\ngroup_size = 32\nalgorithm = "{wanted}"\n[calibration]\n'
        "[verify]\nmax_perplexity_ratio = 2.0\nmax_mean_kl = 1.0\nmin_top1_agreement = 0.5\n"
    )
    checkpoint = open_checkpoint(source)
    plan = resolve(checkpoint, describe(checkpoint), load_target("cpu"), load_profile(str(tmp_path / "p.toml")))
    assert plan.embedding == Scheme("int4", 32, algorithm=rounds)
    assert plan.weights == Scheme("int4", 32, algorithm=wanted)
