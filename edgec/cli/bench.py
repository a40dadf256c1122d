"""`edgec bench`: time bundles on this machine."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._console import json_option, print_json, print_table, progress
from edgec.errors import UsageError, require

if TYPE_CHECKING:
    from edgec.measure.workload import Scenario, Workload

_PROMPT_TOKENS, _NEW_TOKENS = 128, 64
_RUNS, _REPEATS = 100, 5
# With fewer rounds a bootstrap often draws the same round throughout, and says little of how far intervals reach.
_ROUNDS, _FEWEST_ROUNDS = 8, 5
_COUNT = click.IntRange(min=1)
# As edgec/measure/workload.py has it, which takes too long to import for `edgec --help`.
_MOST_TOKENS = 1_000_000
_ROWS, _LENGTH, _THREADS = click.IntRange(1, 65_536), click.IntRange(1, _MOST_TOKENS), click.IntRange(1, 1024)
_DIGITS = 9


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE...")
@click.option("--compare", is_flag=True, help="Race several bundles; the others are compared with the first.")
@click.option(
    "--scenario",
    type=click.Choice(["single-stream", "offline", "server"]),
    help="One query after the other, --batch rows at once, or queries that arrive at random.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True, max=1e6),
    metavar="N",
    help="Queries that arrive in a second, for --scenario server.",
)
@click.option("--batch", type=_ROWS, metavar="N", help="Rows at once, for --scenario offline.  [default: 1]")
@click.option(
    "--prompt-tokens", multiple=True, type=_LENGTH, metavar="N", help=f"Repeatable.  [default: {_PROMPT_TOKENS}]"
)
@click.option("--new-tokens", multiple=True, type=_LENGTH, metavar="N", help=f"Repeatable.  [default: {_NEW_TOKENS}]")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="NAME=N",
    help="A size that a network leaves open; repeatable.  [default: 128]",
)
@click.option("--runs", type=_COUNT, metavar="N", help=f"Of a network, alone.  [default: {_RUNS}]")
@click.option("--repeats", type=_COUNT, metavar="N", help=f"Of a decoder, alone.  [default: {_REPEATS}]")
@click.option(
    "--rounds", type=_COUNT, metavar="N", help=f"Of fresh processes, in a race or a scenario.  [default: {_ROUNDS}]"
)
@click.option("--threads", type=_THREADS, metavar="N", help="[default: the runtime's choice]")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="A .png or .svg of what --compare finds.")
@json_option
def command(*, bundles: tuple[Path, ...], compare: bool, plot: Path | None, as_json: bool, **options: Any) -> None:
    """Measure latency, memory and size of bundles on this machine.

    A BUNDLE is what `edgec build` made, or any decoder's directory for onnxruntime-genai or openvino_genai. The prompt
    is random tokens; decoding is greedy, one row. Other models run on made-up inputs, one sample.

    With --compare, a scenario or several lengths, bundles run in turn, in rounds of fresh processes. Energy is
    measured where the processor tells.
    """
    wanted = _Wanted(**options)
    _check(bundles, plot, wanted, compare=compare)
    _check_kind(bundles[0], wanted)
    if compare or wanted.races():
        _race(bundles, plot, wanted, as_json=as_json)
    else:
        _alone(bundles[0], wanted, as_json=as_json)


@dataclass(frozen=True)
class _Wanted:
    """The options that say what is measured; see `command`."""

    scenario: "Scenario | None"
    rate: float | None
    batch: int | None
    prompt_tokens: tuple[int, ...]
    new_tokens: tuple[int, ...]
    sizes: tuple[str, ...]
    runs: int | None
    repeats: int | None
    rounds: int | None
    threads: int | None

    def races(self) -> bool:
        """Say whether one bundle is measured in fresh processes, as several are."""
        several = len(self.prompt_tokens) > 1 or len(self.new_tokens) > 1
        return several or any(each is not None for each in (self.scenario, self.rate, self.batch, self.rounds))

    def workloads(self) -> "tuple[Workload, ...]":
        from edgec.gate.settings import Grid

        return Grid(
            scenario=self.scenario or "single-stream",
            prompt_tokens=tuple(dict.fromkeys(self.prompt_tokens)) or _PROMPT_TOKENS,
            new_tokens=tuple(dict.fromkeys(self.new_tokens)) or _NEW_TOKENS,
            batch=self.batch or 1,
            rate_per_s=self.rate,
            sizes=_sizes(self.sizes),
        ).workloads()


def _check(bundles: tuple[Path, ...], plot: Path | None, wanted: _Wanted, *, compare: bool) -> None:
    """Refuse options that contradict each other."""
    if compare and len(bundles) < 2:
        raise UsageError("--compare takes at least two bundles", hint="edgec bench --compare A B")
    if not compare and len(bundles) > 1:
        raise UsageError("there are several bundles", hint="edgec bench --compare A B")
    if compare and (wanted.rounds or _ROUNDS) < _FEWEST_ROUNDS:
        raise UsageError(f"an interval takes at least {_FEWEST_ROUNDS} rounds", hint="raise --rounds")
    if plot and not compare:
        raise UsageError("a plot compares bundles", hint="edgec bench --compare A B --plot FILE")
    if (wanted.scenario == "server") != (wanted.rate is not None):
        raise UsageError("--scenario server and --rate belong together", hint="such as --scenario server --rate 5")
    if wanted.rate is not None and math.isnan(wanted.rate):  # which is within all limits
        raise UsageError("--rate is no number", hint="such as --rate 5")
    if wanted.batch is not None and wanted.scenario != "offline":
        raise UsageError("--batch is for --scenario offline", hint="such as --scenario offline --batch 8")
    for name in ("runs", "repeats"):
        if getattr(wanted, name) is not None and (compare or wanted.races()):
            raise UsageError(f"--{name} is for one bundle alone, without a scenario", hint="--rounds says how often")


def _check_kind(bundle: Path, wanted: _Wanted) -> None:
    """Refuse options that are for models of the other kind."""
    from edgec.bundle.open import find_artifact, is_network_bundle

    is_network = is_network_bundle(find_artifact(bundle))
    prompts = {"prompt-tokens": wanted.prompt_tokens, "new-tokens": wanted.new_tokens, "repeats": wanted.repeats}
    inputs = {"size": wanted.sizes, "runs": wanted.runs}
    for name, value in (prompts if is_network else inputs).items():
        if value:
            kind, is_ = ("decoder language models", "is none") if is_network else ("other models", "is a decoder")
            raise UsageError(
                f"--{name} is for {kind}, and this {is_}",
                where=str(bundle),
                hint=f"see {', '.join(f'--{other}' for other in (inputs if is_network else prompts))}",
            )


def _race(bundles: tuple[Path, ...], plot: Path | None, wanted: _Wanted, *, as_json: bool) -> None:
    from edgec.cli._bench import show
    from edgec.gate.side_by_side import put_side_by_side
    from edgec.gate.side_by_side_plot import check_plot, draw
    from edgec.whole_file import write_whole

    workloads = wanted.workloads()
    if plot:
        check_plot(plot)
    if len(bundles) > 1:
        require("scipy", "gate")
    rounds = wanted.rounds or _ROUNDS
    with progress() as bar:
        step = bar.add_task("round", total=rounds)
        result = put_side_by_side(
            bundles, workloads, rounds=rounds, threads=wanted.threads, tick=lambda: bar.update(step, advance=1)
        )
    if plot:  # before the table, which its reader may leave unread
        write_whole(plot, draw(result, plot.suffix.lower()), "the plot")
    if as_json:
        print_json(result)
    else:
        show(result)


def _sizes(settings: tuple[str, ...]) -> dict[str, int]:
    found = {}
    for setting in settings:
        name, _, number = setting.partition("=")
        if not (number.isascii() and number.isdigit() and len(number) <= _DIGITS and 0 < int(number) <= _MOST_TOKENS):
            raise UsageError(f"'{setting}' gives no size", hint="such as --size sequence=128")
        found[name] = int(number)
    return found


def _alone(bundle: Path, wanted: _Wanted, *, as_json: bool) -> None:
    from edgec.bundle.open import find_artifact, is_network_bundle
    from edgec.cli._bench import decoder_rows, network_rows
    from edgec.measure.benchmark import Benchmark, NetworkBenchmark, bench_decoder, bench_network

    artifact = find_artifact(bundle)
    result: Benchmark | NetworkBenchmark
    if is_network_bundle(artifact):
        sizes, runs = _sizes(wanted.sizes), wanted.runs or _RUNS
        result = bench_network(artifact, sizes=sizes, runs=runs, threads=wanted.threads)
        rows = network_rows(result)
    else:
        result = bench_decoder(
            artifact,
            prompt_tokens=next(iter(wanted.prompt_tokens), _PROMPT_TOKENS),
            new_tokens=next(iter(wanted.new_tokens), _NEW_TOKENS),
            repeats=wanted.repeats or _REPEATS,
            threads=wanted.threads,
        )
        rows = decoder_rows(result)
    if as_json:
        print_json(result)
    else:
        print_table(("", ""), rows)
