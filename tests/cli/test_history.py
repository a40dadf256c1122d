"""`edgec history`, from a gate to a picture."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from commands import fails, invoke

from edgec.errors import UsageError
from edgec.gate.formats.json import read_result, render
from edgec.gate.history import Value, record_of
from edgec.gate.history_file import append
from edgec.gate.result import Finding, GateResult, Subject

SUBJECT = Subject(path="new", model="llama", target="cpu", backend="onnx_cpu", profile="int4")
MACHINE = {"cpu_model": "Some CPU", "usable_cpus": "2", "kernel": "Linux 1"}


def result(day, ms, machine=MACHINE):
    return GateResult(
        verdict="pass",
        candidate=SUBJECT,
        baseline=SUBJECT,
        findings=(
            Finding(group="performance", metric="token_ms", where="128 prompt tokens", unit="ms", candidate=ms),
            Finding(group="performance", metric="size_bytes", unit="bytes", candidate=2**20 * (1.0 + (day > 9))),
        ),
        started=(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)).isoformat(),
        environment=machine,
    )


@pytest.fixture
def history(tmp_path):
    """Twenty runs, the last ten of them slower, and one on another machine."""
    path = tmp_path / "h.jsonl"
    for day in range(20):
        append(path, record_of(result(day, 10 + 0.1 * (day % 3) + (day > 9)), f"commit{day}"))
    append(path, record_of(result(30, 5, {**MACHINE, "kernel": "Linux 2"}), "elsewhere"))
    return path


@pytest.fixture(scope="module")
def bundle(tiny_llama, story_text, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "int8"
    done = invoke("build", tiny_llama, "--profile", "int8", "--eval-text", story_text, "--out", out)
    assert done.exit_code == 0, done.output
    return out


def test_what_a_gate_reports_is_kept_and_shown(bundle, story_text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gate.toml").write_text(
        f'performance = false\n[quality]\ntexts = ["{story_text}"]\ntokens = 200\nwindow = 64\n'
    )
    # Random weights predict worse than chance, which decides nothing.
    error = fails("gate", bundle, "--baseline", bundle, "--config", "gate.toml", "--report", "json:result.json")
    assert error.exit_code == 5
    perplexity = read_result(tmp_path / "result.json").findings[0].candidate
    for _ in range(2):
        done = invoke("history", "add", "edgec-history.jsonl", "result.json", "--label", "first commit")
    assert "already" in done.stderr
    done = invoke("history", "add", "edgec-history.jsonl", "result.json", "--label", "mistyped")
    assert done.stderr == "note: this run is in edgec-history.jsonl already, as 'first commit'\n"
    (series,) = json.loads(invoke("history", "show", "--json").stdout)
    assert series["metric"].startswith("perplexity (")
    assert [(each["label"], each["value"]) for each in series["points"]] == [("first commit", perplexity)]
    assert "too few runs" in invoke("history", "show").stdout


def test_show_prints_tables_that_fit(history, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = invoke("history", "show", history)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "Some CPU, 2 CPUs, Linux 1" in done.stdout
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "size_bytes 20 1 MiB 2 MiB 100.0 % larger" in lines
    assert any(line.startswith("2026-01-11 commit10 token_ms") and line.endswith("9.9 % slower") for line in lines)
    assert lines.index(next(line for line in lines if "Linux 2" in line)) < lines.index(
        next(line for line in lines if "Linux 1" in line)
    )


def test_a_machine_of_which_little_is_known(history):
    append(history, msgspec.structs.replace(record_of(result(40, 5), "x"), environment={}))
    assert "unknown CPU, ? CPUs, unknown kernel" in invoke("history", "show", history).stdout


def test_plots_are_refused_before_the_history_is_read(tmp_path):
    assert "ends with" in fails("history", "show", tmp_path / "none", "--plot", tmp_path / "a.pdf").what


def test_show_narrows_and_draws(history, tmp_path):
    machine = record_of(result(0, 1), "x").machine
    command = ("history", "show", history, "--metric", "token_ms", "--machine", machine[:6])
    done = invoke(*command, "--plot", tmp_path / "a.svg", "--json")
    (series,) = json.loads(done.stdout)
    assert series["machine"] == machine
    assert [(each["label"], each["words"]) for each in series["changes"]] == [("commit10", "9.9 % slower")]
    assert b"commit10" in (tmp_path / "a.svg").read_bytes()
    assert isinstance(fails(*command, "--plot", tmp_path / "a.pdf"), UsageError)


def test_compare(history):
    done = invoke("history", "compare", history, "commit0", "commit10")
    assert "commit0" in done.stdout
    assert "11.0 % slower" in " ".join(done.stdout.split())
    (found,) = json.loads(invoke("history", "compare", history, "commit0", "commit10", "--json").stdout)
    assert found["metrics"][1] == {
        "metric": "size_bytes", "unit": "bytes", "first": 2.0**20, "second": 2.0**21, "words": "100.0 % larger",
    }  # fmt: skip


def test_other_machines_are_refused_with_exit_code_2(history):
    command = [sys.executable, "-m", "edgec", "history", "compare", history, "commit0", "elsewhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "kernel 'Linux 1' and 'Linux 2'" in done.stderr
    assert "to do: gate both in one run" in done.stderr
    assert not done.stdout


def test_bad_input_is_told_in_a_sentence(history, tmp_path):
    (tmp_path / "no.json").write_text('{"a": 1}')
    assert "no gate result" in fails("history", "add", history, tmp_path / "no.json", "--label", "x").what
    assert "cannot be read" in fails("history", "show", tmp_path / "none").what
    assert "no metric 'token'" in fails("history", "show", history, "--metric", "token").what
    assert "no machine 'x'" in fails("history", "show", history, "--machine", "x").what
    assert "no label 'x'" in fails("history", "compare", history, "x", "commit0").what
    (tmp_path / "good.json").write_text(render(result(50, 1.0)))
    assert "needs a label" in fails("history", "add", history, tmp_path / "good.json", "--label", " ").what
    assert "cannot be written" in fails("history", "add", tmp_path, tmp_path / "good.json", "--label", "x").what


def test_what_the_file_says_of_itself_goes_to_stderr(history, tmp_path):
    with history.open("ab") as file:
        file.write(b'{"schema_version":1,"wh')
    done = invoke("history", "show", history, "--json")
    assert "breaks off" in done.stderr
    assert len(json.loads(done.stdout)) == 4
    (tmp_path / "empty").write_text("")
    done = invoke("history", "show", tmp_path / "empty")
    assert (done.stdout, "empty" in done.stderr) == ("", True)
    assert json.loads(invoke("history", "show", tmp_path / "empty", "--json").stdout) == []


@pytest.mark.parametrize("command", ["show", "compare"])
def test_nobody_has_to_read_all_of_it(history, command):
    labels = ["commit0", "commit10"] if command == "compare" else []
    end, begin = os.pipe()
    os.close(end)
    done = subprocess.run(
        [sys.executable, "-m", "edgec", "history", command, history, *labels],
        stdout=begin,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(begin)
    assert (done.returncode, done.stderr) == (0, "")


def test_plots_need_no_home(history, tmp_path):
    command = [sys.executable, "-m", "edgec", "history", "show", history, "--plot", tmp_path / "a.svg", "--json"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MPL"))}
    done = subprocess.run(
        command,
        env={**plain, "HOME": "/proc/nohome", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "a.svg").exists()


def test_without_scipy_it_says_what_installs_it(history):
    code = "import sys; sys.modules['scipy'] = None; from edgec.cli import main; main()"
    command = [sys.executable, "-c", code, "history", "show", history]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert "'scipy', which is not installed" in done.stderr
    assert 'pip install "edgec[gate]"' in done.stderr


def test_labels_are_printed_as_they_are(history):
    record = record_of(result(60, 9.0), "[red]x[/] :smile:")
    append(history, msgspec.structs.replace(record, values={"[b]m": Value(1.0, "ms")}))
    assert "[b]m" in invoke("history", "show", history).stdout
    assert "[red]x[/] :smile:" in invoke("history", "compare", history, "[red]x[/] :smile:", "[red]x[/] :smile:").stdout
