"""`edgec plan`: resolve a build without building."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli import _network
from edgec.cli._console import json_option, print_json, print_table

if TYPE_CHECKING:
    from edgec.checkpoint.model import Checkpoint
    from edgec.frontends.architecture import Decoder
    from edgec.spec.plan import Plan
    from edgec.spec.preflight import Preflight
    from edgec.spec.target import Target


DECODER_PROFILE = "int4"
"""The default for decoder language models."""


def plan_options(command: Any) -> Any:
    """Add the argument and options that decide a plan."""
    for decorate in (
        click.option("--no-fallback", is_flag=True, help="Refuse a plan with operations that lack their kernel."),
        click.option(
            "--ignore-config", multiple=True, metavar="KEY", help="Declare a config.json key harmless; repeatable."
        ),
        click.option("--backend", metavar="NAME", help="One of the target's backends.  [default: its first]"),
        click.option(
            "--profile",
            metavar="NAME|FILE",
            help=f"What you want.  [default: {DECODER_PROFILE}; {_network.PROFILE} for other than language models]",
        ),
        click.option("--target", default="cpu", show_default=True, metavar="NAME|FILE", help="Where it will run."),
        click.argument("checkpoint", metavar="CHECKPOINT"),
    ):
        command = decorate(command)
    return command


def resolve_plan(
    source: str, target: str, profile: str, backend: str | None, ignore_config: tuple[str, ...], no_fallback: bool
) -> "tuple[Checkpoint, Decoder, Target, Plan, Preflight]":
    """Open the checkpoint, resolve the plan for it and look at its kernels."""
    checkpoint, decoder, device, plan, kernels, _ = _resolve(
        source, target, profile, backend, ignore_config, no_fallback
    )
    return checkpoint, decoder, device, plan, kernels


def _resolve(
    source: str, target: str, profile: str, backend: str | None, ignore_config: tuple[str, ...], no_fallback: bool
) -> "tuple[Checkpoint, Decoder, Target, Plan, Preflight, Decoder]":
    """Return what `resolve_plan` does, and what is left of the decoder."""
    from edgec.checkpoint.open import open_checkpoint
    from edgec.frontends.decoder_tensors import check_tensors
    from edgec.frontends.families import describe
    from edgec.spec.load import load_profile, load_target
    from edgec.spec.plan import resolve
    from edgec.spec.preflight import preflight, refuse_fallbacks
    from edgec.spec.prune_plan import left_of

    device, wishes = load_target(target), load_profile(profile)
    checkpoint, ignored = open_checkpoint(source), frozenset(ignore_config)
    decoder = describe(checkpoint, ignored)
    check_tensors(decoder, checkpoint)
    plan = resolve(checkpoint, decoder, device, wishes, backend, ignored)
    left = left_of(checkpoint, decoder, plan.slim, ignored)
    kernels = preflight(left, plan, device)
    if no_fallback:
        refuse_fallbacks(kernels)
    return checkpoint, decoder, device, plan, kernels, left


@click.command()
@plan_options
@_network.source_options
@_network.data_option
@json_option
def command(
    checkpoint: str,
    target: str,
    profile: str | None,
    backend: str | None,
    ignore_config: tuple[str, ...],
    no_fallback: bool,
    task: str | None,
    inputs: tuple[str, ...],
    state: Path | None,
    fixed: tuple[str, ...],
    calibration_data: str | None,
    as_json: bool,
) -> None:
    """Show what a build would do, checked against the target: storage, memory, and the kernel of each operation.

    CHECKPOINT is what `edgec build` takes. Nothing is built. Exit code 4 means that the target cannot do it.
    """
    from edgec.frontends.source import NetworkOptions, is_network

    if is_network(checkpoint, task):
        _network.refuse("is for decoder language models", ignore_config=ignore_config, no_fallback=no_fallback)
        options = NetworkOptions(task, inputs, state, fixed)
        found = _network.resolve(checkpoint, target, profile or _network.PROFILE, backend, options, calibration_data)
        if as_json:
            print_json({"plan": found.plan})
        else:
            _network.show_plan(found)
        return
    _network.refuse(
        "is for other models than decoder language models", calibration_data=calibration_data,
        input=inputs, state=state, fix=fixed,
    )  # fmt: skip
    _, decoder, device, plan, kernels, left = _resolve(
        checkpoint, target, profile or DECODER_PROFILE, backend, ignore_config, no_fallback
    )
    pruning = _pruning(decoder, left, device, plan)
    if as_json:
        print_json({"plan": plan, "preflight": kernels, **({"pruning": pruning} if pruning else {})})
        return
    print_table(("", ""), [*_plan_rows(plan, Path(checkpoint).name), *_memory_rows(plan, device)])
    print_table(("where", "operation", "kernel", "MiB/token"), _kernel_rows(kernels))
    print_table(("", ""), [*_cost_rows(kernels), *_pruning_rows(pruning)])


def _pruning(decoder: "Decoder", left: "Decoder", target: "Target", plan: "Plan") -> "dict[str, Any] | None":
    """Return what pruning will give, and what comes of its zeros; None where nothing is pruned."""
    from edgec.spec.exploit import eligible, what_of_zeros
    from edgec.spec.prediction import predict

    if plan.slim is None and plan.sparse is None:
        return None
    found: dict[str, Any] = {"predicted": predict(decoder, left, plan, target)}
    if plan.sparse is not None:
        sparse = eligible(left, plan, target)
        found |= {"sparse_kernels": sparse, "zeros": what_of_zeros(plan, target, len(sparse))}
    return found


def _pruning_rows(found: "dict[str, Any] | None") -> list[tuple[str, str]]:
    from edgec.report.page import prediction_rows
    from edgec.spec.layers import describe_matrices

    if found is None:
        return []
    rows = prediction_rows(found["predicted"])
    if "zeros" in found:
        rows.append(("zeros", found["zeros"]))
        rows += [("sparse kernels", describe_matrices(found["sparse_kernels"]))] if found["sparse_kernels"] else []
    return rows


def _plan_rows(plan: "Plan", name: str) -> list[tuple[str, str]]:
    from edgec.report.page import describe_activations, storage_rows

    verify = plan.verify
    bounds = (
        f"perplexity x{verify.max_perplexity_ratio:g}, KL {verify.max_mean_kl:g}, top-1 {verify.min_top1_agreement:g}"
    )
    return [
        ("checkpoint", f"{name}: {plan.source.format}, {plan.source.family}, {plan.source.parameters / 1e6:.1f} M"),
        ("target", plan.target),
        ("backend", plan.backend),
        ("profile", plan.profile),
        *storage_rows(plan),
        ("activations", describe_activations(plan)),
        ("context", f"{plan.context_length} tokens"),
        ("bounds", bounds),
        ("plan", plan.sha256()),
    ]


def _memory_rows(plan: "Plan", target: "Target") -> list[tuple[str, str]]:
    from edgec.backends.session import PROMPT
    from edgec.spec.memory import usable_bytes

    need, usable = plan.estimate, usable_bytes(target)
    total = f"{need.total_bytes / _MIB:.1f} MiB"
    return [
        ("memory: weights", f"{need.weight_bytes / _MIB:.1f} MiB as the runtime keeps them"),
        ("memory: KV cache", f"{need.kv_cache_bytes / _MIB:.1f} MiB at full context, stored as {plan.kv_cache}"),
        ("memory: activations", f"{need.activation_bytes / _MIB:.1f} MiB for {PROMPT} tokens of a prompt at once"),
        ("memory: runtime", f"{need.runtime_bytes / _MIB:.1f} MiB for itself and while it loads"),
        ("memory: all", total if usable is None else f"{total} of {usable / _MIB:.0f} MiB that a model may use"),
    ]


def _kernel_rows(found: "Preflight") -> list[tuple[str, str, str, str]]:
    """Return a line for each operation; layers that look alike share theirs."""
    from collections import defaultdict

    layers: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    sizes: dict[tuple[str, str, str], int] = defaultdict(int)
    for row in found.rows:
        parts = row.block.split(".")
        key = (parts[-1], row.operation, f"{row.kernel}  [falls back]" if row.fallback else row.kernel)
        layers[key] += [int(parts[1])] if len(parts) > 1 else []
        sizes[key] += row.bytes_per_token
    return [
        (_where(key[0], layers[key]), key[1], key[2], f"{size / _MIB:.2f}" if (size := sizes[key]) else "")
        for key in layers
    ]


def _where(block: str, layers: list[int]) -> str:
    """Return "mlp 0-3, 5" for layers 0, 1, 2, 3 and 5."""
    from edgec.spec.layers import ranges

    return f"{block} {ranges(dict.fromkeys(layers))}".strip()


def _cost_rows(found: "Preflight") -> list[tuple[str, str]]:
    from collections import Counter

    time = found.memory_ms_per_token
    floor = "" if time is None else f", at least {time:.2f} ms at the target's memory bandwidth"
    rows = [("memory read for a token", f"{found.bytes_per_token / _MIB:.1f} MiB{floor}")]
    reasons = Counter(row.fallback for row in found.fallbacks)
    for reason, count in reasons.items():
        extra = sum(row.fallback_bytes for row in found.fallbacks if row.fallback == reason)
        cost = f"; {extra / _MIB:.1f} MiB more for a token" if extra else ""
        rows.append(("falls back", f"{count} x {reason}{cost}"))
    if not reasons:
        rows.append(("falls back", "nothing"))
    return [*rows, *(("not certain", caveat) for caveat in dict.fromkeys(row.caveat for row in found.rows) if caveat)]


_MIB = 2**20
