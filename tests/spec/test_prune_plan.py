"""Sizes of what stays, beside trying one share after the other, and what cannot stay."""

import pkgutil
from importlib import import_module

import pytest
from msgspec.structs import replace
from random_models import opener

from edgec.errors import PlanError
from edgec.frontends.families import describe
from edgec.prune.keep import Shares, Sizes, first, full, sizes
from edgec.prune.slim import slim
from edgec.quantize import algorithms
from edgec.spec import prune_plan
from edgec.spec.profile import WEIGHTS_ALONE
from edgec.spec.prune import Slim
from edgec.spec.prune_plan import SlimPlan, parameters, resolve_slim


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    return opener(tmp_path_factory)


def scanned(checkpoint, decoder, wishes):
    """Try one share after the other; return the first that is enough, if any, and what was refused before it."""
    allowed, tried, refused = (1 - wishes.parameters) * parameters(decoder), full(decoder), []
    for step in range(1, 400):
        try:
            found = sizes(decoder, Shares(**dict.fromkeys(wishes.parts, step / 400)), wishes.multiple)
        except PlanError as error:
            return None, [*refused, str(error)]
        if found == tried:
            continue
        tried = found
        try:
            smaller = describe(slim(checkpoint, decoder, first(decoder, found)))
        except PlanError as error:
            refused.append(str(error))
            continue
        if (stay := parameters(smaller)) <= allowed:
            return SlimPlan(found, stay, wishes.parts, wishes.importance), refused
    return None, [*refused, f"more than {1 - wishes.parameters:.0%} of the parameters would be left"]


MIXTURES = [
    ("mlp",),
    ("heads",),
    ("hidden",),
    ("layers",),
    ("mlp", "heads"),
    ("heads", "hidden"),
    ("layers", "mlp", "heads", "hidden"),
]
MODELS = [
    ("llama", {"num_hidden_layers": 4}),
    ("gpt2", {}),
    # Whose configs cannot say 7, 6, 5 and 3 heads.
    ("gpt2", {"hidden_size": 128, "num_attention_heads": 8}),
    ("gemma2", {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 8}),
    ("olmo2", {}),
]


@pytest.mark.parametrize("parts", MIXTURES, ids="+".join)
@pytest.mark.parametrize(("kind", "changes"), MODELS)
def test_halving_finds_what_trying_all_does(kind, changes, parts, random_model):
    checkpoint, decoder = random_model(kind, **changes)
    for share in (0.01, 0.15, 0.4, 0.6, 0.95):
        wishes = Slim(parameters=share, parts=parts, multiple=8)
        expected, refused = scanned(checkpoint, decoder, wishes)
        if expected is None:
            with pytest.raises(PlanError) as refusal:
                resolve_slim(checkpoint, decoder, wishes)
            assert any(reason in str(refusal.value) for reason in refused)
            continue
        found, smaller = resolve_slim(checkpoint, decoder, wishes)
        assert found == expected
        assert full(smaller) == found.sizes
        assert parameters(smaller) == found.parameters <= (1 - share) * parameters(decoder)


def test_few_sizes_are_described(random_model, monkeypatch):
    checkpoint, decoder = random_model("llama", intermediate_size=640)
    described = []

    def counted(smaller, ignored):
        described.append(smaller)
        return describe(smaller, ignored)

    monkeypatch.setattr(prune_plan, "describe", counted)
    resolve_slim(checkpoint, decoder, Slim(parameters=0.5, parts=("mlp",), multiple=1))
    assert len(described) <= 10  # of 399


def test_sizes_on_the_way_that_a_config_cannot_say_do_not_matter(random_model):
    # The heads of a GPT-2 share its hidden size: they must go with as much of it, and for most shares they do not.
    checkpoint, decoder = random_model("gpt2")
    wishes = Slim(parameters=0.6, parts=("layers", "mlp", "heads", "hidden"), multiple=8)
    expected, refused = scanned(checkpoint, decoder, wishes)
    assert refused
    assert resolve_slim(checkpoint, decoder, wishes)[0] == expected


@pytest.mark.parametrize(
    ("changes", "wishes", "message"),
    [
        ({"num_key_value_heads": 1}, {"parts": ("heads",)}, "of the 1 groups of attention heads"),
        ({"num_hidden_layers": 1}, {"parts": ("layers",)}, "of the 1 layers"),
        ({}, {"parts": ("hidden",), "multiple": 128}, "nearest multiple of 128 is 0"),
        ({}, {"parts": ("mlp",), "multiple": 128}, "nearest multiple of 128 is 0"),
        ({}, {"parts": ("mlp",), "multiple": 8, "parameters": 0.9}, "of the 80 inner units of MLPs"),
        ({}, {"parts": ("layers", "mlp", "heads"), "multiple": 1, "parameters": 0.99}, "would be left"),
    ],
)
def test_what_would_leave_nothing_is_refused(changes, wishes, message, random_model):
    checkpoint, decoder = random_model("llama", **changes)
    with pytest.raises(PlanError, match=message) as refused:
        resolve_slim(checkpoint, decoder, Slim(**{"parameters": 0.1, **wishes}))
    assert refused.value.exit_code == 4
    assert refused.value.hint


def test_with_one_group_of_heads_the_mlps_make_up_for_it(random_model):
    checkpoint, decoder = random_model("llama", num_key_value_heads=1)
    found, smaller = resolve_slim(checkpoint, decoder, Slim(parameters=0.1, parts=("mlp", "heads"), multiple=8))
    assert found.sizes == replace(full(decoder), mlp=found.sizes.mlp)
    assert found.sizes.mlp < 80
    assert smaller.layers[0].attention.heads == decoder.layers[0].attention.heads


def test_groups_go_with_all_of_their_query_heads(random_model):
    checkpoint, decoder = random_model("llama", num_attention_heads=4, num_key_value_heads=2)
    found, smaller = resolve_slim(checkpoint, decoder, Slim(parameters=0.05, parts=("heads",)))
    assert found.sizes == Sizes(2, 80, 1, 64)
    attention = smaller.layers[0].attention
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (2, 1, 16)


def test_profiles_know_which_algorithms_read_a_text():
    names = {file.name for file in pkgutil.iter_modules(algorithms.__path__)}
    alone = {name for name in names if import_module(f"{algorithms.__name__}.{name}").NEEDS == "nothing"}
    assert alone == names & set(WEIGHTS_ALONE)
