"""Gate files: what they may say, and how they are refused."""

import pytest

from edgec.errors import UsageError
from edgec.gate.settings import Bound, GateFile, Grid, read_gate_file


def read(tmp_path, text):
    path = tmp_path / "gate.toml"
    path.write_text(text)
    return read_gate_file(path)


def test_an_empty_file_is_the_usual_gate(tmp_path):
    assert read(tmp_path, "") == GateFile()


def test_a_file_says_what_is_measured(tmp_path):
    found = read(
        tmp_path,
        """
        confidence = 0.9
        quality = false
        [performance]
        threads = 1
        [[performance.workload]]
        prompt_tokens = [16, 128]
        new_tokens = [8, 32]
        [[performance.workload]]
        scenario = "server"
        rate_per_s = 5
        [performance.metrics]
        token_ms = {}
        ttft_ms = { allowed = 1.1, margin = 1.2 }
        [targets.jetson-orin-nano.metrics]
        token_ms = { allowed = 1.05, margin = 1.1 }
        """,
    )
    workloads = found.performance.workloads()
    assert [(each.prompt_tokens, each.new_tokens) for each in workloads[:4]] == [(16, 8), (16, 32), (128, 8), (128, 32)]
    assert workloads[4].rate_per_s == 5
    assert found.performance.metrics["token_ms"] == Bound()
    assert found.targets["jetson-orin-nano"].metrics["token_ms"].margin == 1.1
    assert found.quality is False


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("confidnce = 0.9", "confidnce"),
        ("confidence = 1.5", "confidence"),
        ("performance = true", "leave it out for the usual"),
        ("performance = false\nquality = false", "nothing to compare"),
        ("[performance]\nworkload = []", "workload"),
        ("[performance]\nmin_rounds = 10\nmax_rounds = 6", "`max_rounds` (6) must be at least `min_rounds` (10)"),
        ("[performance]\ntime_limit_s = inf", "time_limit_s"),
        ("[quality.metrics]\nmean_kl = { margin = inf }", "<= 1000"),
        ("[performance.metrics]\ntoken_ms = { allowed = 0.5 }", "allowed"),
        ("[performance]\nmin_rounds = 2", "min_rounds"),
        ('[[performance.workload]]\nscenario = "server"', "rate_per_s"),
        ("[[performance.workload]]\nrate_per_s = 3", "rate_per_s"),
        ("[[performance.workload]]\nbatch = 3", "offline"),
        ("[[performance.workload]]\nprompt_tokens = []", "at least one"),
        ("[[performance.workload]]\nnew_tokens = 0", "new_tokens"),
        ("[quality.metrics]\nperplexity_ratio = { margin = 1.02, allowed = 1.05 }", "at most `margin`"),
        ("[quality.metrics]\nperplexity_ratio = {}", "margin"),
        ("this is no TOML", "wrong"),
    ],
)
def test_nonsense_is_refused_with_its_place(tmp_path, text, says):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert says in str(caught.value)
    assert "gate.toml" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_gate_file(tmp_path / "none.toml")


def test_a_workload_is_run_once(tmp_path):
    found = read(
        tmp_path, "[[performance.workload]]\nprompt_tokens = [16, 16]\n[[performance.workload]]\nprompt_tokens = 16"
    )
    assert [each.prompt_tokens for each in found.performance.workloads()] == [16]


def test_a_grid_of_one():
    assert len(Grid().workloads()) == 1
