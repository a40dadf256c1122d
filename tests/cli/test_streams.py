"""Where output goes: pipes that nobody reads, streams that are closed, files without a width."""

import os
import shlex
import subprocess
import sys

import pytest

from edgec.cli._console import print_table

EDGEC = f"{shlex.quote(sys.executable)} -m edgec"


def shell(command):
    """Run edgec with a shell's redirections."""
    return subprocess.run(["sh", "-c", f"{EDGEC} {command}"], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("targets >&-", 0),
        ("targets 2>&-", 0),
        ("targets --json <&- >&- 2>&-", 0),
        ("targets nope >&-", 2),
        ("targets nope >&- 2>&-", 2),
        ("targets --nope 2>&-", 2),
        ("targets > /dev/full", 2),
        ("targets nope 2> /dev/full", 2),
    ],
)
def test_streams_that_are_closed_or_full_change_no_exit_code(command, code):
    done = shell(command)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert bool(done.stdout) == (command == "targets 2>&-")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("targets",), 0), (("targets", "--json"), 0), (("--help",), 0), (("gate", "--help"), 0), (("targets", "x"), 2)],
)
def test_nobody_has_to_read_on(arguments, code):
    end, begin = os.pipe()
    os.close(end)
    command = [sys.executable, "-m", "edgec", *arguments]
    done = subprocess.run(command, stdout=begin, stderr=begin, check=False)
    quiet = subprocess.run(command, stdout=begin, stderr=subprocess.PIPE, text=True, check=False)
    os.close(begin)
    assert (done.returncode, quiet.returncode) == (code, code)
    assert quiet.stderr.startswith("error: ") if code else not quiet.stderr


@pytest.mark.parametrize(("columns", "width"), [(None, 140), ("90", 90)])
def test_tables_are_wide_where_there_is_no_terminal(monkeypatch, capsys, columns, width):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    print_table(("metric", "note"), [("m" * 40, "words " * 40)])
    lines = capsys.readouterr().out.splitlines()
    assert width - 6 <= max(map(len, lines)) <= width
    assert any(line.split()[:1] == ["m" * 40] for line in lines)
