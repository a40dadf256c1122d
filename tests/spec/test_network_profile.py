"""What a profile says of networks, and what the user hears about mistakes in it."""

import tomllib

import pytest

from edgec.errors import UsageError
from edgec.spec.load import data_dir, load_network_profile, load_profile
from edgec.spec.network_profile import NetworkWishes

GOOD = """title = "mine"
[weights]
dtype = "int8"
group_size = "channel"
[verify]
max_perplexity_ratio = 1.5
max_mean_kl = 0.5
min_top1_agreement = 0.5
[network]
weights = "int8"
activations = "static"
range = "percentile"
skip = ["head*"]
[network.calibration]
samples = 32
[network.verify]
min_cosine = 0.9
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine.toml"


def test_a_profile_of_the_users_own(path):
    path.write_text(GOOD)
    profile = load_network_profile(str(path))
    assert (profile.name, profile.title) == ("mine", "mine")
    wishes = profile.wishes
    assert (wishes.weights, wishes.range, wishes.skip) == ("int8", "percentile", ("head*",))
    assert (wishes.calibration.samples, wishes.verify.min_cosine, wishes.verify.samples) == (32, 0.9, 512)
    assert wishes.verify.min_snr_db == 10
    assert (wishes.algorithm, wishes.equalize, wishes.correct_bias, wishes.keep_float) == ("rtn", False, False, 0.25)
    assert load_profile(str(path)).name == "mine"  # decoders take it too


@pytest.mark.parametrize("name", [p.stem for p in sorted(data_dir("profiles").glob("*.toml"))])
def test_shipped_profiles(name):
    values = tomllib.loads((data_dir("profiles") / f"{name}.toml").read_text())
    if "network" in values:
        wishes = load_network_profile(name).wishes
        least = (0.98, 10)
        if wishes.channels is not None or wishes.sparse is not None:
            least = (0.5, 0) if wishes.sparse is None else (0.25, -5)
        assert (wishes.verify.min_cosine, wishes.verify.min_snr_db) >= least
    else:
        with pytest.raises(UsageError, match="decoder language models only") as caught:
            load_network_profile(name)
        assert "int8-dynamic" in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        ('weights = "int8"\nact', 'wieghts = "int8"\nact', ["network.wieghts", "did you mean 'weights'?"]),
        ("samples = 32", "sample = 32", ["network.calibration.sample", "did you mean 'samples'?"]),
        ("min_cosine", "min_cosin", ["network.verify.min_cosin"]),
        ("min_cosine = 0.9", "max_drop = 0.1", ["min_cosine", "network.verify"]),
        ("min_cosine = 0.9", "min_cosine = 1.5", ["network.verify.min_cosine"]),
        ("min_cosine = 0.9", "min_cosine = 0.9\nmin_snr_db = nan", ["network.verify.min_snr_db"]),
        ("samples = 32", "samples = 0", ["network.calibration.samples"]),
        ("samples = 32", "seed = -1", ["network.calibration.seed"]),
        ('"percentile"', '"max"', ["network.range"]),
        ('"static"', '"integer"', ["network.activations"]),
        ('weights = "int8"\nact', 'weights = "int4"\nact', ["network.weights"]),
        ('skip = ["head*"]', 'skip = "head*"', ["network.skip"]),
        ('skip = ["head*"]', "keep_float = 2.0", ["network.keep_float"]),
        ('skip = ["head*"]', 'algorithm = "rtm"', ["network.algorithm", "did you mean 'rtn'?"]),
        (
            "[network.ver",
            "[network.channels]\nof = 'sizes'\nshare = 0.1\n[network.ver",
            ["one of parameters, multiply_adds"],
        ),
        ("[network.ver", "[network.channels]\nrefit = true\n[network.ver", ["share", "network.channels"]),
        ("[network.ver", "[network.sparse]\nmethod = 'wanda'\n[network.ver", ["pattern", "network.sparse"]),
        ("[network.ver", "[network.sparse]\npattern = '4:2'\n[network.ver", ["4:2 is no pattern", "network.sparse"]),
        ("[network.ver", "[network.sparse]\npattern = 'half'\n[network.ver", ["is no pattern", "network.sparse"]),
        ("[network.ver", "[network.sparse]\npattern = '0%'\n[network.ver", ["0% has no zeros", "network.sparse"]),
        (
            "[network.ver",
            "[network.sparse]\npattern = '50%'\nmethod = 'obd'\n[network.ver",
            ["one of magnitude, wanda, sparsegpt"],
        ),
        ('"percentile"', '"percentile', ["not TOML"]),
        ('weights = "int8"\nact', "act", ["weights"]),
    ],
)
def test_mistakes_are_named_with_their_key(path, old, new, messages):
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(UsageError) as caught:
        load_network_profile(str(path))
    assert caught.value.exit_code == 2
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize("name", ["int88", "none.toml", "../profiles/int8", ""])
def test_profiles_that_are_not_there(name):
    with pytest.raises(UsageError):
        load_network_profile(name)


def test_who_needs_samples(path):
    for channels, needs in (
        ("share = 0.5", True),
        ('share = 0.5\nimportance = "magnitude"', True),
        ('share = 0.5\nimportance = "magnitude"\nrefit = false', False),
        ('share = 0.5\nimportance = "activation"\nrefit = false', True),
    ):
        path.write_text(GOOD.replace('"static"', '"dynamic"') + f"[network.channels]\n{channels}\n")
        assert load_network_profile(str(path)).wishes.needs_samples == needs
    for method in ("magnitude", "wanda", "sparsegpt"):
        table = f"[network.sparse]\npattern = '2:4'\nmethod = '{method}'\n"
        path.write_text(GOOD.replace('"static"', '"dynamic"') + table)
        assert load_network_profile(str(path)).wishes.needs_samples == (method != "magnitude")
    path.write_text(GOOD)
    assert load_network_profile(str(path)).wishes.needs_samples


def test_static_is_of_integers():
    verify = {"min_cosine": 0.9}
    for weights, activations, is_static in (
        ("int8", "static", True), ("int8", "dynamic", False), ("int8", "float", False), ("fp16", "static", False),
    ):  # fmt: skip
        wishes = NetworkWishes(weights=weights, activations=activations, verify=verify)
        assert wishes.is_static == is_static
