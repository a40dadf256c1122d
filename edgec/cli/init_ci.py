"""`edgec init-ci`: a workflow that gates every change of a repository."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli import _network
from edgec.cli._console import json_option, print_json, say
from edgec.cli.plan import DECODER_PROFILE
from edgec.errors import OutputError, UsageError

if TYPE_CHECKING:
    from edgec.gate.ci import Setup, System

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@click.command()
@click.argument("system", type=click.Choice(["github", "gitlab"]), metavar="github|gitlab")
@click.argument("checkpoint", metavar="CHECKPOINT")
@click.option("--target", default="cpu", show_default=True, metavar="NAME|FILE", help="Where it will run.")
@click.option(
    "--profile",
    metavar="NAME|FILE",
    help=f"What you want.  [default: {DECODER_PROFILE}; {_network.PROFILE} for other than language models]",
)
@click.option("--install", metavar="REQUIREMENT", help="What pip installs.  [default: this edgec]")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), metavar="DIR", help="The repository.  [default: the one you are in]"
)
@click.option("--force", is_flag=True, help="Replace the workflow if there is one; a gate.toml is kept all the same.")
@json_option
def command(
    system: "System",
    checkpoint: str,
    target: str,
    profile: str | None,
    install: str | None,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a workflow that gates pull or merge requests, and a gate.toml if there is none.

    It builds CHECKPOINT (in the repository, or a hub id, or package.module:factory) from the change and from the base
    branch, and runs `edgec gate`.
    """
    from edgec.gate.ci import GATE_FILE, GITLAB_ROOT, WORKFLOWS, gate_file, gitlab_include, workflow
    from edgec.whole_file import write_whole

    root = out or _repository()
    setup = _setup(root, checkpoint, target, profile, install)
    files = {WORKFLOWS[system]: workflow(system, setup), GATE_FILE: gate_file(setup)}
    if system == "gitlab":
        files[GITLAB_ROOT] = gitlab_include()
    there = [name for name in files if (root / name).exists() or (root / name).is_symlink()]
    if WORKFLOWS[system] in there and not force:
        raise OutputError(
            "there is a workflow already", where=str(root / WORKFLOWS[system]), hint="replace it with --force"
        )
    written = [name for name in files if name == WORKFLOWS[system] or name not in there]
    for name in written:
        write_whole(root / name, files[name].encode(), name)
    if as_json:
        print_json({"repository": root, "written": written})
    else:
        click.echo("\n".join(str(root / name) for name in written))
    if GATE_FILE in there:
        say(f"note: {GATE_FILE} was there, and is as it was")
    if GITLAB_ROOT in there and system == "gitlab":
        say(f"note: add this to {GITLAB_ROOT}, if it is not in it:\n{gitlab_include()}")
    if not install and _is_local(_origin()):
        say(
            f"note: this edgec is from this machine; the workflow installs {setup.install}: name another with --install"
        )
    _advise(root, setup)


def _setup(root: Path, checkpoint: str, target: str, profile: str | None, install: str | None) -> "Setup":
    """Return what the workflow builds; all of it exists, and is in the repository or known to edgec."""
    from edgec.frontends.source import is_network
    from edgec.gate.ci import Setup
    from edgec.spec.load import load_network_profile, load_profile, load_target

    network = is_network(checkpoint)
    wanted = profile or (_network.PROFILE if network else DECODER_PROFILE)
    device = load_target(target)
    (load_network_profile if network else load_profile)(wanted)
    is_file = Path(checkpoint).exists()
    if not (is_file or _HUB_ID.fullmatch(checkpoint) or (network and ":" in checkpoint)):
        raise UsageError(
            f"there is no file or directory '{checkpoint}'",
            hint="name a checkpoint in the repository, a hub id such as organisation/name, or package.module:factory",
        )
    extras = ["build", "gate", *({"openvino", "tensorrt"} & set(device.backends[:1]))]
    return Setup(
        checkpoint=_inside(root, checkpoint) if is_file else checkpoint,
        target=_inside(root, target) if target.endswith(".toml") else target,
        profile=_inside(root, wanted) if wanted.endswith(".toml") else wanted,
        install=install or _requirement(extras),
        is_network=network,
    )


def _requirement(extras: Sequence[str]) -> str:
    """Return what pip installs this edgec by: its version, or the commit or archive that it was installed from."""
    from edgec import __version__

    name, origin = f"edgec[{','.join(extras)}]", _origin()
    folder = f"#subdirectory={origin['subdirectory']}" if "subdirectory" in origin else ""
    if "vcs_info" in origin:
        return f"{name} @ {origin['vcs_info']['vcs']}+{origin['url']}@{origin['vcs_info']['commit_id']}{folder}"
    if "archive_info" in origin and not _is_local(origin):
        return f"{name} @ {origin['url']}{folder}"
    return f"{name}=={__version__}"


def _is_local(origin: dict[str, Any]) -> bool:
    """Say whether that place is on this machine, where no runner finds it."""
    return str(origin.get("url", "")).startswith("file:")


def _origin() -> dict[str, Any]:
    """Return where pip installed edgec from, nothing if from an index (PEP 610)."""
    from importlib.metadata import PackageNotFoundError, distribution  # not at every `edgec --help`

    try:
        found: dict[str, Any] = json.loads(distribution("edgec").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return {}
    return found


def _repository() -> Path:
    """Return the root of the git repository around the working directory."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".git").exists():
            return folder
    raise UsageError("this is no git repository", where=str(here), hint="go into one, or name one with --out")


def _inside(root: Path, path: str) -> str:
    """Return a path from the root of the repository, which is all that a workflow can see."""
    full, top = Path(path).resolve(), root.resolve()  # a link out of the repository leads nowhere on a runner
    if not full.is_relative_to(top):
        raise UsageError(
            f"'{path}' is not in the repository", where=str(top), hint="a workflow sees nothing else: put it there"
        )
    return full.relative_to(top).as_posix()


def _advise(root: Path, setup: "Setup") -> None:
    is_code = ":" in setup.checkpoint
    if not (is_code or any((root / name).exists() for name in (setup.checkpoint, setup.target, setup.profile))):
        say("note: no file of the repository decides the bundle: changes and base are the same, until you name some")
    say("next: look at gate.toml, commit these files, and open a request")
