"""Formats, as the CI systems that read them do."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import msgspec
import pytest

from edgec.errors import OutputError
from edgec.gate.formats import render_report, write_report
from edgec.gate.formats.github import annotations
from edgec.gate.result import Finding, GateResult, Subject, overall

LATER = {
    "group": "performance", "metric": "token_ms", "where": "128 + 32", "unit": "ms", "baseline": 10.0,
    "candidate": 11.2, "estimate": 1.12, "low": 1.1, "high": 1.14, "decided_low": 1.09, "decided_high": 1.15,
    "allowed": 1.02, "margin": 1.05, "verdict": "fail",
}  # fmt: skip
RATE = {**LATER, "metric": "tokens_per_s", "unit": "/s", "higher_is_better": True, "baseline": 100.0, "candidate": 89.0}


def make(*changes, void=None, path="out/candidate", target="cpu", sentinel=()):
    found = tuple(Finding(**{**LATER, **each}) for each in changes)
    return GateResult(
        verdict=overall(found, void),
        candidate=Subject(path=path, target=target),
        baseline=Subject(path="out/baseline"),
        findings=found,
        sentinel=sentinel,
        void=void,
    )


def commands(text):
    """Read workflow commands as GitHub's runner does; what is none is refused."""
    found = []
    for line in text.split("\n")[:-1]:
        kind, properties, data = re.fullmatch(r"::(\w+) (.*?)::(.*)", line).groups()
        values = dict(each.split("=", 1) for each in properties.split(","))
        for code, char in (("%2C", ","), ("%3A", ":"), ("%0A", "\n"), ("%0D", "\r"), ("%25", "%")):
            values = {name: value.replace(code, char) for name, value in values.items()}
            data = data.replace(code, char) if char not in ":," else data
        found.append((kind, values, data))
    return found


def test_annotations_come_back_as_they_were():
    where = "50% of a:b,c\r\n::error title=forged::x%0A"
    ((kind, values, data),) = commands(annotations(make({"where": where})))
    assert kind == "error"
    assert values == {"title": f"edgec gate: token_ms ({where})"}
    assert data.startswith(f"token_ms ({where}) is 1.12x (1.1 to 1.14, deciding 1.09 to 1.15) as bad as the baseline")


def test_what_github_would_not_show_is_counted():
    found = commands(annotations(make(*({"where": str(n)} for n in range(13)), {"verdict": "inconclusive"})))
    errors = [data for kind, _, data in found if kind == "error"]
    assert len(errors) == 10
    assert errors[-1] == "4 more: the job's summary lists them"
    assert [kind for kind, _, _ in found].count("warning") == 1
    assert len(commands(annotations(make(*({"where": str(n)} for n in range(10)))))) == 10


def test_a_void_run_is_one_warning():
    ((kind, _, data),) = commands(annotations(make({}, {"metric": "b"}, void="the machine was busy: 12 %")))
    assert kind == "warning"
    assert data.endswith("the machine was busy: 12 %")
    assert annotations(make({"verdict": "pass"})) == ""


def test_on_a_runner_the_summary_grows(tmp_path, monkeypatch, capsys):
    summary = tmp_path / "summary"
    summary.write_text("# earlier")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    write_report(make({}), "github")
    assert summary.read_text() == "# earlier\n" + render_report(make({}), "markdown")
    assert capsys.readouterr().out == annotations(make({}))


def test_a_summary_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    with pytest.raises(OutputError, match="summary"):
        write_report(make({}), "github")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "/dev/full")
    with pytest.raises(OutputError, match="No space left"):
        write_report(make({}), "github")
    assert capsys.readouterr().out == ""


_NEARLY_FULL = """
import resource, sys
from pathlib import Path
from edgec.errors import OutputError
from edgec.gate.formats import github
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
try:
    github._append(Path(sys.argv[1]), b"x" * 5000)
except OutputError as error:
    print(error.what)
"""


def test_a_summary_without_room_for_the_page_stays_as_it_was(tmp_path):
    summary = tmp_path / "summary"
    summary.write_bytes(b"a" * 4000)
    command = [sys.executable, "-c", _NEARLY_FULL, summary]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "the job's summary cannot be written: File too large\n"
    assert summary.read_bytes() == b"a" * 4000


