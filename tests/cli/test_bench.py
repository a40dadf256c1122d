"""`edgec bench`: scenarios, grids, and bundles side by side."""

import json
import os
import re
import sys
import xml.etree.ElementTree as ET
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from commands import fails, invoke
from tiny_networks import NETWORKS

from edgec.cli import edgec
from edgec.cli._bench import show
from edgec.errors import MissingRuntimeError
from edgec.gate import side_by_side
from edgec.gate.side_by_side_result import SideBySide
from edgec.measure import race as racing
from edgec.measure.energy import Meter

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller" / "checkpoint"
SHORT = ("--prompt-tokens", 4, "--new-tokens", 2, "--threads", 1)
ENERGY = {"energy_mj"} if Meter().read_j() else set()
PLAIN = {"latency", "load_ms", "peak_rss_bytes", "size_bytes", "environment"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    model = NETWORKS["cnn"].save(folder / "cnn.onnx")
    for source, profile, name in ((STORYTELLER, "int8", "int8"), (STORYTELLER, "int4", "int4"), (model, "fp32", "cnn")):
        options = ("--target", "cpu", "--profile", profile, "--no-verify", "-o", folder / name)
        assert invoke("build", source, *options).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def compared(bundles, tmp_path_factory):
    """A race of two bundles, with a plot in place of another file."""
    plot = tmp_path_factory.mktemp("plot") / "plot.svg"
    plot.write_text("old" * 10**6)
    # `--compare int8 int4` says the same.
    return found(bundles / "int8", "--compare", bundles / "int4", *SHORT, "--rounds", 5, "--plot", plot), plot


@pytest.fixture
def no_work(monkeypatch):
    """Let no process start."""

    def refuse(count):
        raise AssertionError("a process was started")

    monkeypatch.setattr(racing, "workers", refuse)


def found(*arguments):
    return json.loads(invoke("bench", *arguments, "--json").stdout)


def by_name(result):
    return {(row["metric"], row["workload"]): row for row in result["rows"]}


class TestAlone:
    def test_without_new_options_it_says_what_it_always_did(self, bundles):
        decoder = found(bundles / "int8", *SHORT, "--repeats", 1)
        assert set(decoder) == PLAIN | {"weight_bytes_per_token", "read_bandwidth_gb_per_s", "bandwidth_share"}
        assert (decoder["latency"]["prompt_tokens"], decoder["latency"]["new_tokens"]) == (4, 2)
        network = found(bundles / "cnn", "--runs", 2)
        assert set(network) == PLAIN

    def test_a_grid_of_lengths(self, bundles):
        options = ("--prompt-tokens", 4, "--prompt-tokens", 8, "--prompt-tokens", 4, "--new-tokens", 1)
        result = found(bundles / "int8", *options, "--new-tokens", 3, "--rounds", 1, "--threads", 1)
        lengths = [(each["prompt_tokens"], each["new_tokens"]) for each in result["workloads"]]
        assert lengths == [(4, 1), (4, 3), (8, 1), (8, 3)]
        rows = by_name(result)
        for number in range(4):
            (cell,) = rows["token_ms", number]["bundles"]
            assert 0 < cell["least"] <= cell["value"] <= cell["most"]
            assert cell["ratio"] is None
        assert {metric for metric, number in rows if number is None} == {"load_ms", "peak_rss_bytes", "size_bytes"}
        assert {metric for metric, number in rows if number == 0} >= {"ttft_ms", "token_ms", "tokens_per_s", *ENERGY}
        assert ENERGY or not any(metric == "energy_mj" for metric, _ in rows)

    def test_offline_gives_more_rows(self, bundles):
        rates = []
        for batch in (1, 64):
            result = found(bundles / "cnn", "--scenario", "offline", "--batch", batch, "--rounds", 1, "--threads", 1)
            assert result["workloads"][0]["batch"] == batch
            rates.append(by_name(result)["rows_per_s", 0]["bundles"][0]["value"])
        assert rates[1] > 1.2 * rates[0]

    def test_a_server_that_is_asked_too_much_says_so(self, bundles):
        done = invoke("bench", bundles / "int8", *SHORT, "--scenario", "server", "--rate", 1e5, "--rounds", 1)
        assert "server, 4 prompt tokens, 2 new, 100000/s" in done.stdout
        assert "queue that grows" in done.stderr
        calm = invoke("bench", bundles / "cnn", "--scenario", "server", "--rate", 400, "--rounds", 1)
        assert "queue" not in calm.stderr
        assert "of single rounds" in calm.stdout


class TestCompare:
    def test_others_beside_the_first(self, compared, bundles):
        result, _ = compared
        assert result["names"] == ["int8", "int4"]
        assert [each["profile"] for each in result["bundles"]] == ["int8", "int4"]
        assert (result["kind"], result["rounds"], result["confidence"]) == ("decoder", 5, 0.95)
        rows = by_name(result)
        for row in rows.values():
            first, *others = row["bundles"]
            assert (first["ratio"], first["low"], first["high"]) == (None, None, None)
            for cell in others:
                assert cell["low"] <= cell["ratio"] <= cell["high"]
                assert cell["least"] <= cell["most"]
                times = cell["value"] / first["value"]
                assert cell["ratio"] == pytest.approx(1 / times if row["higher_is_better"] else times, rel=1e-5)
        sizes = [cell["value"] for cell in rows["size_bytes", None]["bundles"]]
        assert sizes[1] / sizes[0] == pytest.approx(rows["size_bytes", None]["bundles"][1]["ratio"])
        assert sizes[1] < sizes[0]
        assert result["environment"]["cpu_model"]

    def test_the_plot_is_there_whoever_reads_the_table(self, compared, bundles, tmp_path, monkeypatch):
        result = msgspec.convert(compared[0], SideBySide)
        monkeypatch.setattr(side_by_side, "put_side_by_side", lambda *_, **__: result)
        options = ("--compare", bundles / "int8", bundles / "int4", "--plot", tmp_path / "plot.svg")
        end, begin = os.pipe()
        os.close(end)
        with suppress(BrokenPipeError), os.fdopen(begin, "w") as unread:  # which cannot be closed either
            monkeypatch.setattr(sys, "stdout", unread)
            assert edgec.main(["bench", *map(str, options)], standalone_mode=False) == 0
        assert (tmp_path / "plot.svg").read_bytes() == compared[1].read_bytes()

    def test_the_plot_is_whole(self, compared):
        _, plot = compared
        assert ET.parse(plot).getroot().tag.endswith("svg")
        assert b"oldold" not in plot.read_bytes()
        assert list(plot.parent.iterdir()) == [plot]

    def test_as_a_table(self, compared, capsys):
        show(msgspec.convert(compared[0], SideBySide))
        out, err = capsys.readouterr()
        for word in ("single-stream, 4 prompt tokens", "times as bad as int8", "above 1 is worse", "95%", "int4"):
            assert word in out
        cell = by_name(compared[0])["ttft_ms", 0]["bundles"][1]
        ratio = f"{cell['value']:.4g} ms {cell['ratio']:.3f} ({cell['low']:.3f} to {cell['high']:.3f})"
        assert ratio in " ".join(out.split())
        assert "loading, memory and size" in out
        assert "5 rounds of fresh processes" in err


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--compare", "int8"), "at least two"),
            (("int8", "int4"), "several bundles"),
            (("--compare", "int8", "cnn"), "no decoder language model, the first is one"),
            (("--compare", "cnn", "int8"), "is a decoder language model, the first is not"),
            (("--compare", "int8", "int4", "--rounds", "4"), "at least 5 rounds"),
            (("--compare", "int8", "int4", "--plot", "plot.pdf"), r"\.png or \.svg"),
            (("--compare", "int8", "int4", "--plot", "."), r"\.png or \.svg"),
            (("int8", "--plot", "plot.png"), "compares bundles"),
            (("int8", "--scenario", "server"), "belong together"),
            (("int8", "--rate", "4"), "belong together"),
            (("int8", "--batch", "4"), "--batch is for"),
            (("int8", "--scenario", "server", "--rate", "4", "--batch", "4"), "--batch is for"),
            (("cnn", "--scenario", "offline", "--runs", "3"), "--runs is for"),
            (("int8", "--rounds", "3", "--repeats", "3"), "--repeats is for"),
            (("--compare", "int8", "int4", "--repeats", "3"), "--repeats is for"),
            (("--compare", "cnn", "cnn", "--prompt-tokens", "3"), "--prompt-tokens is for decoder"),
            (("cnn", "--rounds", "3", "--new-tokens", "3"), "--new-tokens is for decoder"),
            (("cnn", "--prompt-tokens", "3"), "--prompt-tokens is for decoder"),
            (("cnn", "--repeats", "3"), "--repeats is for decoder"),
            (("int8", "--size", "N=3"), "--size is for other models"),
            (("int8", "--runs", "3"), "--runs is for other models"),
            (("int8", "--scenario", "server", "--rate", "nan"), "--rate is no number"),
            (("cnn", "--size", "N=" + 5000 * "9"), "gives no size"),
            (("--compare", "cnn", "cnn", "--size", "tokens=3"), "no size is called 'tokens'"),
            (("--compare", "cnn", "cnn", "--size", "tokens"), "gives no size"),
            (("--compare", "int8", "int4", "--size", "N=3"), "--size is for other models"),
            (("cnn", "--scenario", "offline", "--batch", "4", "--size", "N=3"), "given twice"),
        ],
    )
    def test_before_any_work(self, bundles, no_work, monkeypatch, options, message):
        monkeypatch.chdir(bundles)
        error = fails("bench", *options)
        assert error.exit_code == 2
        assert re.search(message, error.what)

    def test_no_rate_at_all(self, bundles, no_work):
        done = invoke("bench", bundles / "cnn", "--scenario", "server", "--rate", "inf")
        assert (done.exit_code, "not in the range" in done.stderr) == (2, True)

    def test_no_bundle_at_all(self):
        assert "Missing argument" in invoke("bench", "--compare").stderr

    def test_what_is_no_bundle(self, bundles, no_work, tmp_path):
        assert fails("bench", "--compare", bundles / "int8", tmp_path).exit_code == 3
        assert fails("bench", tmp_path, "--rounds", 2).exit_code == 3

    @pytest.mark.parametrize(("package", "extra"), [("matplotlib", "bench"), ("scipy", "gate")])
    def test_a_package_is_missing(self, bundles, no_work, monkeypatch, tmp_path, package, extra):
        monkeypatch.setitem(sys.modules, package, None)
        options = ("--plot", tmp_path / "plot.svg")
        error = fails("bench", "--compare", bundles / "int8", bundles / "int4", *options)
        assert isinstance(error, MissingRuntimeError)
        assert f"edgec[{extra}]" in error.hint

    def test_what_does_not_fit_the_context(self, bundles):
        error = fails("bench", bundles / "int8", "--prompt-tokens", 600, "--rounds", 1)
        assert (error.exit_code, "takes 1 to 512 tokens" in error.what) == (2, True)


def test_what_is_taken_is_what_workloads_take():
    from edgec.cli import bench
    from edgec.measure.workload import MOST_ROWS, MOST_THREADS, MOST_TOKENS

    assert (bench._ROWS.max, bench._LENGTH.max, bench._THREADS.max) == (MOST_ROWS, MOST_TOKENS, MOST_THREADS)
