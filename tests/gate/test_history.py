"""Histories: what they keep, how they are written, and what changed in them."""

import fcntl
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.errors import InconclusiveError, OutputError, UsageError
from edgec.gate.changes import FEWEST, find_trend
from edgec.gate.history import Record, Value, record_of, run_facts
from edgec.gate.history_compare import compare
from edgec.gate.history_file import append, read_history
from edgec.gate.history_plot import MOST, write_plot
from edgec.gate.history_series import LONGEST, change_words, series_of
from edgec.gate.result import Finding, GateResult, Subject
from edgec.gate.settings import Bound, GateFile, Grid, Performance, Quality

HERE = str(Path(__file__).parent)
START = datetime(2026, 1, 5, 3, tzinfo=UTC)
MACHINE = {"cpu_model": "CPU", "kernel": "Linux 1", "onnxruntime": "1.0", "edgec": "1", "memory_gib": "7.9"}
SUBJECT = Subject(path="out/new", model="llama", target="cpu", backend="onnx_cpu", profile="int4")


def record(label="a", hours=0, *, machine=MACHINE, model="llama", **values):
    values = values or {"token_ms": 10.0}
    return Record(
        when=START + timedelta(hours=hours),
        label=label,
        model=model,
        backend="onnx_cpu",
        environment=machine,
        values={name: Value(float(value), "ms") for name, value in values.items()},
    )


def result(*findings, **changes):
    usual = {
        "verdict": "pass",
        "candidate": SUBJECT,
        "baseline": SUBJECT,
        "findings": findings,
        "started": "2026-01-05T04:00:00+01:00",
        "environment": MACHINE,
    }
    return GateResult(**(usual | changes))


def speed(value, metric="token_ms", **changes):
    return Finding(group="performance", metric=metric, unit="ms", baseline=1.0, candidate=value, **changes)


PERPLEXITY = Finding(
    group="quality", metric="perplexity_ratio", where="docs", baseline=9.0, candidate=9.5, estimate=1.1
)
KL = Finding(group="quality", metric="mean_kl", unit="nats", scale="value", estimate=0.1)


class TestRecords:
    def test_the_values_of_the_candidate_are_kept(self):
        rate = Finding(group="performance", metric="tokens_per_s", unit="/s", candidate=9.0, higher_is_better=True)
        found = record_of(
            result(speed(2.0, where="8 new"), speed(float("nan"), "load_ms"), rate, PERPLEXITY, KL), " a\n b"
        )
        assert found.values == {
            "token_ms (8 new)": Value(2.0, "ms"),
            "tokens_per_s": Value(9.0, "/s", higher_is_better=True),
            "perplexity (docs)": Value(9.5),
        }
        assert (found.label, found.when, found.bundle) == ("a b", START, "llama/cpu/int4/onnx_cpu")
        assert found.environment == MACHINE

    def test_of_a_void_run_quality_is_kept(self):
        assert list(record_of(result(speed(2.0), PERPLEXITY, void="noise"), "a").values) == ["perplexity (docs)"]
        with pytest.raises(InconclusiveError, match="noise"):
            record_of(result(speed(2.0), void="noise"), "a")

    @pytest.mark.parametrize(
        ("given", "label", "what"),
        [
            (result(speed(2.0)), " \n", "needs a label"),
            (result(KL), "a", "no values"),
            (result(speed(2.0), environment={}), "a", "which machine"),
            (result(speed(2.0), started="yester\x1bday"), "a", "'yester\ufffdday', which is no time"),
        ],
    )
    def test_what_says_too_little_is_refused(self, given, label, what):
        with pytest.raises(UsageError, match=what):
            record_of(given, label)

    def test_bytes_are_whole(self):
        size = Finding(group="performance", metric="size_bytes", unit="bytes", candidate=1899024.0000000019)
        assert record_of(result(size), "a").values == {"size_bytes": Value(1899024.0, "bytes")}

    def test_a_model_that_is_pruned_stays_the_same_kind(self):
        pruned = [msgspec.structs.replace(SUBJECT, model=f"llama, {size} M parameters") for size in ("2.7", "2.6")]
        found = [record_of(result(speed(2.0), candidate=each), "a") for each in pruned]
        assert [each.model for each in found] == ["llama", "llama"]
        older = msgspec.structs.replace(found[0], model="llama, 2.7 M parameters")
        assert older.bundle == found[1].bundle == "llama/cpu/int4/onnx_cpu"
        named = Subject(path="a, b", backend="openvino")
        assert record_of(result(speed(2.0), candidate=named), "a").bundle == "a, b/openvino"

    def test_a_bare_artifact_is_known_by_its_name(self):
        bare = Subject(path="some/model", backend="openvino")
        assert record_of(result(speed(2.0), candidate=bare), "a").bundle == "model/openvino"

    def test_now_where_the_result_says_no_time(self):
        assert abs(record_of(result(speed(2.0), started=""), "a").when - datetime.now(UTC)) < timedelta(minutes=1)

    @pytest.mark.parametrize("text", ["\x1b[31mred", "\ud800", "a\r\nb", "\x00", "\x9b"])
    def test_what_terminals_obey_is_not_kept(self, tmp_path, text):
        subject = msgspec.structs.replace(SUBJECT, model=text)
        changed = result(speed(2.0, where=text), candidate=subject, environment={**MACHINE, text: text})
        append(tmp_path / "h", record_of(changed, f"x{text}"))
        (found,) = read_history(tmp_path / "h").records
        assert all(each.isprintable() for each in (found.label, found.model, *found.values, *found.environment))


