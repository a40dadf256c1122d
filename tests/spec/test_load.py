"""What the user hears about a wrong target or profile."""

import pytest

from edgec.errors import UsageError
from edgec.spec.load import load_profile, load_target

GOOD = """title = "mine"
[weights]
dtype = "int4"
group_size = 32
[verify]
max_perplexity_ratio = 1.5
max_mean_kl = 0.5
min_top1_agreement = 0.5
"""


@pytest.fixture
def profile(tmp_path):
    def load(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return load_profile(str(path))

    return load


def test_a_profile_of_the_users_own(profile):
    assert profile(GOOD).name == "mine"
    assert profile(GOOD).weights.group_size == 32


@pytest.mark.parametrize(("load", "name", "near"), [(load_target, "jetsn", "jetson"), (load_profile, "int44", "int4")])
def test_unknown_names_are_guessed(load, name, near):
    with pytest.raises(UsageError) as caught:
        load(name)
    assert f"did you mean '{near}'?" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        ("group_size", "grup_size", ["weights.grup_size", "did you mean 'group_size'?"]),
        ("[weights]", "[wieghts]", ["'wieghts'", "did you mean 'weights'?"]),
        ("32", "33", ["weights.group_size"]),
        ("32", '"rows"', ["weights.group_size"]),
        ('"int4"', '"int5"', ["weights.dtype", "to do: one of fp32, fp16,"]),
        ("1.5", "0.5", ["verify.max_perplexity_ratio"]),
        ("1.5", '"much"', ["verify.max_perplexity_ratio"]),
        ("max_mean_kl = 0.5\n", "", ["max_mean_kl", "verify", "to do: add `max_mean_kl`"]),
        ('title = "mine"', 'title = "mine"\n[network]\nweights = "klein"', ["network.weights", "to do: one of fp32,"]),
        ('title = "mine"', 'title = "mine', ["not TOML", "line 1"]),
        ('title = "mine"', 'name = "x"', ["unknown key 'name'"]),
        ("group_size = 32", 'algorithm = "rtm"', ["'rtm'", "did you mean 'rtn'?"]),
    ],
)
def test_mistakes_are_named_with_their_key(profile, old, new, messages):
    with pytest.raises(UsageError) as caught:
        profile(GOOD.replace(old, new))
    assert caught.value.exit_code == 2
    for message in messages:
        assert message in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        load_target(str(tmp_path / "none.toml"))


def test_a_name_is_no_path():
    with pytest.raises(UsageError, match="there is no profile"):
        load_profile("../targets/intel-nuc")


def test_a_list_of_names_says_which_there_are(profile):
    with pytest.raises(UsageError, match="mpl") as error:
        profile(GOOD + '[slim]\nparameters = 0.2\nparts = ["mpl"]\n')
    assert error.value.hint == "one of layers, mlp, heads, hidden"


def test_zeros_that_are_none(profile):
    with pytest.raises(UsageError, match="0% has no zeros"):
        profile(GOOD + '[sparse]\npattern = "0%"\nmethod = "magnitude"\n')
