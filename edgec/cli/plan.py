"""`edgec plan`: resolve a build without building."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._console import json_option, print_json, print_table

if TYPE_CHECKING:
    from edgec.checkpoint.model import Checkpoint
    from edgec.frontends.architecture import Decoder
    from edgec.spec.plan import Plan


def plan_options(command: Any) -> Any:
    """Add the argument and options that decide a plan."""
    for decorate in (
        click.option(
            "--ignore-config", multiple=True, metavar="KEY", help="Declare a config.json key harmless; repeatable."
        ),
        click.option("--backend", metavar="NAME", help="One of the target's backends.  [default: its first]"),
        click.option("--profile", default="int4", show_default=True, metavar="NAME|FILE", help="What you want."),
        click.option("--target", default="cpu", show_default=True, metavar="NAME|FILE", help="Where it will run."),
        click.argument("checkpoint", metavar="CHECKPOINT"),
    ):
        command = decorate(command)
    return command


def resolve_plan(
    source: str, target: str, profile: str, backend: str | None, ignore_config: tuple[str, ...]
) -> "tuple[Checkpoint, Decoder, Plan]":
    """Open the checkpoint and resolve the plan for it."""
    from edgec.checkpoint.open import open_checkpoint
    from edgec.frontends.decoder_tensors import check_tensors
    from edgec.frontends.families import describe
    from edgec.spec.load import load_profile, load_target
    from edgec.spec.plan import resolve

    wanted = load_target(target), load_profile(profile)
    checkpoint = open_checkpoint(source)
    decoder = describe(checkpoint, frozenset(ignore_config))
    check_tensors(decoder, checkpoint)
    return checkpoint, decoder, resolve(checkpoint, decoder, *wanted, backend)


@click.command()
@plan_options
@json_option
def command(
    checkpoint: str, target: str, profile: str, backend: str | None, ignore_config: tuple[str, ...], as_json: bool
) -> None:
    """Show what a build would do, checked against the target.

    CHECKPOINT is a Hugging Face directory, a GGUF file, or a hub id.
    """
    from edgec.spec.plan import check_backend

    _, _, plan = resolve_plan(checkpoint, target, profile, backend, ignore_config)
    if as_json:
        print_json(plan)
    else:
        show_plan(plan, Path(checkpoint).name)
    check_backend(plan)


def show_plan(plan: "Plan", name: str) -> None:
    """Print the plan as a table."""
    from edgec.report.page import describe_storage

    verify = plan.verify
    bounds = (
        f"perplexity x{verify.max_perplexity_ratio:g}, KL {verify.max_mean_kl:g}, top-1 {verify.min_top1_agreement:g}"
    )
    rows = [
        ("checkpoint", f"{name}: {plan.source.format}, {plan.source.family}, {plan.source.parameters / 1e6:.1f} M"),
        ("target", plan.target),
        ("backend", plan.backend),
        ("profile", plan.profile),
        ("layers", describe_storage(plan.weights)),
        ("embedding, output matrix", describe_storage(plan.embedding)),
        ("accuracy level", f"{plan.accuracy_level} ({_ACCURACY[plan.accuracy_level]})"),
        ("context", f"{plan.context_length} tokens"),
        ("weights", f"{plan.estimate.weight_bytes / 2**20:.1f} MiB"),
        ("KV cache", f"{plan.estimate.kv_cache_bytes / 2**20:.1f} MiB at full context"),
        ("bounds", bounds),
        ("plan", plan.sha256()),
    ]
    print_table(("", ""), rows)


_ACCURACY = {
    0: "the runtime's choice",
    1: "float32 activations",
    2: "float16 activations",
    3: "bfloat16 activations",
    4: "int8 activations in integer matmuls",
}