class TestRunFacts:
    def facts(self, **changes):
        return run_facts(GateFile(**changes))

    @pytest.mark.parametrize(
        ("changes", "names"),
        [
            ({"performance": Performance(threads=1)}, {"threads"}),
            ({"performance": Performance(workload=(Grid(prompt_tokens=(64, 128)),))}, {"workloads"}),
            ({"performance": Performance(workload=(Grid(sizes={"height": 8}),))}, {"workloads"}),
            ({"quality": Quality(tokens=9)}, {"evaluation"}),
            ({"quality": Quality(data=("x/faces",))}, {"evaluation"}),
            ({"quality": False}, {"evaluation"}),
            ({"performance": False}, {"threads", "workloads"}),
            ({"performance": Performance(time_limit_s=9, metrics={"token_ms": Bound()})}, set()),
            ({"quality": Quality(metrics={})}, set()),
            ({"confidence": 0.9}, set()),
        ],
    )
    def test_name_what_changes_values_and_nothing_else(self, changes, names):
        usual, found = self.facts(), self.facts(**changes)
        assert {name for name, _ in usual.items() ^ found.items()} == names

    def test_folders_of_data_may_be_anywhere(self):
        here, there = (
            run_facts(GateFile(quality=Quality(data=(f"{folder}/a.npz",))), {name: "ab" * 32})
            for folder, name in (("x", "a.npz"), ("/y", "/y/a.npz"))
        )
        assert here == there

    def test_the_seed_chooses_samples_but_not_texts(self):
        texts, data = ({run_facts(GateFile(seed=n, quality=q))["evaluation"] for n in (0, 1)} for q in (
            Quality(), Quality(data=("a.npz",)),
        ))  # fmt: skip
        assert (len(texts), len(data)) == (1, 2)

    def test_other_data_of_one_name_is_another_series(self):
        old, new = (run_facts(GateFile(), {"python-docs": digits * 32, "b.txt": "ef" * 32}) for digits in ("ab", "cd"))
        assert old["evaluation"].endswith(f"sha256 python-docs={'ab' * 8} b.txt={'ef' * 8}")
        assert {name for name, _ in old.items() ^ new.items()} == {"evaluation"}
        assert record(machine=MACHINE | old).machine != record(machine=MACHINE | new).machine
        assert "evaluation" not in run_facts(GateFile(quality=False), {})


