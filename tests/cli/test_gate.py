"""`edgec gate`: real races of real bundles, with bounds that no noise reaches."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import onnx
import pytest
from commands import fails, invoke
from onnx import TensorProto, helper, numpy_helper

from edgec.cli import edgec
from edgec.errors import BundleError, EdgecError, InconclusiveError, OutputError, RegressionError, UsageError
from edgec.gate import gate as gating
from edgec.gate import performance
from edgec.gate.formats import format_names, get_format
from edgec.gate.formats.json import read_result
from edgec.gate.history_file import read_history
from edgec.gate.result import Finding, GateResult, Subject, overall

STORYTELLER = Path(__file__).parents[2] / "examples/storyteller"
# Bounds far from 1: what is tested is the command, on any machine. `bench/gate` measures the usual ones.
RACE = """
quality = false
[performance]
threads = 1
time_limit_s = 120
min_rounds = 5
max_rounds = 8
[performance.metrics]
latency_ms = { allowed = 2.0, margin = 3.5 }
size_bytes = {}
"""
QUALITY = f"""
performance = false
[quality]
texts = ["{STORYTELLER / "data/heldout.txt"}"]
tokens = 4000
window = 128
"""
LONG = "[[performance.workload]]\nprompt_tokens = 100000\n"


def network(path, layers):
    """Write a network of so many equal products."""
    weights = numpy_helper.from_array(np.eye(128, dtype=np.float32), "w")
    names = ["x", *(f"h{layer}" for layer in range(layers - 1)), "y"]
    nodes = [
        node
        for layer in range(layers)
        for node in (
            helper.make_node("MatMul", [names[layer], "w"], [f"m{layer}"]),
            helper.make_node("Relu", [f"m{layer}"], [names[layer + 1]]),
        )
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 16, 128]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder with bundles of a small network, of one of 20 times the work, and of the storyteller."""
    folder = tmp_path_factory.mktemp("gate")
    for name, layers in (("small", 10), ("large", 200)):
        network(folder / f"{name}.onnx", layers)
        invoke(
            "build", folder / f"{name}.onnx", "--target", "cpu", "--profile", "fp32", "--no-verify", "-o", folder / name
        )
    for profile in ("int8", "int4"):
        invoke(
            "build",
            STORYTELLER / "checkpoint",
            "--target",
            "cpu",
            "--profile",
            profile,
            "--no-verify",
            "-o",
            folder / profile,
        )
    (folder / "race.toml").write_text(RACE)
    (folder / "quality.toml").write_text(QUALITY)
    return folder


def gate(files, candidate, baseline, config, *options):
    return ("gate", files / candidate, "--baseline", files / baseline, "--config", files / config, *options)


def findings(result):
    return {finding["metric"]: finding for finding in result["findings"]}


def test_a_bundle_beside_itself_passes(files):
    done = invoke(*gate(files, "small", "small", "race.toml", "--json"))
    result = json.loads(done.stdout)
    assert done.exit_code == 0
    assert result["verdict"] == "pass"
    assert result["rounds"] >= 5
    found = findings(result)
    assert found["size_bytes"]["estimate"] == 1
    assert 0.3 < found["latency_ms"]["low"] <= found["latency_ms"]["estimate"] <= found["latency_ms"]["high"]
    assert found["peak_rss_bytes"]["verdict"] == "reported"
    assert {finding["metric"] for finding in result["sentinel"]} == {"latency_ms", "size_bytes"}
    assert result["environment"]["cpu_model"]


def test_a_slower_bundle_fails_and_reports_are_written_all_the_same(files, tmp_path):
    reports = [f"--report=junit:{tmp_path / 'j.xml'}", f"--report=sarif:{tmp_path / 's.sarif'}"]
    with pytest.raises(RegressionError) as caught:
        invoke(*gate(files, "large", "small", "race.toml", *reports))
    assert "latency_ms" in str(caught.value)
    suites = ET.parse(tmp_path / "j.xml").getroot()
    assert int(suites.get("failures")) >= 1
    assert json.loads((tmp_path / "s.sarif").read_text())["runs"][0]["results"]


