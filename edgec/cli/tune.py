"""`edgec tune`: choose the precision of each layer for a budget, and what may go."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._console import json_option, print_json, print_table, progress, say
from edgec.cli.plan import DECODER_PROFILE, plan_options, resolve_plan
from edgec.errors import OutputError, RegressionError, UsageError, require

if TYPE_CHECKING:
    from edgec.tune.budget import Budget
    from edgec.tune.task import Task
    from edgec.tune.tune import Tuned


@click.command()
@plan_options
@click.option("--max-size", metavar="SIZE", help="The artifact's files: 90MB, 85MiB.")
@click.option("--max-latency", metavar="TIME", help="For a token after the prompt: 12ms.")
@click.option("--max-ppl-increase", metavar="SHARE", help="The smallest artifact whose perplexity grows by this: 2%.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True, metavar="FILE.toml", help="The profile to write."
)
@click.option(
    "--candidates",
    metavar="LIST",
    help="Storages to choose from, such as int8, int4/32/kquant, or fp16+2:4 with zeros.  [default: what the target "
    "takes of int4/32,int4/64,int4/128,int8,fp16; for a latency also with zeros where there are sparse kernels]",
)
@click.option(
    "--slim",
    "slims",
    multiple=True,
    metavar="SHARE[:PARTS]",
    help="A shape to try beside the profile's: 25%:mlp,heads is without a quarter of the parameters; repeatable.",
)
@click.option("--tokens", type=click.IntRange(min=64), default=512, show_default=True, help="Of text for each unit.")
@click.option("--search", type=click.Choice(["grid", "bayes"]), help="Search zero points, groups and algorithm too.")
@click.option("--trials", type=click.IntRange(min=1), default=16, show_default=True, help="Of the search.")
@click.option("--eval-text", type=click.Path(path_type=Path), metavar="FILE", help="Text to measure the result on.")
@json_option
def command(
    checkpoint: str,
    target: str,
    profile: str | None,
    backend: str | None,
    ignore_config: tuple[str, ...],
    no_fallback: bool,
    max_size: str | None,
    max_latency: str | None,
    max_ppl_increase: str | None,
    out: Path,
    candidates: str | None,
    slims: tuple[str, ...],
    tokens: int,
    search: Any,
    trials: int,
    eval_text: Path | None,
    as_json: bool,
) -> None:
    """Choose the precision of each layer of CHECKPOINT for a budget, and what may go: a profile for `edgec build`.

    How much quantizing each group of matrices alone changes the model's predictions is measured, layer by layer, on
    the profile's calibration text; the best mixture inside the budget is solved for exactly, and measured as a whole.
    Beside FILE.toml, FILE.md says why each layer is stored as it is, and FILE.png shows the best mixtures of all
    budgets. What was measured is kept in the cache ($EDGEC_CACHE): after an interruption the work goes on.

    Zeros (+2:4) are taken where they make a token faster. Each --slim is a shape in which the best mixture is found,
    too; the best of all shapes is written. All are measured against CHECKPOINT as it is. What a profile with [slim]
    leaves out is always out; one with [sparse] makes the usual candidates sparse, but for what it skips.

    Algorithms that need more than one matrix (gptq, autoround, sparsegpt) are measured as mse and wanda, and a search
    leaves them alone. Growth of perplexity is bounded by its upper end: 1.645 standard errors above what was measured
    (95 %).

    Exit code 4 means that the budget is impossible, 1 that perplexity grows by more on the text of --eval-text.
    """
    budget = _budget(max_size, max_latency, max_ppl_increase)
    _check_out(out)
    for package, extra in (("torch", "build"), ("onnx_ir", "build"), ("scipy", "tune"), ("matplotlib", "tune")):
        require(package, extra, load=False)
    from edgec.cli.build import evaluation_corpus
    from edgec.frontends.source import is_network
    from edgec.spec.load import load_profile
    from edgec.tune.shapes import parse_slim
    from edgec.tune.task import Task
    from edgec.tune.tune import tune

    if is_network(checkpoint, None):
        raise UsageError(
            "tune chooses storage for decoder language models, and this is another model",
            where=checkpoint,
            hint="`edgec build` leaves in float what hurts other models: see keep_float in docs/networks.md",
        )
    base = profile or DECODER_PROFILE
    opened, decoder, device, plan, _ = resolve_plan(checkpoint, target, base, backend, ignore_config, False)
    wishes = load_profile(base)
    corpus = evaluation_corpus(opened.tokenizer_files(), plan, eval_text)
    task = Task(
        checkpoint=opened,
        decoder=decoder,
        target=device,
        profile=wishes,
        plan=plan,
        budget=budget,
        tokens=tokens,
        labels=[label.strip() for label in candidates.split(",")] if candidates else [],
        slims=[parse_slim(text, wishes.slim) for text in slims],
        ignored=frozenset(ignore_config),
        no_fallback=no_fallback,
        search=search,
        trials=trials,
        evaluation=corpus,
    )
    with progress() as bar:

        def announce(stage: str, steps: int) -> Callable[[str], object]:
            step = bar.add_task(stage, total=steps or None)
            return lambda _: bar.advance(step)

        tuned = tune(task, out.stem, announce)
    files = _write(task, tuned, out, corpus.name)
    if as_json:
        print_json(_result(tuned, files))
    else:
        _show(task, tuned, corpus.name)
        say(f"profile: {files[0]}; reasons: {files[1]}; picture: {files[2]}")
    _check_growth(task, tuned, corpus.name)


def _budget(size: str | None, latency: str | None, perplexity: str | None) -> "Budget":
    from edgec.tune.budget import Kind, parse

    options: dict[Kind, str | None] = {"size": size, "latency": latency, "perplexity": perplexity}
    given = [(kind, text) for kind, text in options.items() if text is not None]
    if len(given) != 1:
        raise UsageError("give one budget", hint="--max-size 90MB, --max-latency 12ms, or --max-ppl-increase 2%")
    return parse(*given[0])


def _check_out(out: Path) -> None:
    """Refuse, before any work, what could not be written after it."""
    if out.suffix != ".toml":
        raise UsageError(f"'{out}' is no .toml file", hint="profiles are TOML: --out small.toml")
    if not out.parent.is_dir():
        raise OutputError(f"'{out.parent}' is no folder", hint="make it first")
    for path in (out, out.with_suffix(".md"), out.with_suffix(".png")):
        if path.exists():
            raise OutputError(f"'{path}' exists already", hint="choose another name with --out, or remove it first")
    with _beside(out):
        pass


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """Yield a folder on the disk of `out`, so that what is written there can be renamed.

    Raises:
        OutputError: something cannot be written.
    """
    try:
        with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            yield Path(folder)
    except OSError as error:
        raise OutputError(
            f"cannot write '{out}': {error.strerror or error}", hint="choose another place with --out"
        ) from error


def _write(task: "Task", tuned: "Tuned", out: Path, text: str) -> tuple[Path, Path, Path]:
    from edgec.tune.page import markdown, summary
    from edgec.tune.pareto import draw
    from edgec.tune.profile_file import to_toml

    files = out, out.with_suffix(".md"), out.with_suffix(".png")
    page, picture = files[1:]
    axis = ("ms for a token", 1.0) if task.budget.kind == "latency" else ("size of the artifact, MB", 1e6)
    remarks = [*tuned.remarks, *_evaluated(tuned, text)]
    points = tuned.mixtures, tuned.alike
    title = f"{task.checkpoint.path.name}: {tuned.profile.title}"
    why = markdown(title, tuned.problem, tuned.found, task.budget, points, tuned.shapes, remarks, picture.name)
    comments = [
        f"Written by `edgec tune`; {page.name} says why.",
        *(f"{a}: {b}" for a, b in summary(tuned.found, task.budget, tuned.problem.floats)),
    ]
    with _beside(out) as folder:
        draw(folder / picture.name, tuned.mixtures, tuned.alike, tuned.chosen, axis)
        (folder / page.name).write_text(why, encoding="utf-8")
        (folder / out.name).write_text(to_toml(tuned.profile, comments), encoding="utf-8")
        for path in reversed(files):
            (folder / path.name).replace(path)
    return files


def _evaluated(tuned: "Tuned", text: str) -> list[str]:
    found = tuned.evaluation
    if found is None:
        return []
    words = (
        f"on {found.tokens} tokens of {text}, which nothing was chosen on: KL {found.mean_kl:.5f} +- "
        f"{found.mean_kl_se:.5f} nats, perplexity {found.perplexity_ratio:.4f} +- {found.perplexity_ratio_se:.4f} "
        f"times the source's, the same most likely token for {100 * found.top1_agreement:.2f} %"
    )
    return [words]


def _check_growth(task: "Task", tuned: "Tuned", text: str) -> None:
    from edgec.tune.budget import show

    if task.budget.kind != "perplexity" or tuned.evaluation is None:
        return
    growth = tuned.evaluation.perplexity_ratio - 1
    if not growth <= task.budget.limit:
        raise RegressionError(
            f"the profile was written, but on {text} perplexity grows by {show('perplexity', growth)}, by more than "
            f"{task.budget}",
            where=tuned.profile.name,
            hint="ask for less, calibrate on text that is more like it, or give --eval-text",
        )


def _show(task: "Task", tuned: "Tuned", text: str) -> None:
    from collections import Counter

    from edgec.tune.page import ROUNDS_HEAD, SHAPES_HEAD, rounds_rows, shapes_rows, summary

    choice = tuned.problem.choose(tuned.found.choice)
    counts = Counter(candidate.label for candidate in choice.values())
    stored = ", ".join(f"{label} {count}" for label, count in counts.most_common())
    print_table(("", ""), [("units", stored), *summary(tuned.found, task.budget, tuned.problem.floats)])
    if len(tuned.shapes) > 1:
        print_table(SHAPES_HEAD, shapes_rows(tuned.shapes, task.budget))
    print_table(ROUNDS_HEAD, rounds_rows(tuned.found.rounds, task.budget))
    for remark in [*tuned.remarks, *_evaluated(tuned, text)]:
        say(remark)


def _result(tuned: "Tuned", files: tuple[Path, ...]) -> dict[str, Any]:
    choice = tuned.problem.choose(tuned.found.choice)
    return {
        "files": files,
        "choice": {unit.name: candidate.label for unit, candidate in choice.items()},
        "chosen": tuned.found.round,
        "rounds": tuned.found.rounds,
        "shapes": tuned.shapes,
        "mixtures": [{"cost": point.cost, "kl": point.kl} for point in tuned.mixtures],
        "alike": [{"label": point.label, "cost": point.cost, "kl": point.kl} for point in tuned.alike],
        "evaluation": tuned.evaluation,
        "outside": tuned.outside,
        "remarks": tuned.remarks,
    }
