"""`edgec init-ci`: what it writes is valid, and runs."""

import json
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from commands import fails, invoke
from ruamel.yaml import YAML
from safetensors.numpy import load_file, save_file

from edgec import __version__
from edgec.cli import init_ci
from edgec.errors import OutputError, UsageError
from edgec.gate.ci import WORKFLOWS
from edgec.gate.settings import read_gate_file
from edgec.spec.load import data_dir

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"
SCHEMAS = {"github": ["vendor.github-workflows"], "gitlab": ["vendor.gitlab-ci", "--data-transform", "gitlab-ci"]}
GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "init.defaultBranch=main"]
SYSTEMS = ("github", "gitlab")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with something in it that looks like a checkpoint."""
    root = tmp_path / "repository"
    (root / ".git").mkdir(parents=True)
    (root / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(root)
    return root


def load(path):
    return YAML(typ="safe").load(path.read_text())


def tree(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("options", [[], ["--profile", "int8", "--target", "intel-nuc", "--install", "edgec @ file:e"]])
def test_the_workflow_is_valid(repository, system, options):
    done = invoke("init-ci", system, "models/tiny", *options)
    path = repository / WORKFLOWS[system]
    assert str(path) in done.stdout.splitlines()
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", *SCHEMAS[system], str(path)]
    valid = subprocess.run(check, capture_output=True, text=True, check=False)
    assert valid.returncode == 0, valid.stdout + valid.stderr
    found = load(path)
    values = found["env"] if system == "github" else found["edgec-gate"]["variables"]
    assert values["CHECKPOINT"] == "models/tiny"
    assert (values["PROFILE"], values["TARGET"]) == (("int8", "intel-nuc") if options else ("int4", "cpu"))
    assert values["EDGEC"] == "edgec @ file:e" if options else values["EDGEC"].startswith("edgec[build,gate")
    assert "@@" not in path.read_text()


@pytest.mark.parametrize(
    ("origin", "wanted", "noted"),
    [
        ({}, f"edgec[build,gate]=={__version__}", False),
        ({"url": "file:///home/me/edgec", "dir_info": {"editable": True}}, f"edgec[build,gate]=={__version__}", True),
        (
            {"url": "https://localhost/edgec.git", "vcs_info": {"vcs": "git", "commit_id": "0a1b"}},
            "edgec[build,gate] @ git+https://localhost/edgec.git@0a1b",
            False,
        ),
        (
            {"url": "https://a/b.git", "vcs_info": {"vcs": "git", "commit_id": "0a"}, "subdirectory": "c"},
            "edgec[build,gate] @ git+https://a/b.git@0a#subdirectory=c",
            False,
        ),
        ({"url": "https://a/edgec.whl", "archive_info": {}}, "edgec[build,gate] @ https://a/edgec.whl", False),
        ({"url": "file:///edgec.whl", "archive_info": {}}, f"edgec[build,gate]=={__version__}", True),
    ],
)
def test_it_installs_the_edgec_that_wrote_it(repository, monkeypatch, origin, wanted, noted):
    monkeypatch.setattr(init_ci, "_origin", lambda: origin)
    done = invoke("init-ci", "github", "models/tiny")
    assert load(repository / WORKFLOWS["github"])["env"]["EDGEC"] == wanted
    assert ("edgec is from this machine" in done.stderr) is noted


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_checker_that_sees_mistakes(repository, system):
    invoke("init-ci", system, "models/tiny")
    path = repository / WORKFLOWS[system]
    path.write_text(path.read_text().replace("runs-on:", "runs_on:").replace("exit_codes:", "exit_code:"))
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", *SCHEMAS[system], str(path)]
    assert subprocess.run(check, capture_output=True, check=False).returncode == 1


def test_gitlab_takes_the_workflow_in(repository):
    invoke("init-ci", "gitlab", "models/tiny")
    assert load(repository / ".gitlab-ci.yml") == {"include": [{"local": WORKFLOWS["gitlab"]}]}
    job = load(repository / WORKFLOWS["gitlab"])["edgec-gate"]
    assert job["allow_failure"] == {"exit_codes": [5]}
    (repository / ".gitlab-ci.yml").write_text("mine: {}\n")
    done = invoke("init-ci", "gitlab", "models/tiny", "--force")
    assert (repository / ".gitlab-ci.yml").read_text() == "mine: {}\n"
    assert f"- local: {WORKFLOWS['gitlab']}" in done.stderr


@pytest.mark.parametrize("kind", ["decoder", "network"])
def test_the_gate_file_says_all_that_matters(repository, kind):
    name = {"decoder": "models/tiny", "network": "models/net.onnx"}[kind]
    (repository / "models" / "net.onnx").write_bytes(b"")
    invoke("init-ci", "github", name)
    found = read_gate_file(repository / "gate.toml")
    assert found.performance.threads == 1
    times = {"decoder": {"ttft_ms", "token_ms"}, "network": {"latency_ms"}}[kind]
    assert found.performance.metrics.keys() == {*times, "load_ms", "peak_rss_bytes", "size_bytes"}
    assert found.quality is False if kind == "network" else found.quality.metrics.keys() == {"perplexity_ratio"}
    workflow = load(repository / WORKFLOWS["github"])
    assert workflow["env"]["PROFILE"] == {"decoder": "int4", "network": "int8"}[kind]


def test_the_bounds_are_those_of_a_gate_without_a_file(repository):
    from edgec.gate.limits import USUAL, gated

    invoke("init-ci", "github", "models/tiny")
    metrics = read_gate_file(repository / "gate.toml").performance.metrics
    assert gated(metrics, {}).limits == {name: USUAL[name] for name in metrics}


@pytest.mark.parametrize("system", SYSTEMS)
def test_nothing_is_overwritten_unless_asked(repository, system):
    (repository / "gate.toml").write_text("seed = 7\n")
    invoke("init-ci", system, "models/tiny")
    before = (repository / WORKFLOWS[system]).read_text()
    error = fails("init-ci", system, "models/tiny", "--profile", "int8")
    assert isinstance(error, OutputError)
    assert "--force" in error.hint
    assert (repository / WORKFLOWS[system]).read_text() == before
    done = invoke("init-ci", system, "models/tiny", "--profile", "int8", "--force")
    assert "gate.toml was there" in done.stderr
    assert (repository / WORKFLOWS[system]).read_text() == before.replace('"int4"', '"int8"')
    assert (repository / "gate.toml").read_text() == "seed = 7\n"


def test_paths_are_from_the_root_wherever_one_is(repository, monkeypatch):
    (repository / "models" / "my.toml").write_text((data_dir("profiles") / "int8.toml").read_text())
    monkeypatch.chdir(repository / "models")
    found = json.loads(invoke("init-ci", "github", "./tiny", "--profile", "my.toml", "--json").stdout)
    assert found == {"repository": str(repository), "written": [WORKFLOWS["github"], "gate.toml"]}
    env = load(repository / WORKFLOWS["github"])["env"]
    assert (env["CHECKPOINT"], env["PROFILE"]) == ("models/tiny", "models/my.toml")


def test_a_model_of_the_hub(repository):
    done = invoke("init-ci", "github", "organisation/model-1.5")
    assert load(repository / WORKFLOWS["github"])["env"]["CHECKPOINT"] == "organisation/model-1.5"
    assert "no file of the repository decides" in done.stderr
    assert "no file of the repository" not in invoke("init-ci", "github", "models/tiny", "--force").stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "there is no file or directory 'nowhere'"),
        (["../outside"], "not in the repository"),
        (["link"], "not in the repository"),
        (["models/tiny", "--target", "cpuu"], "there is no target"),
        (["models/tiny", "--profile", "int5"], "there is no profile"),
        (["models/tiny", "--profile", "none.toml"], "cannot be read"),
        (["models/tiny", "--install", "edgec\n- run: x"], "cannot be written into a workflow"),
        (["models/tiny", "--install", "${{ secrets.TOKEN }}"], "cannot be written into a workflow"),
        (["models/net.onnx", "--profile", "int4-gptq"], "language models only"),
    ],
)
@pytest.mark.parametrize("system", SYSTEMS)
def test_what_cannot_be_is_refused_and_nothing_written(repository, system, arguments, told):
    (repository.parent / "outside").mkdir()
    (repository / "link").symlink_to("../outside")
    (repository / "models" / "net.onnx").write_bytes(b"")
    error = fails("init-ci", system, *arguments)
    assert isinstance(error, UsageError)
    assert told in error.what
    assert tree(repository) == {"models/net.onnx"}


def test_away_from_a_repository(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "--out" in fails("init-ci", "github", "tiny").hint
    invoke("init-ci", "github", "tiny", "--out", ".")
    assert tree(tmp_path) == {WORKFLOWS["github"], "gate.toml"}


# The steps themselves: run with bash in a repository of two commits, as the CI systems do.


def git(root, *arguments):
    done = subprocess.run([*GIT, *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def programs(folder, edgec):
    """Write a `pip` that installs nothing and takes notes, and an `edgec`; return their folder."""
    folder.mkdir()
    notes = f'echo "$@" >> {folder}/pip.log'
    pip = f'#!/bin/bash\nif [ "$1 $2" = "-m pip" ]; then {notes}; else exec {sys.executable} "$@"; fi'
    for name, text in {"python": pip, "edgec": f"#!/bin/bash\n{edgec}"}.items():
        (folder / name).write_text(text + "\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """Return a function that makes a clone in which a change is checked out, with what its base branch holds."""

    def make(system, base, change):
        origin, work = tmp_path / "origin", tmp_path / "work"
        origin.mkdir()
        git(origin, "init")
        base(origin)
        git(origin, "add", "--all")
        git(origin, "commit", "--allow-empty", "-m", "base")
        git(origin, "checkout", "-b", "change")
        change(origin)
        monkeypatch.chdir(origin)
        invoke("init-ci", system, "checkpoint", "--profile", "int8", "--force")
        git(origin, "add", "--all")
        git(origin, "commit", "--allow-empty", "-m", "change")
        git(tmp_path, "clone", str(origin), "work")
        git(work, "checkout", "--detach")
        return work

    return make


def run_github(work, bin_folder):
    """Run the steps of the workflow that are scripts, until one fails; return its exit code and what was printed."""
    found = load(work / WORKFLOWS["github"])
    output, summary, temp = (work.parent / name for name in ("output", "summary", "temp"))
    temp.mkdir()
    output.touch()
    environment = {
        name: str(value).replace("${{ github.workspace }}", str(work)) for name, value in found["env"].items()
    }
    environment |= {
        "PATH": f"{bin_folder}:/usr/bin:/bin", "HOME": str(temp), "RUNNER_TEMP": str(temp),
        "GITHUB_BASE_REF": "main", "GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary),
        "GITHUB_WORKSPACE": str(work), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    assert not any("${{" in value for value in environment.values())
    told = ""
    for step in found["jobs"]["gate"]["steps"]:
        if "run" not in step:
            continue
        if "if" in step:
            assert step["if"] == "steps.base.outputs.found == 'true'"
            if "found=true" not in output.read_text().splitlines():
                continue
        code, said = run_bash(step["run"], work, environment)
        told += said
        if code:
            return code, told
    return 0, told


def run_gitlab(work, bin_folder):
    """Run the job's script as one, as GitLab's runner does."""
    job = load(work / WORKFLOWS["gitlab"])["edgec-gate"]
    environment = {name: value.replace("$CI_PROJECT_DIR", str(work)) for name, value in job["variables"].items()}
    environment |= {
        "PATH": f"{bin_folder}:/usr/bin:/bin", "HOME": str(work.parent), "CI_PROJECT_DIR": str(work),
        "CI_MERGE_REQUEST_DIFF_BASE_SHA": git(work, "merge-base", "HEAD", "origin/main"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    assert not any("$" in value for value in environment.values())
    return run_bash("\n".join(job["script"]), work, environment)


def run_bash(script, work, environment):
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=work, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


RUN = {"github": run_github, "gitlab": run_gitlab}


def with_checkpoint(root):
    (root / "checkpoint").mkdir(exist_ok=True)
    (root / "checkpoint" / "config.json").write_text("{}")


def nothing(root):
    del root


# Notes its arguments and where it was called; `edgec gate` ends with the code that is asked for.
NOTES = 'echo "$PWD: $@" >> {log}; if [ "$1" = gate ]; then exit {code}; fi'


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("code", [0, 1, 2, 5])
def test_the_exit_code_of_the_gate_decides(tmp_path, clone, system, code):
    log = tmp_path / "log"
    work = clone(system, with_checkpoint, nothing)
    found, told = RUN[system](work, programs(tmp_path / "bin", NOTES.format(log=log, code=code)))
    if system == "github":
        assert found == (0 if code == 5 else code)
        assert ("::warning title=edgec gate::inconclusive" in told) == (code == 5)
    else:
        assert found == code  # and 5 is in `allow_failure`
    first, second, gate = log.read_text().splitlines()
    build = "build checkpoint --target cpu --profile int8 --no-verify --out"
    assert first == f"{work}: {build} edgec-gate/candidate"
    place, _, rest = second.partition(": ")
    assert place not in {str(work), ""}
    assert rest == f"{build} {work}/edgec-gate/baseline"
    assert gate.startswith(
        f"{work}: gate edgec-gate/candidate --baseline edgec-gate/baseline --config gate.toml --report "
    )
    assert "-m pip install edgec[build,gate" in (tmp_path / "bin" / "pip.log").read_text()


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_checkpoint_that_is_new_is_not_gated(tmp_path, clone, system):
    log = tmp_path / "log"
    work = clone(system, nothing, with_checkpoint)
    found, told = RUN[system](work, programs(tmp_path / "bin", NOTES.format(log=log, code=1)))
    assert found == 0
    assert "not gated: checkpoint is new" in told
    assert [line.split()[1] for line in log.read_text().splitlines()] == ["build"]


def other_bounds(root):
    (root / "gate.toml").write_text("confidence = 0.9\n")


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("change", [nothing, other_bounds])
def test_a_change_of_the_gate_itself_is_told(tmp_path, clone, system, change):
    def base(root):
        with_checkpoint(root)
        invoke("init-ci", system, root / "checkpoint", "--profile", "int8", "--out", root)

    work = clone(system, base, change)
    found, told = RUN[system](work, programs(tmp_path / "bin", "exit 0"))
    assert found == 0
    assert ("the gate itself changes here" in told) is (change is other_bounds)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_build_that_fails_fails(tmp_path, clone, system):
    work = clone(system, with_checkpoint, nothing)
    assert RUN[system](work, programs(tmp_path / "bin", "exit 3"))[0] == 3


GATE = """performance = false
[quality]
texts = ["heldout.txt"]
tokens = 2000
window = 64
"""


def storyteller(root):
    copytree(STORYTELLER / "checkpoint", root / "checkpoint")
    text = (STORYTELLER / "data" / "heldout.txt").read_text()
    (root / "heldout.txt").write_text(text[:20_000])
    (root / "gate.toml").write_text(GATE)


def harm(root):
    path = root / "checkpoint" / "model.safetensors"
    weights = load_file(path)
    rng = np.random.default_rng(0)
    save_file(
        {name: w + (0.3 * w.std() * rng.standard_normal(w.shape)).astype(w.dtype) for name, w in weights.items()}, path
    )


@pytest.mark.parametrize(
    ("system", "change", "code"),
    [("github", harm, 1), pytest.param("gitlab", nothing, 0, marks=pytest.mark.slow)],
)
def test_the_steps_run(tmp_path, clone, system, change, code):
    work = clone(system, storyteller, change)
    found, told = RUN[system](work, programs(tmp_path / "bin", f'exec {sys.executable} -m edgec "$@"'))
    assert found == code, told
    reports = work / "edgec-gate" / "reports"
    result = json.loads((reports / "edgec-gate.json").read_text())
    assert result["verdict"] == ("fail" if code else "pass")
    files = {"github": ["junit.xml", "edgec-gate.sarif"], "gitlab": ["junit.xml", "gl-code-quality-report.json"]}[
        system
    ]
    assert {path.name for path in reports.iterdir()} >= set(files)
    if system == "github":
        assert "## edgec gate failed" in (tmp_path / "summary").read_text()
        assert "::error title=edgec gate%3A perplexity_ratio" in told
        sarif = json.loads((reports / "edgec-gate.sarif").read_text())
        place = sarif["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"] == "edgec-gate/candidate"
    else:
        assert json.loads((reports / "gl-code-quality-report.json").read_text()) == []
        assert "## edgec gate passed" in (reports / "edgec-gate.md").read_text()
