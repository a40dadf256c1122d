"""What `eval` does for networks: models that are no decoder language models."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgec.cli import _network
from edgec.cli._console import print_json, print_table, say
from edgec.errors import UsageError

if TYPE_CHECKING:
    from edgec.calibrate.samples import Samples
    from edgec.frontends.source import NetworkOptions


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
    from edgec.evaluate.network import compare, measure
    from edgec.evaluate.setting import read_text_files, setting_of
    from edgec.evaluate.wanted import wanted_metrics

    if data is None:
        raise UsageError(
            "nothing says what to measure the model on",
            where=str(bundle),
            hint="name samples with --eval-data; models that take text also take --eval-data python-docs",
        )
    if not (metrics or source):
        raise UsageError(
            "nothing says what to measure",
            where=str(bundle),
            hint="name a metric, such as --metric top1, or the float model to compare with: --source MODEL",
        )
    artifact, plan = find_artifact(bundle), read_network_plan(bundle)
    settings, backend = read_network_settings(artifact), backend_of(artifact)
    wanted_metrics(metrics, settings.outputs, alone=source is None)  # before the work
    if note := backend.not_run(artifact):
        say(f"note: {note}")
    count, texts = samples or plan.verify.samples, read_text_files(artifact)
    if source is None:
        _network.refuse("says how to read --source", task=options.task, input=options.inputs, state=options.state)
        _network.refuse("says how to read --source", fix=options.fixed)
        loaded = _network.load(data, settings, count, 0, "evaluation", text_files=texts)
        _tell(loaded)
        outputs = map(backend.open_network(artifact, "shipped").run, loaded.inputs())
        setting = setting_of(settings.labels, settings.task, texts)
        found = measure(outputs, loaded, metrics, ports=settings.outputs, setting=setting)
        _show_alone(loaded, found, as_json=as_json)
        return
    from edgec.calibrate.run import run
    from edgec.frontends.source import open_network
    from edgec.report.network import quality_rows

    _network.check_options(source, options)
    network, _ = open_network(source, options)
    loaded = _network.load(data, settings, count, 0, "evaluation", network)
    _tell(loaded)
    setting = setting_of(settings.labels, settings.task, texts or network.tokenizer_files)
    floats = run(network.model, loaded.inputs())
    shipped = map(backend.open_network(artifact, "shipped").run, loaded.inputs())
    quality = compare(floats, shipped, loaded, metrics, ports=settings.outputs, setting=setting)
    if as_json:
        print_json({"data": loaded.name, "data_sha256": loaded.sha256, "quality": quality})
    else:
        print_table(("", ""), quality_rows(quality), title=f"{loaded.count} samples of {loaded.name}")


def _tell(loaded: "Samples") -> None:
    """Say what was made of the samples that the user did not ask for."""
    for remark in loaded.remarks:
        say(f"note: {remark}")


def _show_alone(loaded: "Samples", values: Mapping[str, float | None], *, as_json: bool) -> None:
    """Print the metrics of a network without its source."""
    if as_json:
        print_json({"data": loaded.name, "data_sha256": loaded.sha256, "samples": loaded.count, **values})
        return
    rows = [(name, "not defined" if value is None else f"{value:.6g}") for name, value in values.items()]
    print_table(("", "value"), rows, title=f"{loaded.count} samples of {loaded.name}")