class TestFiles:
    def test_records_come_back_in_the_order_of_time(self, tmp_path):
        path = tmp_path / "ci" / "h.jsonl"
        records = [record("b", 2), record("a", 1), record("c", 3)]
        assert [append(path, each) for each in records] == [None, None, None]
        assert [append(path, each) for each in records] == ["b", "a", "c"]
        found = read_history(path)
        assert found.records == (records[1], records[0], records[2])
        assert found.remarks == ()
        assert [json.loads(line)["label"] for line in path.read_text().splitlines()] == ["b", "a", "c"]

    def test_a_run_is_the_same_under_another_label(self, tmp_path):
        path = tmp_path / "h"
        append(path, record("a", 1))
        assert append(path, record("mistyped", 1)) == "a"
        assert append(path, record("a", 1, token_ms=11)) is None
        assert append(path, record("a", 2)) is None
        assert [each.label for each in read_history(path).records] == ["a", "a", "a"]

    def test_several_processes_append_at_once(self, tmp_path):
        code = (
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "from pathlib import Path; from test_history import append, record\n"
            "value = {'x' * 2000: ord(sys.argv[3])}\n"
            "for n in range(40): append(Path(sys.argv[2]), record(f'{sys.argv[3]}-{n}', n, **value))"
        )
        command = [sys.executable, "-c", code, HERE, tmp_path / "h"]
        running = [subprocess.Popen([*command, name]) for name in "ab"]
        assert [each.wait(60) for each in running] == [0, 0]
        found = read_history(tmp_path / "h").records
        assert sorted(each.label for each in found) == sorted(f"{name}-{n}" for name in "ab" for n in range(40))

    def test_a_record_that_breaks_off_is_left_out_and_then_removed(self, tmp_path):
        path, after = tmp_path / "h", record("c", 3)
        append(path, record("a", 1))
        first = path.read_bytes()
        append(path, record("b", 2))
        whole = path.read_bytes()
        for cut in range(len(first) + 1, len(whole) - 1):
            for zeros in (b"", b"\0" * 7):
                path.write_bytes(whole[:cut] + zeros)
                found = read_history(path)
                assert [each.label for each in found.records] == ["a"]
                assert "breaks off" in found.remarks[0]
            append(path, after)
            assert read_history(path).records == (record("a", 1), after)
            assert path.read_bytes().startswith(first)
        path.write_bytes(whole[:-1])  # but for the end of the line it is whole
        append(path, after)
        assert [each.label for each in read_history(path).records] == ["a", "b", "c"]

    @pytest.mark.parametrize(
        ("line", "what"),
        [
            (b"<<<<<<< HEAD\n", "no record of a history"),
            (b'{"schema_version":1,"when"\n', "no record"),
            (b'{"schema_version":2}\n', "version 2 of its format"),
            (b'{"schema_version":"1"}\n', "no record"),
            (b"\xff\xfe\n", "no record"),
            (b"[1]\n", "no record"),
            (b"hello", "no record"),
        ],
    )
    def test_other_lines_are_refused_by_number_and_left_alone(self, tmp_path, line, what):
        path = tmp_path / "h"
        append(path, record())
        path.write_bytes(content := path.read_bytes() + b"\n" + line)
        for work in (lambda: read_history(path), lambda: append(path, record("b"))):
            with pytest.raises(UsageError, match=what) as caught:
                work()
            assert caught.value.where == f"{path}, line 3"
        assert path.read_bytes() == content

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("when", "2026-01-05T03:00:00"),
            ("label", "\x1b[2J"),
            ("values", {"x": {"value": "1"}}),
            ("environment", None),
        ],
    )
    def test_wrong_fields_are_refused(self, tmp_path, name, value):
        path = tmp_path / "h"
        wrong = msgspec.to_builtins(record()) | {name: value}
        path.write_text(json.dumps(wrong) + "\n")
        with pytest.raises(UsageError, match=name):
            read_history(path)

    def test_what_is_no_file_is_refused(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "file").write_text("")
        for path in (tmp_path, tmp_path / "pipe", tmp_path / "file" / "h", tmp_path / ("x" * 300)):
            with pytest.raises(UsageError, match="history"):
                read_history(path)
            with pytest.raises(OutputError, match="cannot be written"):
                append(path, record())
        with pytest.raises(UsageError, match="No such file"):
            read_history(tmp_path / "none")

    @pytest.mark.parametrize("before", ["a history", "an empty file", "nothing"])
    def test_a_full_disk_leaves_the_history_as_it_was(self, tmp_path, before):
        path = tmp_path / "h"
        if before == "a history":
            append(path, record())
        elif before == "an empty file":
            path.touch()
        content = path.read_bytes() if path.exists() else b""
        code = (
            "import resource, signal, sys; sys.path.insert(0, sys.argv[1])\n"
            "from pathlib import Path; from test_history import append, record\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(content) + 50}, {len(content) + 50}))\n"
            "append(Path(sys.argv[2]), record('b', 1))"
        )
        command = [sys.executable, "-c", code, HERE, path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "OutputError: the history cannot be written" in done.stderr
        assert path.exists() == (before != "nothing")
        assert not path.exists() or path.read_bytes() == content

    def test_who_waits_for_a_history_that_is_removed_begins_another(self, tmp_path):
        path = tmp_path / "h"
        with path.open("wb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with ThreadPoolExecutor() as pool:
                waiting = pool.submit(append, path, record())
                with pytest.raises(TimeoutError):
                    waiting.result(0.2)
                path.unlink()
                fcntl.flock(held, fcntl.LOCK_UN)
                assert waiting.result(10) is None
        assert read_history(path).records == (record(),)


@dataclass
class Noise:
    rng: np.random.Generator

    def normal(self, runs):
        return self.rng.normal(size=runs)

    def student(self, runs):
        return self.rng.standard_t(3, runs) / np.sqrt(3)

    def spikes(self, runs):
        return self.rng.normal(size=runs) + np.where(self.rng.random(runs) < 0.1, self.rng.exponential(5, runs), 0)


def times(noise, shift=0.0, sd=0.03):
    return 10 * np.exp(sd * (noise + shift))


class TestChanges:
    """Small, seeded versions of what the docstring of `find_trend` tells."""

    @pytest.mark.parametrize(("kind", "sd"), [("normal", 0.01), ("normal", 0.03), ("student", 0.03), ("spikes", 0.03)])
    def test_nothing_is_found_where_nothing_changed(self, kind, sd):
        draw = getattr(Noise(np.random.default_rng(1)), kind)
        trends = [find_trend(times(draw(50), sd=sd)) for _ in range(25)]
        assert sum(len(each.levels) != 1 for each in trends) <= 1

    @pytest.mark.parametrize("kind", ["normal", "student"])
    def test_a_step_is_found_within_ten_runs(self, kind):
        draw = getattr(Noise(np.random.default_rng(2)), kind)
        step = np.repeat([0.0, 3.0], [30, 10])
        trends = [find_trend(times(draw(40), step)) for _ in range(40)]
        near = [any(abs(level.start - 30) <= 2 for level in each.levels[1:]) for each in trends]
        assert sum(near) >= 38

    @pytest.mark.parametrize("kind", ["normal", "student"])
    def test_a_drift_is_found(self, kind):
        draw = getattr(Noise(np.random.default_rng(3)), kind)
        trends = [find_trend(times(draw(40), 0.2 * np.arange(40))) for _ in range(20)]
        assert all(each.drift is not None or len(each.levels) > 1 for each in trends)
        drifts = [each.drift for each in trends if each.drift is not None]
        assert len(drifts) >= 18
        assert all(1.15 < last / first < 1.40 for first, last in drifts)  # exp(0.03 * 0.2 * 39) is 1.26

    def test_a_drift_that_begins_late_is_found_as_steps(self):
        shift = np.maximum(0, 0.2 * (np.arange(60) - 29))
        trend = find_trend(times(np.random.default_rng(4).normal(size=60), shift))
        assert trend.drift is None
        assert len(trend.levels) >= 3
        assert [level.value for level in trend.levels] == sorted(level.value for level in trend.levels)

    def test_there_and_back_again(self):
        shift = np.repeat([0.0, 5.0, 0.0], [12, 8, 12])
        trend = find_trend(times(np.random.default_rng(5).normal(size=32), shift))
        assert [level.start for level in trend.levels] == [0, 12, 20]
        assert [(level.start, level.stop) for level in trend.levels] == [(0, 12), (12, 20), (20, 32)]

    def test_without_noise_a_step_is_exact_and_an_outlier_is_none(self):
        assert [(each.start, each.value) for each in find_trend([5e6] * 6 + [5.01e6] * 4).levels] == [
            (0, 5e6),
            (6, 5.01e6),
        ]
        assert len(find_trend([5e6] * 6 + [9e6] + [5e6] * 5).levels) == 1
        assert len(find_trend([5e6] * 6 + [5e6 + 8] * 6).levels) == 1  # bytes are no change
        assert find_trend([0.0] * 9).ends == (0.0, 0.0)
        assert find_trend(np.linspace(10, 12, 20)).drift == pytest.approx((10, 12), rel=0.01)

    def test_a_percent_is_as_much_for_a_slow_model_as_for_a_fast_one(self):
        series = times(np.random.default_rng(6).normal(size=40), np.repeat([0.0, 4.0], 20))
        fast, slow = find_trend(series), find_trend(series * 1e4)
        assert [level.start for level in fast.levels] == [level.start for level in slow.levels] == [0, 20]

    def test_values_below_zero(self):
        series = np.repeat([-0.4, 0.3], 10) + np.random.default_rng(7).normal(0, 0.05, 20)
        assert [level.start for level in find_trend(series).levels] == [0, 10]

    @given(st.lists(st.floats(-1e100, 1e100) | st.sampled_from([0.0, 1.0, 5e-324]), max_size=30))
    @settings(max_examples=60, deadline=None)
    def test_every_run_is_in_one_level(self, values):
        trend = find_trend(values)
        assert trend.runs == len(values)
        if len(values) < FEWEST:
            assert trend.ends is None
        elif trend.drift is None:
            assert [n for level in trend.levels for n in range(level.start, level.stop)] == list(range(len(values)))


class TestSeries:
    def test_each_machine_and_bundle_has_its_own(self):
        other = {**MACHINE, "kernel": "Linux 2"}
        records = [record("a", 1), record("b", 2, machine=other), record("c", 3, model="gpt2"), record("d", 4)]
        found = series_of(records)
        assert [[point.label for point in each.points] for each in found] == [["a", "d"], ["c"], ["b"]]
        assert {each.summary for each in found} == {"too few runs"}
        assert [each.machine for each in series_of(records, machine=records[1].machine[:5])] == [records[1].machine]

    def test_a_new_edgec_or_memory_is_the_same_machine(self):
        records = [record("a", 1), record("b", 2, machine={**MACHINE, "edgec": "2", "memory_gib": "7.8"})]
        assert len(series_of(records)) == 1

    def test_changes_name_the_run(self):
        values = [10.0, 10.1] * 6 + [9.0, 9.1] * 5 + [11.0, 11.1] * 4
        (found,) = series_of([record(f"r{n}", n, token_ms=value) for n, value in enumerate(values)])
        assert [(each.label, each.run) for each in found.changes] == [("r22", 22), ("r12", 12)]
        assert [each.words for each in found.changes] == ["22.1 % slower", "10.0 % faster"]
        assert found.changes[1].before == pytest.approx(10.05)
        assert found.summary == "10.0 % slower"

    def test_of_a_long_history_the_end_is_searched(self):
        values = [10.0] * 50 + [20.0] * (LONGEST - 10) + [30.0] * 10
        (found,) = series_of([record(f"r{n}", n, token_ms=value) for n, value in enumerate(values)])
        assert [each.label for each in found.changes] == [f"r{len(values) - 10}"]
        assert len(found.points) == len(values)
        assert found.searched == 50

    def test_metrics_are_chosen_with_or_without_their_place(self):
        records = [record(**{"token_ms (8 new)": 1, "token_ms (9 new)": 2, "token_ms_p50": 3})]
        assert len(series_of(records, "token_ms")) == 2
        assert len(series_of(records, "token_ms (9 new)")) == 1
        with pytest.raises(UsageError, match="no metric 'token'"):
            series_of(records, "token")
        with pytest.raises(UsageError, match="no machine 'x'"):
            series_of(records, machine="x")
        assert series_of([]) == ()

    def test_all_metrics_are_told_and_the_last_labels(self):
        names = [f"m{n}" for n in range(12)]
        with pytest.raises(UsageError, match="no metric 'nope'") as caught:
            series_of([record(**dict.fromkeys(names, 1))], "nope")
        assert caught.value.hint == f"there are: {', '.join(names)}"
        with pytest.raises(UsageError, match="no label 'nope'") as caught:
            compare([record(f"r{n}", n) for n in range(12)], "nope", "r1")
        assert caught.value.hint == "the last ones are: r11, r10, r9, r8, r7, r6, r5, r4"

    @pytest.mark.parametrize(
        ("value", "before", "after", "words"),
        [
            (Value(0, "ms"), 10, 10.5, "5.0 % slower"),
            (Value(0, "ms"), 10, 9.999, "0.01 % faster"),
            (Value(0, "/s", higher_is_better=True), 10, 9, "10.0 % slower"),
            (Value(0, "/s", higher_is_better=True), 10, 25, "150.0 % faster"),
            (Value(0, "bytes"), 10, 11, "10.0 % larger"),
            (Value(0, "mJ"), 10, 11, "10.0 % worse"),
            (Value(0, "", higher_is_better=True), 0.5, 0.6, "20.0 % better"),
            (Value(0, "", higher_is_better=True), 0.0, -0.25, "0.25 worse"),
            (Value(0, "ms"), 10, 10, "the same"),
        ],
    )
    def test_words_know_which_way_is_better(self, value, before, after, words):
        assert change_words(before, after, value) == words


class TestCompare:
    def test_labels_of_one_machine_side_by_side(self):
        records = [record("a", n, token_ms=value, load_ms=1) for n, value in enumerate((10, 30, 11))]
        (found,) = compare([*records, record("b", 9, token_ms=22)], "a", "b")
        assert found.runs == (3, 1)
        assert list(msgspec.to_builtins(found.metrics)) == [
            {"metric": "token_ms", "unit": "ms", "first": 11.0, "second": 22.0, "words": "100.0 % slower"}
        ]

    def test_other_machines_are_refused_and_the_facts_named(self):
        other = {**MACHINE, "kernel": "Linux 2", "edgec": "2", "openvino": "3"}
        with pytest.raises(UsageError, match="different machines") as caught:
            compare([record("a"), record("b", machine=other)], "a", "b")
        assert caught.value.what.endswith(": kernel 'Linux 1' and 'Linux 2'; openvino 'none' and '3'")
        assert "edgec gate" in caught.value.hint

    def test_only_machines_of_both_count(self):
        other = {**MACHINE, "kernel": "Linux 2"}
        found = compare([record("a"), record("a", 1, machine=other), record("b", 2, machine=other)], "a", "b")
        assert [each.machine for each in found] == [record(machine=other).machine]

    def test_other_bundles_and_unknown_labels_are_refused(self):
        with pytest.raises(UsageError, match="different kinds: 'llama/onnx_cpu' and 'gpt2/onnx_cpu'"):
            compare([record("a"), record("b", model="gpt2")], "a", "b")
        with pytest.raises(UsageError, match="no label 'mian'") as caught:
            compare([record("main"), record("b")], "mian", "b")
        assert "main" in caught.value.hint


class TestPlot:
    @pytest.fixture
    def series(self):
        rng = np.random.default_rng(0)
        shift = np.repeat([0.0, 6.0, 2.0], [12, 5, 9])
        steps, drift = times(rng.normal(size=26), shift), times(rng.normal(size=26), 0.5 * np.arange(26))
        labels = ["$x_$", "猫", "a" * 99, "<&>"]
        return series_of([
            record(labels[n % 4], n, steps_ms=steps[n], drift_ms=drift[n], **({"few_ms": 1} if n < 3 else {}))
            for n in range(26)
        ])  # fmt: skip

    @pytest.mark.parametrize(("name", "magic"), [("a.svg", b"<?xml"), ("a.PNG", b"\x89PNG")])
    def test_it_is_drawn_the_same_each_time(self, tmp_path, series, name, magic):
        assert [len(each.changes) for each in series] == [2, 0, 0]
        write_plot(series, tmp_path / name)
        first = (tmp_path / name).read_bytes()
        write_plot(series, tmp_path / name)
        assert (tmp_path / name).read_bytes() == first
        assert first.startswith(magic)
        if name == "a.svg":
            assert first.count(b"slower") >= 2
            assert b"drift, " in first

    def test_what_cannot_be_drawn_is_refused(self, tmp_path, series):
        for some, name, what in (
            (series, "a.gif", "ends with"),
            ((), "a.png", "0 series"),
            (series * MOST, "a.png", "1 to"),
        ):
            with pytest.raises(UsageError, match=what):
                write_plot(some, tmp_path / name)
        (tmp_path / "d.png").mkdir()
        with pytest.raises(OutputError):
            write_plot(series, tmp_path / "d.png")
        assert [each.name for each in tmp_path.iterdir()] == ["d.png"]
