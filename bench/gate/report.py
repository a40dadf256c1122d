"""Make the page of a campaign: how often the gate errs, beside what else could be done with the same data.

    python bench/gate/report.py

Reads bench/results/gate/*.jsonl.gz, and quality.json there; writes bench/results/gate.md and gate.png. The other ways
are given what they are used with; `_words` says what that is.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from campaign import HERE, RESULTS, WANTED, WORK, read
from scipy.stats import binomtest, mannwhitneyu

from edgec.gate.compare import BASELINE, CANDIDATE
from edgec.gate.limits import USUAL
from edgec.gate.statistics import Estimate, hierarchical

PAGE = HERE.parent / "results" / "gate.md"
CONTRAST = np.array([-0.5, -0.5, 1.0])
AGAIN = "latency_ms, again"
# At which the five metrics of a gate share what is spent on false alarms.
SHARED = 0.025 / 5
COVERED = ("latency_ms", AGAIN, "rows_per_s", "load_ms", "peak_rss_bytes")
THRESHOLD = 1.05
LEVEL = 0.05

Record = dict
Alarms = list[bool]


def main() -> None:
    conditions: dict[str, list[Record]] = {}
    for path in sorted(RESULTS.glob("*.jsonl.gz"), reverse=True):  # quiet first
        for record in read(path):
            record["again"] = _again(record) if record["turns_ms"] else None
            name = f"{path.name.removesuffix('.jsonl.gz')}, {record['machine']['code']}"
            conditions.setdefault(name, []).append(record)
    if not conditions:
        sys.exit("there is no raw data: run campaign.py first")
    rows = [row for name, records in conditions.items() for row in _rows(name, records)]
    lines = [
        "# The gate's own quality",
        "",
        *_words(conditions),
        "",
        *_table(rows),
        "",
        *_intervals(conditions),
        "",
        *_quality(),
    ]
    PAGE.write_text("\n".join(lines))
    _plot(rows, PAGE.with_suffix(".png"))
    print("\n".join(lines))


def _rows(condition: str, records: Sequence[Record]) -> list[dict]:
    """Return a row for each case: how many of its gates, and of the other ways, raise an alarm."""
    found = []
    stored = [_mean(record, BASELINE) for record in records if record["turns_ms"]]
    generator = np.random.default_rng(0)
    for case in WANTED:
        mine = [record for record in records if record["slower"] == case]
        if not mine:
            continue
        raced = [record for record in mine if record["turns_ms"]]  # of one that broke off, the others judge nothing
        ways: dict[str, Alarms] = {
            "edgec gate": [record["verdict"] == "fail" for record in mine],
            AGAIN: [record["again"].low(SHARED) > np.log(USUAL["latency_ms"].allowed) for record in raced],
            "stored baseline, 5 %": [
                _mean(record, CANDIDATE) > THRESHOLD * before
                for record, before in zip(raced, generator.choice(stored, len(raced)), strict=True)
            ],
            "A then B, Mann-Whitney": [_mann_whitney(record) for record in raced],
            "pyperf compare_to": _pyperf(raced),
        }
        verdicts = [record["verdict"] for record in mine]
        found.append(
            {
                "condition": condition,
                "slower": case,
                "gates": len(mine),
                "alarms": {name: (sum(alarms), len(alarms)) for name, alarms in ways.items()},
                "passes": verdicts.count("pass"),
                "inconclusive": verdicts.count("inconclusive"),
                "void": sum(record["void"] is not None for record in mine),
                "seconds": float(np.median([record["elapsed_s"] for record in mine])),
                "longest": max(record["elapsed_s"] for record in mine),
            }
        )
    return found


def _mean(record: Record, variant: int) -> float:
    return float(np.mean([np.mean(each[variant]) for each in record["turns_ms"]]))


def _mann_whitney(record: Record) -> bool:
    rounds = record["turns_ms"]
    half = len(rounds) // 2
    before = np.concatenate([each[BASELINE] for each in rounds[:half]])
    after = np.concatenate([each[CANDIDATE] for each in rounds[half:]])
    return bool(mannwhitneyu(after, before, alternative="greater").pvalue < LEVEL)


def _pyperf(records: Sequence[Record]) -> Alarms:
    """Return where pyperf says "slower", of all gates in one call."""
    with TemporaryDirectory() as folder:
        files = [Path(folder) / "before.json", Path(folder) / "after.json"]
        for file, variant in zip(files, (BASELINE, CANDIDATE), strict=True):
            benchmarks = [
                {
                    "metadata": {"name": f"gate{number}", "unit": "second", "loops": 1},
                    "runs": [{"values": [value / 1e3 for value in each[variant]]} for each in record["turns_ms"]],
                }
                for number, record in enumerate(records)
            ]
            file.write_text(json.dumps({"benchmarks": benchmarks, "version": "1.0"}))
        command = [
            str(WORK / "pyperf" / "bin" / "python"),
            "-m",
            "pyperf",
            "compare_to",
            *map(str, files),
            "--table",
            "--table-format",
            "md",
            "-v",
        ]
        table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    slower = {line.split("|")[1].strip() for line in table.splitlines() if "slower" in line and line.startswith("|")}
    return [f"gate{number}" in slower for number in range(len(records))]


def _words(conditions: dict[str, Sequence[Record]]) -> list[str]:
    machines = {json.dumps(record["machine"], sort_keys=True) for records in conditions.values() for record in records}
    about = [", ".join(f"{key} {value}" for key, value in json.loads(machine).items()) for machine in sorted(machines)]
    return [
        "A network of 100 equal products (about a millisecond on one core) is gated by a copy of itself, and with 2, 5",
        "and 10 layers more. Usual metrics and margins, one thread, 60 s at most. *hog*: another program computes all",
        "the time. Gates of all cases take turns. Raw data: `bench/results/gate/*.jsonl.gz` (`make bench-gate`).",
        "",
        "An alarm is a gate that fails, whichever of its five metrics does: time of a run, throughput, time to load,",
        "memory, size. It may pass what lies between `allowed` (1.02) and `margin` (1.05), as 2 % more work does. The",
        "other ways judge the time of a run alone, with what the same gates measured:",
        "",
        "- *latency_ms, again*: the code as it is now, of the rounds that the gate took then, looking once;",
        "- *stored baseline, 5 %*: the candidate's mean is 5 % above that of the baseline in another gate of the same",
        "  campaign, drawn at random;",
        "- *A then B, Mann-Whitney*: the baseline in the first half of the rounds, the candidate in the second, as in",
        "  two jobs one after the other, one-sided at 5 %;",
        "- *pyperf compare_to*: all turns of both, each process as a run.",
        "",
        "![Share of gates that raise an alarm](gate.png)",
        "",
        *(f"Machine, versions, and a digest of the code that raced and judged: {line}." for line in about),
    ]


def _table(rows: Sequence[dict]) -> list[str]:
    ways = list(rows[0]["alarms"])
    head = [
        "machine, code",
        "more work",
        "gates",
        "pass",
        *(f"alarms: {way}" for way in ways),
        "inconclusive",
        "of these void",
        "s, median",
        "s, longest",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        alarms = [_share(*counts) for counts in row["alarms"].values()]
        cells = [
            row["condition"],
            f"{row['slower']} %",
            str(row["gates"]),
            _share(row["passes"], row["gates"]),
            *alarms,
            _share(row["inconclusive"], row["gates"]),
        ]
        lines.append(
            "| " + " | ".join([*cells, str(row["void"]), f"{row['seconds']:.1f}", f"{row['longest']:.1f}"]) + " |"
        )
    return [*lines, "", "In brackets: 95 % intervals of the share (Wilson)."]


def _share(count: int, total: int) -> str:
    low, high = binomtest(count, total).proportion_ci(method="wilson")
    return f"{100 * count / total:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _intervals(conditions: dict[str, Sequence[Record]]) -> list[str]:
    """Return how often 95 % intervals hold the truth: 1, or what all gates of a case say."""
    lines = [
        "| machine, code | more work | metric | true ratio | gates | intervals that hold it | half width, median |",
        "|---" * 7 + "|",
    ]
    everything = [record for records in conditions.values() for record in records]
    for case, metric in [(each, metric) for each in WANTED for metric in (COVERED[:2] if each else COVERED)]:
        estimates = [found[0] for found in _found(everything, case, metric)]
        if not estimates:
            continue
        truth = 1.0 if case == 0 else float(np.exp(np.median(np.log(estimates))))
        for name, records in conditions.items():
            if not (found := _found(records, case, metric)):
                continue
            held = sum(low <= truth <= high for _, low, high in found)
            width = np.median([np.log(high / low) / 2 for _, low, high in found])
            share = _share(held, len(found))
            lines.append(
                f"| {name} | {case} % | {metric} | {truth:.4f} | {len(found)} | {share} | {100 * width:.2f} % |"
            )
    return [*lines, "", "The true ratio of equal models is 1; of the others, the median of all gates' estimates."]


def _found(records: Sequence[Record], case: int, metric: str) -> list[tuple[float, float, float]]:
    """Return the ratio and its interval, of all gates of a case that have one."""
    mine = [record for record in records if record["slower"] == case and record["findings"]]
    if metric == AGAIN:
        again = [record["again"] for record in mine]
        return [tuple(np.exp([each.centre, each.low(LEVEL / 2), each.high(LEVEL / 2)])) for each in again]
    return [tuple(record["findings"][metric][1:4]) for record in mine]


def _again(record: Record) -> Estimate:
    """Return what the code as it is now says of the latency, from the turns of each process of each round."""
    return hierarchical([np.log(each).T for each in record["turns_ms"]], CONTRAST)


def _quality() -> list[str]:
    """Return what gates say of candidates whose loss is known; see `quality.py`."""
    path = RESULTS / "quality.json"
    if not path.is_file():
        return []
    study = json.loads(path.read_text())
    lines = [
        "## Quality",
        "",
        f"{study['model']} beside itself with noise in its weights, as much as makes the loss of perplexity 1 and 2",
        f"times the margin ({100 * (study['margin'] - 1):.0f} %), and rounded to int8. Each of {study['draws']} gates",
        f"reads {study['sample']:,} tokens, drawn from {study['tokens']:,} of the text, at the level of a gate on",
        f"{study['gated']} texts. The last column is what intervals would hold if tokens were independent.",
        "`make bench-gate-quality` makes it.",
        "",
        "| text | candidate | true ratio | margin | pass | fail | undecided | intervals hold | if independent |",
        "|---" * 9 + "|",
    ]
    for case in study["cases"]:
        ratios = [f"{case[name]:.4f}" for name in ("true_ratio", "bound")]
        names = ("passed", "failed", "undecided", "held", "held_if_independent")
        lines.append(
            "| " + " | ".join([case["text"], case["name"], *ratios, *(f"{case[n]:.1%}" for n in names)]) + " |"
        )
    return [*lines, ""]


def _plot(rows: Sequence[dict], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    high, wide = -(-len(conditions) // 2), min(2, len(conditions))
    figure, axes = plt.subplots(high, wide, figsize=(5.5 * wide, 4 * high), sharey=True, squeeze=False)
    for axis, condition in zip(axes.flat, conditions, strict=False):
        mine = [row for row in rows if row["condition"] == condition]
        for number, way in enumerate(mine[0]["alarms"]):
            shares = [100 * row["alarms"][way][0] / row["alarms"][way][1] for row in mine]
            bounds = [binomtest(*row["alarms"][way]).proportion_ci(method="wilson") for row in mine]
            errors = [
                [share - 100 * bound.low for share, bound in zip(shares, bounds, strict=True)],
                [100 * bound.high - share for share, bound in zip(shares, bounds, strict=True)],
            ]
            width = 0.8 / len(mine[0]["alarms"])
            places = np.arange(len(mine)) + width * (number + 0.5) - 0.4
            axis.bar(places, shares, width, yerr=np.maximum(errors, 0), capsize=2, label=way)
        axis.set_xticks(range(len(mine)), [f"+{row['slower']} %\n{row['gates']} gates" for row in mine])
        axis.set_title(condition)
        axis.set_xlabel("more work in the candidate")
    axes[0][0].set_ylabel("alarms, %")
    for axis in axes.flat[len(conditions) :]:
        axis.set_visible(False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / (4 * high)))
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="upper center", ncol=5)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
