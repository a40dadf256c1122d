"""Several bundles beside each other: on rounds whose truth is known."""

import sys
import xml.etree.ElementTree as ET
from itertools import islice

import matplotlib as mpl
import numpy as np
import pytest
from msgspec.structs import replace
from simulated import rounds

from edgec.errors import MissingRuntimeError, OutputError, UsageError
from edgec.gate.compare import common
from edgec.gate.metrics import Measured
from edgec.gate.result import Subject
from edgec.gate.side_by_side import overloaded, row_of
from edgec.gate.side_by_side_plot import _interval, check_plot, draw
from edgec.gate.side_by_side_result import Cell, SideBySide, names_of, value_text
from edgec.measure.query import Slice
from edgec.measure.race import Process
from edgec.measure.workload import Workload

LATENCY = Measured("latency_ms", 0)
MIB = 2**20


def taken(count=8, seed=0, slower=0.05, **noise):
    return list(islice(rounds(np.random.default_rng(seed), slower, **noise), count))


class TestRows:
    def test_intervals_hold_the_truth(self):
        held = []
        for seed in range(80):
            _, same, slower = row_of(taken(seed=seed), LATENCY, 0.95).bundles
            held.append((same.low <= 1 <= same.high, slower.low <= 1.05 <= slower.high))
        shares = np.mean(held, axis=0)
        assert (shares >= 0.87).all()  # 0.95, and three standard errors of 80 races
        assert (shares < 1).all()

    def test_more_confidence_is_wider(self):
        narrow, wide = (row_of(taken(), LATENCY, level).bundles[2] for level in (0.8, 0.99))
        assert narrow.ratio == wide.ratio
        assert wide.low < narrow.low < narrow.ratio < narrow.high < wide.high

    def test_a_ratio_has_nothing_to_do_with_who_else_is_there(self):
        whole = taken()
        pair = [each[:2] for each in whole]
        others = [(each[0], each[1], each[2], each[2]) for each in whole]
        cells = [row_of(found, LATENCY, 0.95).bundles[1] for found in (whole, pair, others)]
        assert cells[0] == cells[1] == cells[2]

    def test_values_are_those_of_rounds(self):
        whole = taken()
        first = row_of(whole, LATENCY, 0.95).bundles[0]
        means = [[np.mean(turn.samples["latency_ms"]) for turn in each[0].slices[0]] for each in whole]
        medians = np.median(np.log(means), axis=1)
        assert first.value == pytest.approx(np.exp(np.mean(medians)))
        assert (first.least, first.most) == pytest.approx((np.exp(min(medians)), np.exp(max(medians))))
        assert (first.ratio, first.low, first.high) == (None, None, None)

    def test_more_is_worse_for_rates_too(self):
        whole = taken(slower=0.5)
        times, rates = (row_of(whole, metric, 0.95) for metric in (LATENCY, Measured("rows_per_s", 0)))
        assert rates.higher_is_better
        assert rates.bundles[2].value < rates.bundles[0].value
        assert rates.bundles[2].ratio == pytest.approx(times.bundles[2].ratio)
        assert rates.bundles[2].low > 1.4

    def test_what_never_differs_has_no_interval(self):
        size = row_of(taken(), Measured("size_bytes", None), 0.95).bundles[1]
        assert (size.value, size.ratio, size.low, size.high) == pytest.approx((1e6, 1, 1, 1))


class TestOverload:
    def told(self, answers_per_s, rate):
        turns = tuple(Slice({"ttft_ms": [1.0] * 16, "token_ms": [1.0] * 64}, 16 / answers_per_s, 80) for _ in range(3))
        process = Process((1.0,), 1, (turns,), 1, (1,))
        workload = Workload(scenario="server", rate_per_s=rate)
        return overloaded([(process, process)] * 2, (workload,), ("a", "b"))

    def test_queries_that_come_too_fast(self):
        remarks = self.told(30, 50)
        assert len(remarks) == 2
        assert remarks[0].startswith("a answers 30 queries in a second, and 50 arrive")

    def test_queries_that_are_answered(self):
        assert self.told(48, 50) == ()
        assert self.told(38, 50) == ()  # so few may have arrived of 50
        assert overloaded(taken(), (Workload(),), ("a", "b", "c")) == ()


