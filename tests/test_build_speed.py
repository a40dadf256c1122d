"""What is faster in float goes back to it: on a network whose layers take as long as the test says."""

import time

import msgspec
import numpy as np
import pytest
from tiny_networks import NETWORKS

from edgec import build_speed
from edgec.build_speed import Trial
from edgec.errors import OutputError
from edgec.spec.load import load_target
from edgec.spec.network_plan import Data
from edgec.spec.network_profile import NetworkBounds, NetworkProfile, NetworkWishes
from edgec.spec.network_resolve import placement_of, resolve_network

TARGET = load_target("x86-avx512-vnni")
LAYERS = ("c1", "c2", "c3", "c4", "y")  # c2 is depthwise, y a product
UNIT_S = 100e-6


class Timed:
    """A session that takes so many units of processor time."""

    def __init__(self, units):
        self.units = units

    def run(self, feed):
        assert feed.keys() == {"x"}
        end = time.process_time() + self.units * UNIT_S
        while time.process_time() < end:
            pass
        return {}


class Clockwork:
    """A backend whose layers take one unit each in float, and in int8 what it is told.

    Args:
        units: layer -> units in int8; one where nothing is said.
    """

    PACKAGES = ("onnxruntime",)

    def __init__(self, **units):
        self.units, self.opened = units, []

    def compile_network(self, job, folder):
        (folder / "floats").write_text(job.model.metadata_props["floats"])

    def open_network(self, folder, mode, *, threads):
        assert (mode, threads) == ("shipped", 1)
        floats = (folder / "floats").read_text().split()
        self.opened.append(floats)
        return Timed(sum(1 if name in floats else self.units.get(name, 1) for name in LAYERS))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return NETWORKS["cnn"].open(tmp_path_factory.mktemp("cnn"))[0]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def find_slow(network, backend, tmp_path, **wishes):
    wanted = NetworkWishes(weights="int8", verify=NetworkBounds(min_cosine=0.9), **wishes)
    data = Data("tiny", "0" * 64, 16, 0)
    plan = resolve_network(network, TARGET, NetworkProfile("test", "", wanted), "onnx_cpu", data)
    scratch = tmp_path / f"scratch.{len(list(tmp_path.iterdir()))}"
    scratch.mkdir()
    feed = {"x": np.zeros((1, 3, 12, 12), np.float32)}

    def make(floats):
        model = network.model.clone()
        model.metadata_props["floats"] = " ".join(sorted(floats))
        return model

    return Trial(network, plan, TARGET, backend, scratch, feed).find_slow(make, placement_of(network.model, plan))


CASES = {
    "none": ({}, {}),
    "all are faster": (dict.fromkeys(LAYERS, 0.5), {}),
    "the first": ({"c1": 4}, {"c1": "the first layer"}),
    "the first two": (
        {"c1": 0.5, "c2": 4, "c3": 0.5},
        {"c1": "the first 2 layers", "c2": "the first 2 layers"},
    ),
    "depthwise ones, behind a first layer that is fast": ({"c1": 0.1, "c2": 1.8}, {"c2": "depthwise convolutions"}),
    "products": ({"y": 4, "c1": 0.5}, {"y": "products"}),
    "the first, and products": ({"c1": 4, "y": 4}, {"c1": "the first layer", "y": "products"}),
    "everything": (dict.fromkeys(LAYERS, 3), None),
}


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("case", CASES)
def test_what_is_slower_in_int8_goes_back_and_nothing_else(case, network, tmp_path):
    units, expected = CASES[case]
    found = find_slow(network, Clockwork(**units), tmp_path)
    if expected is None:
        assert found.keys() == set(LAYERS)
        return
    assert {name: why.partition(":")[0] for name, why in found.items()} == expected
    assert all("times as fast here" in why for why in found.values())


@pytest.mark.usefixtures("cache")
def test_what_it_says_is_how_much_faster(network, tmp_path):
    found = find_slow(network, Clockwork(c1=6), tmp_path)  # of 10 units 5 are left
    assert found["c1"].startswith("the first layer: in float the network runs ")
    assert 1.6 < float(found["c1"].split()[8]) < 2.2


class TestTheAnswerIsKept:
    def test_it_is_the_same_the_second_time_and_nothing_runs(self, network, cache, tmp_path):
        first = find_slow(network, Clockwork(c1=4), tmp_path)
        (file,) = (cache / "speed").iterdir()
        assert msgspec.json.decode(file.read_bytes()) == first
        again = Clockwork()  # it would find nothing
        assert find_slow(network, again, tmp_path) == first
        assert again.opened == []

    def test_nothing_is_an_answer_too(self, network, cache, tmp_path):
        assert find_slow(network, Clockwork(), tmp_path) == {}
        again = Clockwork(c1=4)
        assert find_slow(network, again, tmp_path) == {}
        assert again.opened == []
        assert len(list((cache / "speed").iterdir())) == 1

    def test_another_plan_or_machine_is_asked_anew(self, network, cache, tmp_path, monkeypatch):
        monkeypatch.setattr(build_speed, "_PAIRS", 6)
        find_slow(network, Clockwork(), tmp_path)
        other = Clockwork()
        find_slow(network, other, tmp_path, skip=("c4",))
        assert other.opened
        monkeypatch.setattr(build_speed, "fingerprint", lambda: {"cpu_model": "another"})
        moved = Clockwork()
        find_slow(network, moved, tmp_path)
        assert moved.opened
        assert len(list((cache / "speed").iterdir())) == 3

    @pytest.mark.parametrize(
        "content", [b"", b'{"c1": "the fir', b'["c1"]', b'{"c1": 3}', b'{"c1": "\xff\xfe"}', b"\0" * 99]
    )
    def test_a_damaged_file_is_made_anew(self, content, network, cache, tmp_path, monkeypatch):
        monkeypatch.setattr(build_speed, "_PAIRS", 6)
        find_slow(network, Clockwork(), tmp_path)
        (file,) = (cache / "speed").iterdir()
        file.write_bytes(content)
        again = Clockwork()
        assert find_slow(network, again, tmp_path) == {}
        assert again.opened
        assert file.read_bytes() == b"{}"

    def test_where_it_cannot_be_kept(self, network, cache, tmp_path, monkeypatch):
        monkeypatch.setattr(build_speed, "_PAIRS", 6)
        cache.write_text("a file where a folder should be")
        with pytest.raises(OutputError, match="cannot keep") as caught:
            find_slow(network, Clockwork(), tmp_path)
        assert "EDGEC_CACHE" in caught.value.hint


@pytest.mark.usefixtures("cache")
def test_nodes_that_are_not_int8_are_not_tried(network, tmp_path, monkeypatch):
    monkeypatch.setattr(build_speed, "_PAIRS", 6)
    backend = Clockwork(c1=9)
    find_slow(network, backend, tmp_path, skip=("c1",))
    assert backend.opened[0] == []
    assert backend.opened[1] == ["c2"]  # the first that is
    assert not any("c1" in floats for floats in backend.opened)


@pytest.mark.usefixtures("cache")
def test_a_network_without_integers(network, tmp_path):
    backend = Clockwork()
    assert find_slow(network, backend, tmp_path, skip=("*",)) == {}
    assert len(backend.opened) == 1
