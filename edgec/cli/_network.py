"""What `plan` and `build` do for networks: models that are no decoder language models."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._console import print_json, print_table, say
from edgec.errors import UsageError

if TYPE_CHECKING:
    from edgec.backends.network import NetworkSettings
    from edgec.calibrate.samples import Samples
    from edgec.evaluate.corpus import Purpose
    from edgec.evaluate.network import NetworkQuality
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
        help="Samples for a network's activations.  [default: text, if it takes it]",
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
    source: str, target: str, profile: str, backend: str | None, options: "NetworkOptions", data: str | None
) -> Resolved:
    """Read a network, and resolve the plan for it."""
    from edgec.frontends.source import open_network
    from edgec.spec.load import load_network_profile, load_target
    from edgec.spec.network_plan import Data
    from edgec.spec.network_resolve import resolve_network

    device, wishes = load_target(target), load_network_profile(profile)
    network, fusions = open_network(source, options)
    calibration = None
    if wishes.wishes.is_static:
        wanted = wishes.wishes.calibration
        name = data or _default_text(network)
        if name is not None:
            calibration = load(name, network, wanted.samples, wanted.seed, "calibration", network)
    taken = None
    if calibration is not None:
        taken = Data(calibration.name, calibration.sha256, calibration.count, wishes.wishes.calibration.seed)
    plan = resolve_network(network, device, wishes, backend, taken)
    return Resolved(network, fusions, device, plan, calibration)


def load(
    name: str,
    settings: "Network | NetworkSettings",
    samples: int,
    seed: int,
    purpose: "Purpose",
    network: "Network | None" = None,
) -> "Samples":
    """Open samples, several in a run where the outputs tell them apart.

    Args:
        name: of the file or folder.
        settings: says what the network takes and gives, and its classes.
        samples: how many, at most.
        seed: of their choice.
        purpose: calibration and evaluation take other parts of a default text.
        network: has what makes inputs of texts and pictures, where it is at hand.
    """
    from functools import partial

    from edgec.calibrate.samples import load_samples

    opened = partial(
        load_samples,
        name,
        settings.inputs,
        samples=samples,
        seed=seed,
        tokenizer_files=network.tokenizer_files if network else {},
        pictures=network.pictures if network else None,
        labels=settings.labels,
        purpose=purpose,
    )
    found = opened(batch=_BATCH)
    together = all(found.axis in port.shape for port in settings.outputs)
    return found if together or found.batch == 1 else opened(batch=1)


def _default_text(network: "Network") -> str | None:
    takes_text = any(port.name == "input_ids" for port in network.inputs)
    return _TEXT if takes_text and network.tokenizer_files else None


def show_plan(found: Resolved) -> None:
    """Print a plan: what it decides, and every node that becomes int8, or might and does not."""
    from edgec.backends.network import describe_port
    from edgec.report.network import describe

    plan = found.plan
    data = plan.calibration
    rows = [
        ("model", f"{plan.source.family}, {plan.source.parameters / 1e6:.1f} M parameters, {plan.source.format}"),
        *(("takes", describe_port(port)) for port in plan.inputs),
        *(("gives", describe_port(port)) for port in plan.outputs),
        ("target, backend", f"{plan.target}, {plan.backend}"),
        ("profile", f"{plan.profile}: {describe(plan)}"),
    ]
    if data is not None:
        rows.append(("calibration", f"{data.samples} samples of {data.name}, seed {data.seed}"))
    rows += [
        (
            "bounds",
            f"cosine with the float model {plan.verify.min_cosine:g}, metrics worse by {plan.verify.max_drop:g}",
        ),
        *(("remark", remark) for remark in found.network.remarks),
        ("plan", plan.sha256()),
    ]
    print_table(("", ""), rows)
    kinds = {str(node.name): node.op_type for node in found.network.model.graph}
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
    from edgec.evaluate.metrics import metric_of, split

    get_backend(found.plan.backend).require_compiler(found.target)
    for metric in metrics:  # before the work
        metric_of(split(metric)[0])
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


def evaluate(
    bundle: Path,
    source: str | None,
    options: "NetworkOptions",
    data: str | None,
    metrics: tuple[str, ...],
    samples: int | None,
    *,
    as_json: bool,
) -> None:
    """Measure a network's bundle on samples, alone or beside its source, and print what was found."""
    from edgec.backends.backend import backend_of
    from edgec.backends.network import read_network_settings
    from edgec.bundle.open import find_artifact, read_network_plan
    from edgec.evaluate.metrics import Setting
    from edgec.evaluate.network import compare
    from edgec.report.network import quality_rows

    if data is None or not (metrics or source):
        raise UsageError(
            "say what to measure, and on what", hint="such as --eval-data samples.npz --metric top1, or --source MODEL"
        )
    artifact, plan = find_artifact(bundle), read_network_plan(bundle)
    settings, backend = read_network_settings(artifact), backend_of(artifact)
    if note := backend.not_run(artifact):
        say(f"note: {note}")
    network = None
    if source is not None:
        from edgec.frontends.source import open_network

        network, _ = open_network(source, options)
    loaded = load(data, settings, samples or plan.verify.samples, 0, "evaluation", network)
    session = backend.open_network(artifact, "shipped")
    setting = Setting(settings.labels)
    if network is None:
        outputs = [session.run(batch) for batch in loaded.inputs()]
        found = compare(outputs, outputs, loaded, metrics, ports=settings.outputs, setting=setting)
        _show_alone(loaded, found, as_json=as_json)
        return
    from edgec.calibrate.run import run

    floats, shipped = run(network.model, loaded.inputs()), map(session.run, loaded.inputs())
    found = compare(floats, shipped, loaded, metrics, ports=settings.outputs, setting=setting)
    if as_json:
        print_json({"data": loaded.name, "data_sha256": loaded.sha256, "quality": found})
    else:
        print_table(("", ""), quality_rows(found), title=f"{loaded.count} samples of {loaded.name}")


def _show_alone(loaded: "Samples", found: "NetworkQuality", *, as_json: bool) -> None:
    """Print the metrics of a network without its source."""
    values = {metric.name: metric.test for metric in found.metrics}
    if as_json:
        print_json({"data": loaded.name, "data_sha256": loaded.sha256, "samples": loaded.count, **values})
        return
    rows = [(name, "not defined" if value is None else f"{value:.6g}") for name, value in values.items()]
    print_table(("", "value"), rows, title=f"{loaded.count} samples of {loaded.name}")
