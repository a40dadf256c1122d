"""`edgec prune`: a smaller or sparser checkpoint, to train further or to build."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgec.cli import _network
from edgec.cli._console import json_option, print_json, print_table, progress, say
from edgec.cli.plan import resolve_plan
from edgec.errors import UsageError, require

if TYPE_CHECKING:
    from edgec.build_checkpoint import Pruned
    from edgec.checkpoint.export import Dtype
    from edgec.frontends.architecture import Decoder
    from edgec.spec.plan import Plan
    from edgec.spec.profile import Profile


@click.command()
@click.argument("checkpoint", metavar="CHECKPOINT")
@click.option("--profile", required=True, metavar="NAME|FILE", help="What goes: its [slim], its [sparse], or both.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The checkpoint to make."
)
@click.option("--target", default="cpu", show_default=True, metavar="NAME|FILE", help="Where it will run.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="How weights are stored.",
)
@click.option("--ignore-config", multiple=True, metavar="KEY", help="Declare a config.json key harmless; repeatable.")
@_network.source_options
@_network.data_option
@json_option
def command(
    checkpoint: str,
    profile: str,
    out: Path,
    target: str,
    dtype: "Dtype",
    ignore_config: tuple[str, ...],
    task: str | None,
    inputs: tuple[str, ...],
    state: Path | None,
    fixed: tuple[str, ...],
    calibration_data: str | None,
    as_json: bool,
) -> None:
    """Prune CHECKPOINT as a profile says, and write what is left.

    CHECKPOINT is a decoder language model: a Hugging Face directory, a GGUF file or a hub id; or another model that
    `edgec build` takes. Weights stay floats: nothing is quantized, scaled or rotated, and nothing is measured. DIR is
    a Hugging Face directory that transformers loads, to train it further; of other models it holds model.onnx, without
    channels that the profile's [network.channels] takes out. `edgec build` takes both. DIR appears whole or not at all.
    """
    from edgec.bundle.stage import staged
    from edgec.frontends.source import NetworkOptions, is_network
    from edgec.spec.load import list_profiles, load_profile

    if is_network(checkpoint, task):
        from edgec.cli._network_prune import prune

        _network.refuse("is for decoder language models", ignore_config=ignore_config)
        _network.refuse("is for decoder language models: networks are float32", dtype=dtype != "float32")
        options = NetworkOptions(task, inputs, state, fixed)
        prune(checkpoint, target, profile, options, calibration_data, out, as_json=as_json)
        return
    _network.refuse(
        "is for other models than decoder language models", calibration_data=calibration_data,
        input=inputs, state=state, fix=fixed,
    )  # fmt: skip
    wishes = load_profile(profile)
    if wishes.slim is None and wishes.sparse is None:
        pruning = [p.name for p in list_profiles() if p.slim or p.sparse]
        raise UsageError(
            f"profile '{wishes.name}' prunes nothing: it has neither [slim] nor [sparse]",
            hint=f"choose one of {', '.join(pruning)}, or give it a [slim] or a [sparse]",
        )
    require("torch", "build")
    require("onnx_ir", "build")
    with staged(out) as folder:
        from edgec.build_checkpoint import prune_checkpoint, within
        from edgec.checkpoint.export import write_huggingface

        opened, decoder, device, plan, _ = resolve_plan(checkpoint, target, profile, None, ignore_config, False)
        with progress() as bar:
            step = bar.add_task("prune", total=None)
            pruned = prune_checkpoint(
                opened, decoder, device, plan, lambda _: bar.advance(step), frozenset(ignore_config)
            )
            bar.update(step, description="write")
            write_huggingface(within(pruned.checkpoint, dtype), folder, dtype)
    if as_json:
        print_json({"checkpoint": out, "plan": plan, "pruning": pruned.evidence, "remarks": pruned.remarks})
    else:
        print_table(("", ""), _rows(decoder, pruned, plan))
    say(f"checkpoint: {out}")
    say(_advice(wishes, profile, target, out))


def _rows(dense: "Decoder", pruned: "Pruned", plan: "Plan") -> list[tuple[str, str]]:
    """Return what went, and what comes of that on the target when it is built by this profile."""
    from edgec.prune.keep import full
    from edgec.report.page import prediction_rows, zeros_rows

    there, here = full(dense), full(pruned.decoder)
    sizes = (
        ("layers", there.layers, here.layers),
        ("width of the MLPs", there.mlp, here.mlp),
        ("groups of attention heads", there.groups, here.groups),
        ("width of the hidden state", there.hidden, here.hidden),
    )
    before = pruned.evidence.predicted.dense.parameters
    rows = [("parameters", f"{before / 1e6:.1f} M")]
    if plan.slim is not None:
        parameters, *others = prediction_rows(pruned.evidence.predicted)
        rows = [parameters, *((name, f"{old} -> {new}") for name, old, new in sizes if old != new)]
        rows += [("predicted", f"for {plan.target}, built with the weights of profile {plan.profile}"), *others]
    rows += zeros_rows(pruned.evidence.zeros)
    return [*rows, *(("remark", remark) for remark in pruned.remarks)]


def _advice(profile: "Profile", name: str, target: str, out: Path) -> str:
    """Say what to do with the checkpoint: which profile builds it without taking as much away again."""
    from edgec.spec.load import list_profiles

    build = f"`edgec build {out} --target {target} --profile"
    changes = ["without quarot, which mixes zeros with other weights"] if "quarot" in profile.transforms else []
    if profile.sparse is not None and profile.sparse.allocation in ("owl", "sensitivity"):
        changes.append('with method = "magnitude" and allocation = "global", which find the zeros where they are')
    if profile.slim is None and changes:
        changed = f"with a copy of profile {profile.name} {' and '.join(changes)}"
        return f"next: train it with its zeros held at zero, then {build} FILE` {changed}"
    if profile.slim is None:
        return f"next: train it with its zeros held at zero, then {build} {name}`, which finds them where they are"
    zeros = " with its zeros held at zero" if profile.sparse else ""
    wanted = (profile.weights, None, profile.sparse)
    same = next((p.name for p in list_profiles() if (p.weights, p.slim, p.sparse) == wanted), None)
    if same is not None:
        return f"next: train it{zeros}, then {build} {same}`"
    return (
        f"next: train it{zeros}, then {build} FILE` with a copy of profile {profile.name} that has no [slim], "
        "which would remove as much again"
    )