class TestNames:
    @pytest.mark.parametrize(
        ("paths", "names"),
        [
            (["out/int8", "out/int4"], ["int8", "int4"]),
            (["old/model", "new/model", "new/other"], ["old/model", "new/model", "other"]),
            (["x/a/model", "y/a/model"], ["x/a/model", "y/a/model"]),
            (["model", "model", "./model"], ["model", "model (2)", "model (3)"]),
            (["/"], ["/"]),
        ],
    )
    def test_they_are_short_and_differ(self, paths, names):
        assert list(names_of(paths)) == names

    def test_a_path_that_ends_another_one(self):
        names = names_of(["/model", "/out/model", "/out/out/model"])
        assert len(set(names)) == 3

    def test_values_have_units(self):
        assert value_text(None, "ms") == ""
        assert value_text(1.23456, "ms") == "1.235 ms"
        assert value_text(3.5 * MIB, "bytes") == "3.5 MiB"
        assert value_text(2048, "bytes") == "2 KiB"


SINGLE = (Workload(),)


def result(variants=3, workloads=SINGLE):
    whole = [tuple((*each, *each)[:variants]) for each in taken()]
    if len(workloads) > 1:
        whole = [tuple(_repeated(process, len(workloads)) for process in each) for each in whole]
    names = tuple(f"bundle-{number}" for number in range(variants))
    return SideBySide(
        kind="network",
        bundles=tuple(Subject(path=name) for name in names),
        names=names,
        workloads=tuple(workloads),
        rows=tuple(row_of(whole, metric, 0.95) for metric in common(whole)),
        rounds=8,
        confidence=0.95,
        threads=1,
        elapsed_s=1.0,
        started="2026-01-01T00:00:00+00:00",
        environment={"cpu_model": "Some Processor", "usable_cpus": "4", "kernel": "Linux", "onnxruntime": "1.31.1"},
        remarks=(),
    )


def _repeated(process, count):
    return Process(
        process.load_ms, process.peak_rss_bytes, process.slices * count, process.size_bytes, process.pieces * count
    )


class TestPlot:
    @pytest.mark.parametrize("variants", [2, 3, 5])
    @pytest.mark.parametrize("count", [1, 4])
    def test_it_names_what_it_shows(self, variants, count):
        workloads = [Workload(), *(Workload(scenario="offline", batch=size) for size in (2, 4, 8))][:count]
        with mpl.rc_context({"svg.fonttype": "none"}):
            picture = draw(result(variants, workloads), ".svg")
        words = " ".join(ET.fromstring(picture).itertext())
        for number in range(1, variants):
            assert f"bundle-{number}" in words
        assert "How many times as bad as bundle-0" in words
        for title in ("single-stream", *("offline, batch 2", "offline, batch 8")[: 2 * (count > 1)], "loading, memory"):
            assert title in words
        for word in ("latency_ms", "rows_per_s", "size_bytes", "Some Processor", "onnxruntime 1.31.1", "8 rounds"):
            assert word in words
        ticks = {text.strip() for text in ET.fromstring(picture).itertext()}
        assert "1" in ticks
        # The bars of an interval, of each bundle beside the first, in each panel and in the legend.
        assert picture.decode().count('id="LineCollection_') == (variants - 1) * (count + 2)

    @pytest.mark.parametrize("suffix", [".svg", ".png"])
    def test_the_same_result_gives_the_same_bytes(self, suffix):
        found = result(2)
        assert draw(found, suffix) == draw(found, suffix)

    def test_intervals_without_an_end_are_cut_off(self):
        assert _interval(Cell(value=1, least=1, most=1, ratio=2, low=0.0, high=None)) == (0.2, 20)
        assert _interval(Cell(value=1, least=1, most=1, ratio=2, low=1.5, high=2.5)) == (1.5, 2.5)
        found = result(2)
        first, *others = found.rows
        open_ = replace(first, bundles=(first.bundles[0], replace(first.bundles[1], low=0.0, high=None)))
        assert draw(_with_rows(found, (open_, *others)), ".png").startswith(b"\x89PNG")

    def test_where_it_cannot_be(self, tmp_path, monkeypatch):
        with pytest.raises(UsageError, match=r"\.png or \.svg"):
            check_plot(tmp_path / "plot.pdf")
        (tmp_path / "folder.png").mkdir()
        with pytest.raises(OutputError, match="something else"):
            check_plot(tmp_path / "folder.png")
        check_plot(tmp_path / "new" / "plot.SVG")
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(MissingRuntimeError, match="matplotlib") as caught:
            check_plot(tmp_path / "plot.svg")
        assert "edgec[bench]" in caught.value.hint


def _with_rows(found, rows):
    return replace(found, rows=rows)
