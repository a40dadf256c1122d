"""Storage of single matrices: from a profile's selectors to the plan, the page, and what it costs."""

import msgspec
import pytest
from random_models import save_random

from edgec.checkpoint.open import open_checkpoint
from edgec.errors import PlanError, UsageError
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe, families
from edgec.graph.weights import float_weights, matrix_name
from edgec.quantize.scheme import Scheme
from edgec.report.page import storage_rows
from edgec.spec.layers import describe_matrices, matrix_names, ranges
from edgec.spec.load import load_profile, load_target
from edgec.spec.plan import Plan, encode_plan, resolve
from edgec.spec.preflight import preflight

PROFILE = """title = "mine"
[weights]
dtype = "int4"
group_size = 32
[verify]
max_perplexity_ratio = 2
max_mean_kl = 1
min_top1_agreement = 0.5
"""
INT4, INT8 = Scheme("int4", 32), Scheme("int8", None)


@pytest.fixture
def plan_with(tiny_llama, tmp_path):
    def make(layers, target="cpu", backend=None):
        (tmp_path / "mine.toml").write_text(PROFILE + layers)
        checkpoint = open_checkpoint(tiny_llama)
        wishes = load_profile(str(tmp_path / "mine.toml"))
        return resolve(checkpoint, describe(checkpoint), load_target(target), wishes, backend)

    return make


def override(match, dtype="int8", more=""):
    return f'[[layers]]\nmatch = {match}\ndtype = "{dtype}"\n{more}\n'


def test_the_last_match_wins_and_others_stay(plan_with):
    first = override('"layers.*.mlp.*"', more='reason = "outliers"')
    plan = plan_with(first + override('["layers.1.mlp.up", "layers.[01].attention.[kv]"]', "fp16"))
    assert plan.storage_of("layers.0.mlp.up") == plan.storage_of("layers.2.mlp.down") == INT8
    assert plan.storage_of("layers.1.mlp.up") == plan.storage_of("layers.0.attention.v") == "fp16"
    assert plan.storage_of("layers.0.attention.q") == plan.storage_of("layers.2.attention.v") == INT4
    assert plan.storage_of("lm_head") == plan.storage_of("embedding") == INT4
    assert plan.layers["layers.0.mlp.up"].reason == "outliers"
    assert plan.storages() == {INT4, INT8, "fp16"}


def test_a_plan_with_layers_survives_its_own_json(plan_with):
    plan = plan_with(override('"layers.1.mlp.up"'))
    assert msgspec.json.decode(encode_plan(plan), type=Plan) == plan
    assert len({plan.sha256(), plan_with("").sha256(), plan_with(override('"layers.2.mlp.up"')).sha256()}) == 3


def test_what_is_stored_as_all_others_is_no_exception(plan_with):
    same = override('"layers.1.mlp.up"', "int4", "group_size = 32")
    assert plan_with(same).sha256() == plan_with("").sha256()


@pytest.mark.parametrize(
    ("layers", "messages"),
    [
        (override('"layers.1.mlp.dwn"'), ["'layers.1.mlp.dwn' matches no", "layers.1.mlp.down", "layers[0].match"]),
        (override('["layers.1.mlp.up", "layers.3.*"]'), ["'layers.3.*'", "0 to 2"]),
        (override("[]"), ["layers[0].match"]),
        (override('"embedding"'), ["'embedding' matches no matrix"]),
        (override('"layers.*"', more="reson = 'x'"), ["layers.reson", "did you mean 'reason'?"]),
        (override('"layers.*"', more='algorithm = "rtm"'), ["layers[0].algorithm", "did you mean 'rtn'?"]),
        ('[[layers]]\ndtype = "int8"\n', ["match", "layers[0]"]),
        ('[layers]\nmatch = "layers.*"\ndtype = "int8"\n', ["layers"]),
    ],
)  # fmt: skip
def test_mistakes_exit_with_2(plan_with, layers, messages):
    with pytest.raises(UsageError) as caught:
        plan_with(layers)
    assert caught.value.exit_code == 2
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "more", "target", "backend", "message"),
    [
        ("fp8", "", "cpu", None, "no kernels for fp8"),
        ("fp8", "", "jetson-thor", "onnx_cpu", "takes no fp8"),
        ("int8", "symmetric = false", "rtx-4060", None, "symmetric integers only"),
        ("fp32", "", "rtx-4060", None, "all layers in float32 or none"),
    ],
)
def test_what_the_target_or_the_backend_cannot_take_is_refused(plan_with, dtype, more, target, backend, message):
    with pytest.raises(PlanError, match=message):
        plan_with(override('"layers.0.*"', dtype, more), target, backend)


def test_wider_matrices_cost_memory_and_traffic(plan_with, tiny_llama):
    decoder = describe(open_checkpoint(tiny_llama))
    narrow, wide = plan_with(""), plan_with(override('"layers.*.mlp.down"'))
    # Half a byte for each weight; one scale per output is repeated for as many blocks of 32 as there were groups.
    codes = 3 * 96 * 64 / 2
    assert wide.estimate.weight_bytes - narrow.estimate.weight_bytes == codes
    read = [preflight(decoder, plan, load_target("cpu")).bytes_per_token for plan in (narrow, wide)]
    assert read[1] - read[0] == codes


def test_plans_print_exceptions_in_few_words(plan_with):
    rows = storage_rows(plan_with(override('["layers.[02].mlp.*", "layers.1.attention.o"]')))
    assert rows[0] == ("layers", "int4, groups of 32, symmetric, rtn")
    words = "int8, one scale per output, symmetric, rtn: mlp.gate 0, 2; mlp.up 0, 2; mlp.down 0, 2; attention.o 1"
    assert rows[1] == ("except", words)
    assert ranges([0, 1, 2, 4, 6, 7]) == "0-2, 4, 6-7"
    assert describe_matrices(["layers.9.mlp.up", "layers.10.mlp.up"]) == "mlp.up 9-10"


@pytest.mark.parametrize("kind", sorted(families()))
def test_the_graph_calls_matrices_as_the_plan_does(kind, tmp_path):
    save_random(kind, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    decoder = describe(checkpoint)
    weights = float_weights(emit(decoder, checkpoint, checkpoint.read, 16).graph)
    assert [name for value, _ in weights if (name := matrix_name(value)).startswith("layers.")] == matrix_names(decoder)
