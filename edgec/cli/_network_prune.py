"""What `prune` does for networks: a float .onnx file with fewer channels, or with zeros."""

from pathlib import Path
from typing import TYPE_CHECKING

from edgec.cli import _network
from edgec.cli._console import print_json, print_table, say
from edgec.errors import UsageError

if TYPE_CHECKING:
    from edgec.frontends.source import NetworkOptions
    from edgec.spec.network_profile import NetworkProfile


def prune(
    source: str, target: str, profile: str, options: "NetworkOptions", data: str | None, out: Path, *, as_json: bool
) -> None:
    """Write the directory `out` with what a profile leaves of a network."""
    from shutil import rmtree

    from edgec.bundle.stage import staged
    from edgec.report.network_channels import group_rows, layer_rows, pruning_rows
    from edgec.spec.load import load_network_profile

    wishes = load_network_profile(profile)
    if wishes.wishes.channels is None and wishes.wishes.sparse is None:
        having = [p.name for p in _network_profiles() if p.wishes.channels or p.wishes.sparse]
        raise UsageError(
            f"profile '{wishes.name}' prunes no networks: it has neither [network.channels] nor [network.sparse]",
            hint=f"choose one of {', '.join(having)}, or give it one",
        )
    with staged(out) as folder:
        from edgec.build_network_prune import evidence, make_sparse, shrink, write_float

        found = _network.resolve(source, target, profile, None, options, data, rounds=False)
        left, plan, scratch = found.network, found.plan, folder / "scratch"
        remarks: tuple[str, ...] = ()
        scratch.mkdir()
        if plan.channels is not None:
            left = shrink(left, plan, found.calibration, scratch / "channels")
        if plan.sparse is not None:
            left, remarks = make_sparse(left, plan, found.calibration, scratch / "zeros", lambda _: None)
        pruning = evidence(left, left.model, plan, found.target)
        write_float(left.model, folder)
        rmtree(scratch)
    if as_json:
        print_json({"checkpoint": out, "plan": plan, "pruning": pruning, "remarks": remarks})
    else:
        stored = ("for", f"{plan.target}, built with the weights of profile {plan.profile}")
        rows = [*pruning_rows(plan, pruning), *(("remark", remark) for remark in remarks)]
        print_table(("", ""), [stored, *rows])
        if plan.channels is not None:
            print_table(("layers that give channels", "channels", ""), group_rows(plan))
        if plan.sparse is not None:
            print_table(("layer", "weights", ""), layer_rows(plan))
    say(f"checkpoint: {out / 'model.onnx'}")
    say(_advice(wishes, profile, target, out / "model.onnx"))


def _network_profiles() -> "list[NetworkProfile]":
    """Return what shipped profiles say of networks, of those that do."""
    from edgec.spec.load import list_profiles, load_network_profile

    return [load_network_profile(profile.name) for profile in list_profiles() if profile.network]


def _advice(profile: "NetworkProfile", name: str, target: str, file: Path) -> str:
    """Say what to do with the file: which profile builds it without taking as much away again."""
    import msgspec

    def rest(other: "NetworkProfile") -> object:
        return msgspec.structs.replace(other.wishes, channels=None, verify=profile.wishes.verify)

    build = f"`edgec build {file} --target {target} --profile"
    zeros = " with its zeros held at zero" if profile.wishes.sparse else ""
    if profile.wishes.channels is None:
        return f"next: train it{zeros}, then {build} {name}`, which finds them where they are"
    others = (p for p in _network_profiles() if p.wishes.channels is None)
    same = next((p.name for p in others if rest(p) == rest(profile)), None)
    if same is not None:
        return f"next: train it{zeros}, then {build} {same}`"
    return (
        f"next: train it{zeros}, then {build} FILE` with a copy of profile {profile.name} that has no "
        "[network.channels], which would remove as much again"
    )
