"""What `prune` does for networks: a float .onnx file with fewer channels."""

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
    from edgec.bundle.stage import staged
    from edgec.report.network_channels import channel_rows, group_rows, prediction_rows
    from edgec.spec.load import load_network_profile

    wishes = load_network_profile(profile)
    if wishes.wishes.channels is None:
        raise UsageError(
            f"profile '{wishes.name}' prunes no networks: it has no [network.channels]",
            hint=f"choose one of {', '.join(p.name for p in _network_profiles() if p.wishes.channels)}, or give it one",
        )
    with staged(out) as folder:
        from edgec.build_network_prune import shrink, write_float

        found = _network.resolve(source, target, profile, None, options, data)
        left = shrink(found.network, found.plan, found.calibration, folder / "scratch")
        write_float(left.model, folder)
        (folder / "scratch").unlink()
    plan = found.plan
    assert plan.channels is not None
    if as_json:
        print_json({"checkpoint": out, "plan": plan})
    else:
        stored = ("predicted", f"for {plan.target}, built with the weights of profile {plan.profile}")
        print_table(("", ""), [*channel_rows(plan), stored, *prediction_rows(plan.channels.predicted)])
        print_table(("layers that give channels", "channels", ""), group_rows(plan))
    say(f"checkpoint: {out / 'model.onnx'}")
    say(_advice(wishes, target, out / "model.onnx"))


def _network_profiles() -> "list[NetworkProfile]":
    """Return what shipped profiles say of networks, of those that do."""
    from edgec.spec.load import list_profiles, load_network_profile

    return [load_network_profile(profile.name) for profile in list_profiles() if profile.network]


def _advice(profile: "NetworkProfile", target: str, file: Path) -> str:
    """Say what to do with the file: which profile builds it without taking as much away again."""
    import msgspec

    def rest(other: "NetworkProfile") -> object:
        return msgspec.structs.replace(other.wishes, channels=None, verify=profile.wishes.verify)

    build = f"`edgec build {file} --target {target} --profile"
    others = (p for p in _network_profiles() if p.wishes.channels is None)
    same = next((p.name for p in others if rest(p) == rest(profile)), None)
    if same is not None:
        return f"next: train it, then {build} {same}`"
    return (
        f"next: train it, then {build} FILE` with a copy of profile {profile.name} that has no [network.channels], "
        "which would remove as much again"
    )