def places(path, name):
    found = json.loads(render_report(make({}, path=path), name))
    if name == "gitlab":
        return found[0]["location"]["path"]
    return found["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]


@pytest.mark.parametrize("variable", ["GITHUB_WORKSPACE", "CI_PROJECT_DIR", None])
def test_paths_are_from_the_root_of_the_repository(tmp_path, monkeypatch, variable):
    for name in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path / "models" if variable else tmp_path)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    inside = "models/out" if variable else "out"
    for given in ("out", "./out", "a/../out", str(tmp_path / inside)):
        assert places(given, "gitlab") == places(given, "sarif") == inside
    assert places("/elsewhere/bundle", "gitlab") == "bundle"
    assert places(f"{inside}/../../..", "gitlab") not in {"..", ""}
    assert places("a b:ü%#?", "sarif") == ("models/" if variable else "") + "a%20b%3A%C3%BC%25%23%3F"


def fingerprints(result):
    return [each["fingerprint"] for each in json.loads(render_report(result, "gitlab"))]


def test_fingerprints_tell_problems_apart_and_stay():
    first = fingerprints(make({}, {"where": "other"}, {"metric": "other"}, {"group": "quality", "where": "x"}))
    assert len(set(first)) == 4
    assert fingerprints(make({"estimate": 1.3, "verdict": "inconclusive"})) == first[:1]
    assert fingerprints(make({}, target="jetson")) != first[:1]


def test_a_pass_is_no_alert():
    found = json.loads(render_report(make({"verdict": "pass"}), "sarif"))["runs"][0]
    assert found["results"] == []
    assert [rule["id"] for rule in found["tool"]["driver"]["rules"]] == ["edgec-gate/token_ms", "edgec-gate/void"]
    assert json.loads(render_report(make({"verdict": "pass"}), "gitlab")) == []


def outcomes(result):
    root = ET.fromstring(render_report(result, "junit"))
    kinds = {"failure", "error", "skipped"}
    return {
        (case.get("classname"), case.get("name")): next((child.tag for child in case if child.tag in kinds), "passed")
        for case in root.iter("testcase")
    }


def test_what_junit_shows():
    verdicts = ("pass", "fail", "inconclusive", "reported")
    changes = [{"metric": verdict, "where": "", "verdict": verdict} for verdict in verdicts]
    sentinel = tuple(Finding(**{**LATER, **each}) for each in changes[:3])
    run = ("run", "the run counts")
    names = [("performance", verdict) for verdict in verdicts]
    wanted = ("passed", "failure", "error", "skipped")
    watched = {("sentinel", v): o for v, o in zip(verdicts, ("passed", "error", "skipped"), strict=False)}
    shown = outcomes(make(*changes, sentinel=sentinel))
    assert shown == {run: "passed", **dict(zip(names, wanted, strict=True)), **watched}
    shown = outcomes(make(*changes, sentinel=sentinel, void="busy"))
    assert shown == {run: "error", **dict.fromkeys(names, "skipped"), **watched}


def test_benchmark_action_gets_ratios_of_one_run():
    changes = (RATE, {}, {"scale": "difference"}, {"scale": "value"}, {"metric": "none", "estimate": None})
    rate, time = json.loads(render_report(make(*changes), "benchmark-action"))
    assert (rate["name"], rate["value"], rate["unit"]) == ("tokens_per_s (128 + 32)", 1.12, "x baseline")
    assert "the baseline's rate divided by the candidate's" in rate["extra"]
    assert (time["value"], time["range"]) == (1.12, "1.1 to 1.14")
    assert json.loads(render_report(make({}, void="busy"), "benchmark-action")) == []


def test_a_page_names_each_fact_once():
    told = msgspec.structs.replace(make({}), edgec="1.2.3")
    both = msgspec.structs.replace(told, environment={"edgec": "1.2.3", "kernel": "Linux 1"})
    page = render_report(both, "markdown")
    facts = [line.split("|")[1].strip() for line in page[page.index("### Machine and versions") :].splitlines()[2:]]
    assert facts.count("edgec") == 1
    assert len(set(facts)) == len(facts)
    assert "| edgec | 1.2.3 |" in render_report(told, "markdown")


def test_a_page_says_what_matters_in_its_order():
    sentinel = (Finding(**{**LATER, "verdict": "pass"}),)
    page = render_report(
        make({}, RATE, {"verdict": "pass", "metric": "c", "note": "why"}, sentinel=sentinel), "markdown"
    )
    assert page.startswith("## edgec gate failed: 2 surely worse than allowed, 1 fine\n")
    marks = ["10 ms", "11.2 ms", "1.12x", "fails above 1.02, passes below 1.05", "**fail**", "of tokens_per_s", "why"]
    marks += ["### Sentinel", "### Machine and versions"]
    assert [page.index(mark) for mark in marks] == sorted(page.index(mark) for mark in marks)
    page = render_report(make({}, void="the clock ran slow"), "markdown")
    assert page.startswith("## edgec gate inconclusive: this race is void")
    assert "the clock ran slow" in page
    assert "**fail**" not in page