def test_what_it_prints_and_its_exit_code(files):
    command = [sys.executable, "-m", "edgec", *map(str, gate(files, "large", "small", "race.toml"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "latency_ms" in done.stdout
    assert "fail" in done.stdout
    assert "the baseline beside itself" in done.stderr
    assert done.stderr.rstrip().splitlines()[-2].startswith("error: the candidate is worse than the baseline in")
    assert "Traceback" not in done.stderr


def test_quality_alone(files):
    result = json.loads(invoke(*gate(files, "int8", "int8", "quality.toml", "--json")).stdout)
    assert result["verdict"] == "pass"
    assert result["rounds"] == 0
    assert findings(result)["perplexity_ratio"]["estimate"] == 1
    (files / "strict.toml").write_text(QUALITY + "[quality.metrics]\nmean_kl = { margin = 0.0001 }\n")
    with pytest.raises(RegressionError, match="mean_kl"):
        invoke(*gate(files, "int4", "int8", "strict.toml"))


def test_decoders_are_raced_over_a_grid(files, tmp_path):
    config = tmp_path / "grid.toml"
    config.write_text("""
quality = false
[performance]
threads = 1
min_rounds = 5
max_rounds = 5
time_limit_s = 300
[[performance.workload]]
prompt_tokens = [4, 16]
new_tokens = 8
[performance.metrics]
size_bytes = {}
""")
    result = json.loads(invoke(*gate(files, "int8", "int8", config, "--json")).stdout)
    places = {finding["where"] for finding in result["findings"] if finding["metric"] == "ttft_ms"}
    assert places == {"4 prompt tokens", "16 prompt tokens"}


def test_a_run_without_enough_time_is_inconclusive(files, tmp_path):
    config = tmp_path / "short.toml"
    config.write_text(RACE.replace("120", "0.5"))
    error = fails(*gate(files, "small", "small", config))
    assert isinstance(error, InconclusiveError)
    assert error.exit_code == 5
    assert "raise `time_limit_s`" in str(error)


@pytest.mark.parametrize(
    ("candidate", "baseline", "text", "kind", "says"),
    [
        ("none", "small", RACE, BundleError, "no bundle"),
        ("small", "none", RACE, BundleError, "no bundle"),
        ("int8", "small", RACE, UsageError, "decoder"),
        ("small", "small", RACE.replace("latency_ms", "token_ms"), UsageError, "latency_ms"),
        ("int8", "int8", RACE.replace("latency_ms", "latency_p90_ms"), UsageError, "token_ms"),
        ("small", "small", RACE + "[targets.jetson]\n", UsageError, "jetson"),
        ("small", "small", RACE + "[[performance.workload]]\nsizes = { lenght = 3 }\n", UsageError, "lenght"),
        ("int8", "int8", QUALITY.replace("performance = false", LONG), UsageError, "takes 1 to"),
    ],
)
def test_what_cannot_be_gated_is_refused(files, tmp_path, candidate, baseline, text, kind, says):
    config = tmp_path / "gate.toml"
    config.write_text(text)
    error = fails("gate", files / candidate, "--baseline", files / baseline, "--config", config)
    assert error.exit_code == kind.exit_code
    assert says in str(error)


def test_a_damaged_bundle_is_told_by_the_process_that_loads_it(files, tmp_path):
    shutil.copytree(files / "small", tmp_path / "damaged")
    for path in (tmp_path / "damaged/artifact").glob("*.onnx"):
        path.write_bytes(path.read_bytes()[:100])
    error = fails("gate", tmp_path / "damaged", "--baseline", files / "small", "--config", files / "race.toml")
    assert error.exit_code == 3


@pytest.mark.parametrize("report", ["junit5", "juni", "markdown"])
def test_reports_that_cannot_be_written_are_refused_before_the_race(files, report):
    error = fails(*gate(files, "small", "small", "race.toml", "--report", report, "--json"))
    assert isinstance(error, UsageError)


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (("--report=json:r", "--report=sarif:r"), "r"),
        (("--report=json:x/../r", "--report=sarif:r"), "r"),
        (("--report=json", "--report=junit:edgec-gate.json"), "edgec-gate.json"),
        (("--report=json:h", "--history=h", "--label=x"), "h"),
        (("--report=markdown", "--report=json:-"), "stdout"),
        (("--report=github", "--report=json:-"), "stdout"),
    ],
)
def test_two_things_in_one_file_are_refused_before_the_race(files, tmp_path, monkeypatch, options, place):
    monkeypatch.chdir(tmp_path)
    error = fails(*gate(files, "small", "small", "race.toml", *options))
    assert isinstance(error, UsageError)
    assert f"both go to {place}" in error.what
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def found(monkeypatch):
    """Return what lets a gate find what a test says."""

    def find(*findings, void=None, sentinel=()):
        bundle = Subject(path="bundle")
        result = GateResult(
            verdict=overall(findings, void),
            candidate=bundle,
            baseline=bundle,
            findings=findings,
            void=void,
            sentinel=sentinel,
            environment={"cpu_model": "Some CPU"},
        )
        monkeypatch.setattr(gating, "run_gate", lambda *_: result)
        return "gate", "bundle", "--baseline", "bundle"

    return find


def finding(verdict, group="performance", metric="latency_ms"):
    return Finding(group=group, metric=metric, unit="ms", baseline=1.0, candidate=2.0, estimate=2.0, verdict=verdict)


def fails_aloud(capsys, *arguments):
    """Return the error of a command, and what it said besides."""
    with pytest.raises(EdgecError) as caught:
        edgec.main([str(argument) for argument in arguments], standalone_mode=False)
    return caught.value, capsys.readouterr()


@pytest.fixture
def broken(tmp_path):
    """Return a place where nothing can be written."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "below"


def test_a_regression_is_one_whatever_the_disk_says(found, tmp_path, broken, capsys):
    reports = ("--report", f"junit:{broken}", "--report", f"json:{tmp_path / 'r.json'}", "--report", f"sarif:{broken}2")
    history = ("--history", f"{broken}3", "--label", "x")
    error, said = fails_aloud(capsys, *found(finding("fail")), *reports, *history)
    assert (type(error), error.exit_code) == (RegressionError, 1)
    assert said.err.count("error: the report cannot be written") == 2
    assert said.err.count("error: the history cannot be written") == 1
    assert "1 -> 2 ms" in said.out
    assert read_result(tmp_path / "r.json").verdict == "fail"


def test_a_regression_is_one_whatever_goes_wrong_in_telling(found, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("edgec.cli.gate.print_table", lambda *_: "\u732b".encode("ascii"))
    error, said = fails_aloud(capsys, *found(finding("fail")), "--report", f"json:{tmp_path / 'r.json'}")
    assert error.exit_code == 1
    assert "UnicodeEncodeError" in said.err
    assert read_result(tmp_path / "r.json").verdict == "fail"


TOLD = {"where": "int4", "hint": "it may be memory"}


@pytest.mark.parametrize(
    ("error", "void", "code"),
    [
        (InconclusiveError("it was killed", **TOLD), "it was killed; int4; it may be memory", 5),
        (BundleError("it crashed", **TOLD), "it crashed; int4; it may be memory", 3),
        (BlockingIOError("no process"), "BlockingIOError: no process", 70),
    ],
)
def test_worse_predictions_fail_however_a_process_of_the_race_ends(files, tmp_path, monkeypatch, error, void, code):
    def killed(*_):
        raise error

    monkeypatch.setattr(performance, "race", killed)
    config = tmp_path / "gate.toml"
    config.write_text(QUALITY.replace("performance = false", "") + "[quality.metrics]\nmean_kl = { margin = 1e-6 }\n")
    arguments = gate(files, "int4", "int8", config, "--report", f"json:{tmp_path / 'r.json'}")
    assert fails(*arguments).exit_code == 1
    result = read_result(tmp_path / "r.json")
    assert void in result.void
    config.write_text(QUALITY.replace("performance = false", ""))
    if code == 70:
        with pytest.raises(BlockingIOError):
            invoke(*arguments)
        return
    told = fails(*arguments)
    assert told.exit_code == code
    assert code != 5 or (told.what, told.hint) == (void, None)  # it says itself what to do


def test_the_usual_bounds(files):
    """Without a gate file: all of it, on real bundles."""
    done = subprocess.run(
        [sys.executable, "-m", "edgec", "gate", files / "int4", "--baseline", files / "int4", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr  # the storyteller knows nothing of Python
    result = json.loads(done.stdout)
    bounds = {(each["metric"], each["where"]): each["margin"] for each in result["findings"] if each["margin"]}
    times = ("ttft_ms", "token_ms", "tokens_per_s", "peak_rss_bytes", "size_bytes")
    texts = ("python-docs", "python-source")
    assert bounds == {
        **{(name, ""): 1.05 for name in times},
        ("load_ms", ""): 1.35,
        **{("perplexity_ratio", text): 1.02 for text in texts},
    }


def test_the_numbers_that_are_shown(found, capsys):
    small = {"scale": "value", "unit": "nats", "candidate": None, "baseline": None}
    changes = {**small, "estimate": 0.00042, "low": 0.0004, "high": 0.00044}
    _, said = fails_aloud(capsys, *found(msgspec.structs.replace(finding("fail", "quality", "mean_kl"), **changes)))
    assert "0.00042 (0.0004 to 0.00044)" in said.out
    changes["scale"] = "difference"
    _, said = fails_aloud(capsys, *found(msgspec.structs.replace(finding("fail", "quality", "cosine"), **changes)))
    assert "0.00042 (0.0004 to 0.00044)" in said.out
    changes = {"estimate": 1.00042, "low": 0.9996, "high": 1.01}
    _, said = fails_aloud(capsys, *found(msgspec.structs.replace(finding("inconclusive"), **changes)))
    assert "1.000 (1.000 to 1.010)" in said.out


def test_a_regression_of_which_nothing_can_be_kept(found, tmp_path, capsys):
    nothing = msgspec.structs.replace(finding("fail", "quality", "mean_kl"), candidate=None)
    history = ("--history", tmp_path / "h", "--label", "x")
    for void, says in (("busy", "says nothing that could be kept: busy"), (None, "no values to keep")):
        error, said = fails_aloud(capsys, *found(nothing, void=void), *history)
        assert error.exit_code == 1
        assert says in said.err
    assert not (tmp_path / "h").exists()


@pytest.mark.parametrize(("verdict", "code"), [("pass", 2), ("inconclusive", 2)])
def test_without_a_regression_what_cannot_be_written_is_the_error(found, tmp_path, broken, capsys, verdict, code):
    reports = ("--report", f"junit:{broken}", "--report", f"json:{tmp_path / 'r.json'}")
    history = ("--history", tmp_path / "h", "--label", "x")
    error, said = fails_aloud(capsys, *found(finding(verdict)), *reports, *history)
    assert (type(error), error.exit_code) == (OutputError, code)
    assert error.where == str(broken)
    assert ("error: it is not clear" in said.err) == (verdict == "inconclusive")
    assert read_result(tmp_path / "r.json").verdict == verdict
    assert len(read_history(tmp_path / "h").records) == 1


@pytest.mark.parametrize(
    ("candidate", "options", "code"), [("int8", ("--json",), 0), ("int4", ("--report=markdown",), 1)]
)
def test_nobody_has_to_read_the_table(files, tmp_path, candidate, options, code):
    bound = "[quality.metrics]\nmean_kl = { margin = 1e-6 }\n"
    (files / "short.toml").write_text(QUALITY.replace("4000", "2000") + bound)
    report = tmp_path / "j.xml"
    arguments = gate(files, candidate, "int8", "short.toml", *options, f"--report=junit:{report}")
    end, begin = os.pipe()
    os.close(end)
    command = [sys.executable, "-m", "edgec", *map(str, arguments)]
    done = subprocess.run(command, stdout=begin, stderr=subprocess.PIPE, text=True, check=False)
    os.close(begin)
    assert done.returncode == code, done.stderr
    assert report.exists()
    assert "Traceback" not in done.stderr


def test_nobody_has_to_hear_anything(files, tmp_path):
    (files / "short.toml").write_text(
        QUALITY.replace("4000", "2000") + "[quality.metrics]\nmean_kl = { margin = 1e-6 }\n"
    )
    arguments = gate(files, "int4", "int8", "short.toml", "--report", f"json:{tmp_path / 'r.json'}")
    command = shlex.join([sys.executable, "-m", "edgec", *map(str, arguments)])
    assert subprocess.run(["sh", "-c", f"{command} >&- 2>&-"], check=False).returncode == 1
    assert read_result(tmp_path / "r.json").verdict == "fail"


@pytest.mark.parametrize(
    ("findings", "void", "says", "not_"),
    [
        ([finding("inconclusive")], None, "quieter machine", "tokens"),
        (
            [finding("inconclusive", "quality", "mean_kl"), finding("pass")],
            None,
            "more `tokens` or `samples`",
            "quieter",
        ),
        ([finding("inconclusive", "quality", "mean_kl"), finding("inconclusive")], None, "quieter machine", "again;"),
        ([finding("inconclusive")], "the baseline differs from itself", "quieter machine", "tokens"),
    ],
)
def test_the_hint_is_for_what_is_undecided(found, capsys, findings, void, says, not_):
    error, _ = fails_aloud(capsys, *found(*findings, void=void, sentinel=(finding("fail"),)))
    assert error.exit_code == 5
    assert says in error.hint
    assert not_ not in error.hint


def test_what_a_void_race_says_to_do_is_said_once(found, capsys):
    void = "a round takes 9.0 s, too long for 6 rounds: raise `time_limit_s` to 60"
    error, said = fails_aloud(capsys, *found(finding("pass", "quality", "mean_kl"), void=void))
    assert (error.what, error.hint) == (void, None)
    assert "inconclusive, 0 rounds in 0 s" in said.err


def test_without_a_race_there_are_no_rounds(found):
    assert "pass, in 0 s" in invoke(*found(finding("pass", "quality", "mean_kl"))).stderr


def test_it_says_which_files_it_wrote(found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    command = found(finding("pass"))
    names = format_names()
    said = invoke(*command, *(f"--report={name}" for name in names if name != "github")).stderr
    written = sorted(line.removeprefix("wrote ") for line in said.splitlines() if line.startswith("wrote "))
    assert written == sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(path for name in names if (path := get_format(name).DEFAULT_PATH))
    table = (Path(__file__).parents[2] / "docs/gates.md").read_text()
    for name in names:
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"`{get_format(name).DEFAULT_PATH}` |" in row or get_format(name).DEFAULT_PATH is None
    said = invoke(*command, "--report=json:a/b.json", "--history=h.jsonl", "--label=x").stderr
    assert said.splitlines()[-1] == "wrote a/b.json"


def test_a_disk_without_room_for_the_table(found, tmp_path, monkeypatch):
    report = tmp_path / "r.json"
    for verdict, kind in (("fail", RegressionError), ("pass", OutputError)):
        with suppress(OSError), Path("/dev/full").open("w") as full:  # which cannot be closed either
            monkeypatch.setattr(sys, "stdout", full)
            with pytest.raises(kind):
                edgec.main([*found(finding(verdict)), "--report", f"json:{report}"], standalone_mode=False)
        assert read_result(report).verdict == verdict


def test_in_a_void_race_nothing_but_quality_is_decided(found, capsys):
    raced = (finding("fail"), finding("pass", metric="load_ms"), finding("reported", metric="size_bytes"))
    error, said = fails_aloud(capsys, *found(*raced, finding("fail", "quality", "mean_kl"), void="busy"))
    assert error.what == "the candidate is worse than the baseline in mean_kl"
    shown = {words[0]: words[-1] for line in said.out.splitlines() if (words := line.split())}
    assert (shown["latency_ms"], shown["load_ms"]) == ("inconclusive", "inconclusive")
    assert (shown["size_bytes"], shown["mean_kl"]) == ("reported", "fail")
    error, said = fails_aloud(capsys, *found(*raced, void="busy"))
    assert (error.what, error.exit_code) == ("busy", 5)
    assert "fail" not in said.out


def test_targets_have_bounds_of_their_own(files, tmp_path):
    config = tmp_path / "gate.toml"
    config.write_text(RACE + "[targets.cpu.metrics]\nlatency_ms = { allowed = 100.0, margin = 200.0 }\n")
    result = json.loads(invoke(*gate(files, "small", "small", config, "--json")).stdout)
    assert findings(result)["latency_ms"]["margin"] == 200
