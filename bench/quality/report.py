"""Turn what bench/quality kept into quality.json, quality.md and quality.png."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgec.measure.fingerprint import fingerprint

RESULTS = Path(__file__).parent.parent / "results"
_HEADS = (
    "contestant",
    "bits/weight",
    "perplexity",
    "perplexity / source's",
    "KL, millinats",
    "p99 KL",
    "top-1",
    "seconds",
    "CPU seconds",
    "peak MB",
)


@dataclass(frozen=True)
class Row:
    """One contestant on one checkpoint and setting: its own report, and the evaluator's."""

    checkpoint: str
    setting: str
    name: str
    made: dict[str, Any]
    found: dict[str, Any]


def write_report(kept: Path, names: list[str], settings: dict[str, Any], texts: dict[str, Any]) -> str:
    """Write the three files; return the Markdown."""
    rows = list(_rows(kept, names, settings))
    old = json.loads(_path("json").read_text()) if _path("json").exists() else {"texts": {}}
    texts = old["texts"] | texts
    machine = fingerprint()
    raw = {"machine": machine, "settings": settings, "texts": texts, "rows": [vars(row) for row in rows]}
    RESULTS.mkdir(exist_ok=True)
    _path("json").write_text(json.dumps(raw, indent=1) + "\n")
    lines = []
    for title, part in _parts(rows).items():
        lines += [f"{title}:", "", *_table(part), ""]
    lines += [f"{name}: {purpose} on {text}." for name, pair in texts.items() for purpose, text in pair.items()]
    lines += [
        "",
        f"{machine['cpu_model']}. " + ", ".join(sorted({f"{r.name} {r.made['version']}" for r in rows})) + ".",
    ]
    _path("md").write_text("\n".join(lines) + "\n")
    _draw(_parts(rows))
    return "\n".join(lines)


def _path(kind: str) -> Path:
    return RESULTS / f"quality.{kind}"


def _rows(kept: Path, names: list[str], settings: dict[str, Any]) -> Iterator[Row]:
    for checkpoint in ("storyteller", "smollm2"):
        for setting in settings:
            for name in names:
                folder = kept / checkpoint / setting / name
                if (folder / "evaluation.json").exists():
                    made, found = (json.loads((folder / f"{f}.json").read_text()) for f in ("quality", "evaluation"))
                    made = {key: value for key, value in made.items() if key != "job"}  # it names folders
                    yield Row(checkpoint, setting, name, made, found)


def _parts(rows: list[Row]) -> dict[str, list[Row]]:
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(f"{row.checkpoint}, {row.setting}", []).append(row)
    return parts


def _table(rows: list[Row]) -> list[str]:
    """Return Markdown lines, best first."""
    lines = ["| " + " | ".join(_HEADS) + " |", "|---" * len(_HEADS) + "|"]
    for row in sorted(rows, key=lambda row: row.found["mean_kl"]):
        f, m = row.found, row.made
        cells = (
            row.name,
            f"{m['bits_per_weight']:.3f}",
            f"{f['test_perplexity']:.3f}",
            f"{f['perplexity_ratio']:.4f} ± {f['perplexity_ratio_se']:.4f}",
            f"{1000 * f['mean_kl']:.2f} ± {1000 * f['mean_kl_se']:.2f}",
            f"{f['p99_kl']:.3f}",
            f"{100 * f['top1_agreement']:.2f} %",
            f"{m['seconds']:.0f}",
            f"{m['cpu_seconds']:.0f}",
            f"{m['peak_bytes'] / 1e6:.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _draw(parts: dict[str, list[Row]]) -> None:
    """Draw the KL of each contestant with its standard error, best first, a panel for each checkpoint and setting."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = plt.subplots(2, -(-len(parts) // 2), figsize=(15, 8), layout="constrained", squeeze=False)
    for axis, (title, rows) in zip(axes.flat, parts.items(), strict=False):
        ranked = sorted(rows, key=lambda row: -row.found["mean_kl"])
        names = [f"{row.name} ({row.made['bits_per_weight']:.2f} bits)" for row in ranked]
        values, errors = ([1000 * row.found[key] for row in ranked] for key in ("mean_kl", "mean_kl_se"))
        for place, (row, value, error) in enumerate(zip(ranked, values, errors, strict=True)):
            colour = "tab:red" if row.name.startswith("edgec") else "tab:blue"
            axis.errorbar(value, place, xerr=error, fmt="o", color=colour, capsize=3)
        axis.set_yticks(range(len(names)), names)
        axis.set(title=title, xlabel="KL(source || quantized), millinats per token", xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(visible=True, which="both", alpha=0.2)
    for axis in axes.flat[len(parts) :]:
        axis.set_axis_off()
    figure.savefig(_path("png"), dpi=120)
    plt.close(figure)
