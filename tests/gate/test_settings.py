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
        ("confidence = 0.9995", "confidence"),
        ("confidence = nan", "confidence"),
        ("[performance]\ntime_limit_s = nan", "time_limit_s"),
        ("[performance.metrics]\ntoken_ms = { allowed = nan }", "allowed"),
        ("[quality.metrics]\nmean_kl = { margin = nan }", "margin"),
        ("[quality.metrics]\nmean_kl = { margin = 0.1, allowed = nan }", "allowed"),
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


@pytest.mark.parametrize(
    ("text", "where", "hint"),
    [
        ("[performance]\ntime_limit = 3", "performance", "did you mean `time_limit_s`?"),
        ("confidnce = 0.9", "", "did you mean `confidence`?"),
        ("[quality]\nzzz = 3", "quality", "there are texts, tokens, window, data, samples, metrics"),
        (
            '[[performance.workload]]\nscenario = "offlin"',
            "performance.workload[0].scenario",
            "write one of single-stream, offline, server",
        ),
        ("[performance.workload]\nnew_tokens = 3", "performance.workload", "write `[[performance.workload]]`"),
        ("[quality]\ntexts = {}", "quality.texts", "see docs/gates.md"),
        (
            "[performance.metrics]\nttft_ms = {}\ntoken_ms = { alowed = 1.5 }",
            "performance.metrics.token_ms",
            "did you mean `allowed`?",
        ),
        (
            "[targets.cpu.metrics]\n[targets.orin.quality]\nmean_kl = { margin = 0.1 }\ntop1 = {}",
            "targets.orin.quality.top1",
            "see docs/gates.md",
        ),
        ("[performance.metrics]\ntoken_ms = 1.05", "performance.metrics.token_ms", "see docs/gates.md"),
        (
            "[[performance.workload]]\n[[performance.workload]]\nprompt_tokens = [1, 0]",
            "performance.workload[1].prompt_tokens[1]",
            "see docs/gates.md",
        ),
    ],
)
def test_what_to_do_about_nonsense(tmp_path, text, where, hint):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    path = str(tmp_path / "gate.toml")
    assert (caught.value.where, caught.value.hint) == (f"{path}: {where}" if where else path, hint)
    assert "$" not in caught.value.what


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("[performance]\nthreads = {}", 1024),
        ('[[performance.workload]]\nscenario = "offline"\nbatch = {}', 65_536),
        ("[[performance.workload]]\nprompt_tokens = {}", 1_000_000),
        ("[[performance.workload]]\nnew_tokens = [8, {}]", 1_000_000),
        ("[[performance.workload]]\nsizes.N = {}", 1_000_000),
        ("[quality]\nwindow = {}", 1_000_000),
        ("[quality]\ntokens = {}", 10_000_000),
        ("[quality]\nsamples = {}", 10_000_000),
    ],
)
def test_what_no_machine_could_do_is_refused(tmp_path, text, most):
    read(tmp_path, text.format(most))
    for more in (most + 1, 3_000_000_000, 10**30):
        with pytest.raises(UsageError, match="wrong"):
            read(tmp_path, text.format(more))


def test_a_file_that_is_not_utf_8(tmp_path):
    (tmp_path / "gate.toml").write_bytes(b"confidence = 0.9 # \xff")
    with pytest.raises(UsageError, match="is wrong: 'utf-8'"):
        read_gate_file(tmp_path / "gate.toml")
