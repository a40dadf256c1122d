"""What `plan` and `build` do for networks: models that are no decoder language models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._console import print_table, say
from edgec.errors import UsageError

if TYPE_CHECKING:
    from edgec.backends.network import NetworkSettings
    from edgec.calibrate.samples import Samples
    from edgec.evaluate.corpus import Purpose
    from edgec.frontends.network import Network
    from edgec.frontends.source import NetworkOptions
    from edgec.fuse import Fusions
    from edgec.spec.network_plan import NetworkPlan
    from edgec.spec.target import Target

PROFILE = "int8"
"""The default."""

_TEXT = "python-docs"
_BATCH = 8


def source_options(command: Any) -> Any:
    """Add the options that say how a network is read; they come as one argument, `options`."""
    for decorate in (
        click.option("--fix", "fixed", multiple=True, metavar="NAME=N", help="An input that is always N; repeatable."),
        click.option(
            "--state", type=click.Path(path_type=Path), metavar="FILE", help="Weights for what a factory makes."
        ),
        click.option(
            "--input",
            "inputs",
            multiple=True,
            metavar="SPEC",
            help="What a factory's model takes, or sizes that a file leaves open: image:float32[batch,3,224,224].",
        ),
        click.option(
            "--task", metavar="NAME", help="What a network is for, by optimum's name.  [default: its config's]"
        ),
    ):
        command = decorate(command)
    return command


def data_option(command: Any) -> Any:
    """Add the option that names samples for calibration."""
    return click.option(
        "--calibration-data",
        metavar="PATH",
        help="Samples for a network's activations, channels and zeros.  [default: text, if it takes it]",
    )(command)


def refuse(why: str, **options: object) -> None:
    """Refuse options that would do nothing here; those that were not given are None, False or empty."""
    for name, value in options.items():
        if value:
            raise UsageError(f"--{name.replace('_', '-')} {why}", hint="leave it out")


def check_options(source: str, options: "NetworkOptions") -> None:
    """Refuse options that say nothing about such a source."""
    path = Path(source)
    if path.suffix.lower() == ".onnx" or path.suffix.lower() == ".pt2":
        refuse("is for Hugging Face directories, whose config has a task", task=options.task)
        refuse("is for factories: this file has its weights", state=options.state)
    elif path.is_dir():
        refuse("is for factories: a Hugging Face directory has its weights", state=options.state)
    else:
        refuse("is for Hugging Face directories, whose config has a task", task=options.task)
    if path.suffix.lower() == ".pt2":
        refuse("says nothing about a .pt2 file, whose inputs were decided when it was saved", input=options.inputs)


def metric_option(command: Any) -> Any:
    """Add the option that names metrics."""
    return click.option(
        "--metric",
        "metrics",
        multiple=True,
        metavar="NAME[:THRESHOLD][@OUTPUT]",
        help="What to measure of a network, such as top1; a threshold makes two classes of a single score: f1:0.5. "
        "Repeatable.",
    )(command)


@dataclass(frozen=True, eq=False)
class Resolved:
    """A network, its plan, and the samples that go into the build."""

    network: "Network"
    fusions: "Fusions"
    target: "Target"
    plan: "NetworkPlan"
    calibration: "Samples | None"


def resolve(
    source: str,
    target: str,
    profile: str,
    backend: str | None,
    options: "NetworkOptions",
    data: str | None,
    *,
    rounds: bool = True,
) -> Resolved:
    """Read a network, and resolve the plan for it; `rounds` says whether anything will be rounded."""
    from edgec.frontends.source import open_network
    from edgec.spec.load import load_network_profile, load_target
    from edgec.spec.network_plan import Data
    from edgec.spec.network_resolve import resolve_network

    check_options(source, options)
    device, wishes = load_target(target), load_network_profile(profile)
    needed = wishes.wishes.needs_samples
    if data is not None and not needed:
        _check_exists(data)
        say(f"note: profile '{wishes.name}' needs no samples: --calibration-data is not read")
    network, fusions = open_network(source, options)
    calibration = None
    if needed:
        wanted = wishes.wishes.calibration
        name = data or _default_text(network)
        if name is not None:
            calibration = load(name, network, wanted.samples, wanted.seed, "calibration", network)
    taken = None
    if calibration is not None:
        taken = Data(calibration.name, calibration.sha256, calibration.count, wishes.wishes.calibration.seed)
    plan = resolve_network(network, device, wishes, backend, taken, calibration, rounds=rounds)
    return Resolved(network, fusions, device, plan, calibration)


def load(
    name: str,
    settings: "Network | NetworkSettings",
    samples: int,
    seed: int,
    purpose: "Purpose",
    network: "Network | None" = None,
    text_files: Mapping[str, bytes] | None = None,
) -> "Samples":
    """Open samples, several in a run where the outputs tell them apart.

    Args:
        name: of the file or folder.
        settings: says what the network takes and gives, and its classes.
        samples: how many, at most.
        seed: of their choice.
        purpose: calibration and evaluation take other parts of a default text.
        network: has what makes inputs of texts, pictures and sound, where it is at hand.
        text_files: of the tokenizer, where it is not.
    """
    from functools import partial

    from edgec.calibrate.samples import load_samples

    opened = partial(
        load_samples,
        name,
        settings.inputs,
        samples=samples,
        seed=seed,
        tokenizer_files=network.tokenizer_files if network else text_files,
        pictures=settings.pictures or (network.pictures if network else None),
        audio=settings.audio or (network.audio if network else None),
        labels=settings.labels,
        purpose=purpose,
    )
    found = opened(batch=_BATCH)
    together = all(found.axis in port.shape for port in settings.outputs) and not _differ(name, settings)
    return found if together or found.batch == 1 else opened(batch=1)


def _differ(name: str, settings: "Network | NetworkSettings") -> bool:
    """Say whether samples have lengths of their own: sounds, where the network leaves open how long they are."""
    from edgec.calibrate.audio import list_waves

    path = Path(name)
    is_text = any(port.name == "input_ids" for port in settings.inputs)
    is_sound = path.suffix.lower() in {".wav", ".jsonl"} or (path.is_dir() and bool(list_waves(path)))
    is_open = any(port.dtype == "float32" and isinstance(port.shape[-1], str) for port in settings.inputs if port.shape)
    return is_sound and is_open and not is_text


def _check_exists(data: str) -> None:
    if data != _TEXT and not Path(data).exists():
        raise UsageError("there is no such file or folder of samples", where=data)


def _default_text(network: "Network") -> str | None:
    takes_text = any(port.name == "input_ids" for port in network.inputs)
    return _TEXT if takes_text and network.tokenizer_files else None


def show_plan(found: Resolved) -> None:
    """Print a plan: what it decides, and every node that becomes int8, or might and does not."""
    from edgec.backends.network import describe_port
    from edgec.report.network_channels import channel_rows, group_rows, layer_rows, prediction_rows, sparse_rows
    from edgec.spec.exploit import what_of_zeros
    from edgec.spec.network_plan import describe

    plan = found.plan
    data = plan.calibration
    rows = [
        ("model", f"{plan.source.family}, {plan.source.parameters / 1e6:.1f} M parameters, {plan.source.format}"),
        *(("takes", describe_port(port)) for port in plan.inputs),
        *(("gives", describe_port(port)) for port in plan.outputs),
        ("target, backend", f"{plan.target}, {plan.backend}"),
        ("profile", f"{plan.profile}: {describe(plan)}"),
    ]
    rows += channel_rows(plan)
    if plan.channels is not None:
        rows += prediction_rows(plan.channels.predicted)
    rows += sparse_rows(plan)
    if plan.sparse is not None:
        rows.append(("what comes of zeros", what_of_zeros(plan, found.target, len(plan.sparse.kernels))))
    if data is not None:
        rows.append(("calibration", f"{data.samples} samples of {data.name}, seed {data.seed}"))
    near = f"cosine with the float model {plan.verify.min_cosine:g}, SNR {plan.verify.min_snr_db:g} dB"
    rows += [
        ("bounds", f"{near}, metrics worse by {plan.verify.max_drop:g}"),
        *(("remark", remark) for remark in found.network.remarks),
        *(("remark", remark) for remark in (found.calibration.remarks if found.calibration else ())),
        ("plan", plan.sha256()),
    ]
    print_table(("", ""), rows)
    if plan.channels is not None:
        print_table(("layers that give channels", "channels", ""), group_rows(plan))
    if plan.sparse is not None:
        print_table(("layer", "weights", ""), layer_rows(plan))
    kinds = {str(node.name): node.op_type for node in found.network.model.graph.all_nodes()}
    nodes = [(name, kinds.get(name, ""), "int8") for name in plan.int8]
    nodes += [(name, kinds.get(name, ""), f"float: {reason}") for name, reason in plan.floats.items()]
    if nodes:
        print_table(("node", "operator", "computes in"), nodes)


def build(
    found: Resolved,
    bundle: Path,
    eval_data: str | None,
    metrics: tuple[str, ...],
    announce: Callable[[str, int], Callable[[str], object]],
    *,
    verify: bool,
) -> Any:
    """Build a network's bundle, and return the report."""
    from edgec.backends.backend import get_backend
    from edgec.build_network import build_network
    from edgec.evaluate.wanted import wanted_metrics

    get_backend(found.plan.backend).require_compiler(found.target)
    wanted_metrics(metrics, found.network.outputs)  # before samples are looked for
    evaluation = None
    if verify:
        name = eval_data or _default_text(found.network)
        if name is None:
            raise UsageError(
                "nothing says what to measure the model on",
                hint="name samples with --eval-data, or skip verification with --no-verify",
            )
        evaluation = load(name, found.network, found.plan.verify.samples, 0, "evaluation", found.network)
    return build_network(
        found.network,
        found.fusions,
        found.target,
        found.plan,
        bundle,
        calibration=found.calibration,
        evaluation=evaluation,
        metrics=metrics,
        say=announce,
    )
