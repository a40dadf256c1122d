"""Build SmolLM2-135M to int4 with edgec and with optimum-cli, and race the OpenVINO artifacts.

Both read the same float32 Hugging Face directory and write symmetric int4 in groups of one size. optimum-cli is run
twice: as it stands, which leaves embedding and output matrix in int8 ("optimum int8 table"), and with --all-layers,
which stores the same bits as edgec ("optimum"). The artifacts are run in one process, in turn: by OpenVINO's runtime
with the same settings and the logits of every token, and by openvino_genai as each artifact asks for.
Writes bench/results/openvino.json and .md.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai
import paired
import perplexity
import smollm2
from decoder import Decoder

from edgec.measure.fingerprint import fingerprint

ROUNDS_BUILD = 5
ROUNDS_SPEED = 40
PROMPT, NEW = 128, 32
PROFILES = {32: "int4", 128: "int4-g128"}
# OpenVINO's own defaults, spelt out: an artifact may ask for others, and then the race would not be one of artifacts.
SAME_SETTINGS = {"KV_CACHE_PRECISION": "u8", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"}
WORK = smollm2.WORK
RESULTS = Path(__file__).parent.parent / "results"

Series = dict[str, list[float]]


@dataclass(frozen=True)
class Figure:
    """One measured thing: a value for each contestant, and edgec's over each other's with a 95 % interval."""

    values: dict[str, float]
    ratios: dict[str, tuple[float, float, float]]


def build_edgec(source: Path, group: int) -> tuple[Path, paired.Process]:
    out = WORK / f"edgec-openvino-int4-g{group}"
    shutil.rmtree(out, ignore_errors=True)
    command = [str(Path(sys.executable).parent / "edgec"), "build", str(source), "--backend", "openvino"]
    return out / "artifact", paired.run([*command, "--profile", PROFILES[group], "--out", str(out), "--no-verify"])


def build_peer(source: Path, group: int, *flags: str) -> tuple[Path, paired.Process]:
    out = WORK / f"optimum-int4-g{group}{''.join(flags)}"
    shutil.rmtree(out, ignore_errors=True)
    command = [str(WORK / "peer-openvino/bin/optimum-cli"), "export", "openvino", "--model", str(source)]
    # A width that the group does not divide gets a smaller group (576 is 9 * 64); without "adjust" that is an error.
    scheme = ["--weight-format", "int4", "--sym", "--group-size", str(group), "--group-size-fallback", "adjust"]
    task = ["--task", "text-generation-with-past"]
    return out, paired.run([*command, *task, *scheme, *flags, str(out)], HF_HUB_OFFLINE="1")


def prompts() -> Callable[[], np.ndarray]:
    """Return a function that gives a new prompt each time: openvino_genai remembers those it has seen."""
    rng = np.random.default_rng(0)
    return lambda: rng.integers(100, 40000, (1, PROMPT))


def race_runtime(artifact: Path) -> Callable[[], tuple[float, float]]:
    """Return a function that times one prompt and the tokens after it in OpenVINO's runtime."""
    decoder, prompt = Decoder(artifact, SAME_SETTINGS), prompts()

    def once() -> tuple[float, float]:
        ids = prompt()
        decoder.reset()
        start = time.perf_counter()
        decoder.step(ids)
        middle = time.perf_counter()
        for i in range(NEW):
            decoder.step(ids[:, i : i + 1])
        return PROMPT / (middle - start), NEW / (time.perf_counter() - middle)

    return once


def race_genai(artifact: Path) -> Callable[[], tuple[float, float]]:
    """Return a function that times one prompt and greedy tokens after it in openvino_genai."""
    pipeline, prompt = genai.LLMPipeline(artifact, "CPU"), prompts()
    config = genai.GenerationConfig(max_new_tokens=NEW + 1, ignore_eos=True, do_sample=False)

    def once() -> tuple[float, float]:
        inputs = genai.TokenizedInputs(ov.Tensor(prompt()), ov.Tensor(np.ones((1, PROMPT), np.int64)))
        metrics = pipeline.generate(inputs, config).perf_metrics
        return 1000 * PROMPT / metrics.get_ttft().mean, 1000 / metrics.get_tpot().mean

    return once


def figure(series: Series) -> Figure:
    """Sum up what was measured in turn."""
    ours = series["edgec"]
    ratios = {name: paired.ratio(ours, values) for name, values in series.items() if name != "edgec"}
    return Figure({name: statistics.median(values) for name, values in series.items()}, ratios)


def builds(source: Path, group: int) -> dict[str, Figure]:
    """Compare optimum-cli as it stands with edgec."""
    runs = paired.interleave(
        ROUNDS_BUILD,
        edgec=lambda: build_edgec(source, group)[1],
        **{"optimum int8 table": lambda: build_peer(source, group)[1]},
    )
    return {
        "build, s": figure({name: [run.seconds for run in runs[name]] for name in runs}),
        "build peak memory, MB": figure({name: [run.peak_bytes / 1e6 for run in runs[name]] for name in runs}),
    }


def speeds(artifacts: dict[str, Path]) -> dict[str, Figure]:
    figures = {}
    for runner, race in (("runtime", race_runtime), ("genai", race_genai)):
        rounds = paired.interleave(ROUNDS_SPEED, **{name: race(path) for name, path in artifacts.items()})
        for column, what in enumerate(("prefill", "decode")):
            series = {name: [result[column] for result in rounds[name]] for name in rounds}
            figures[f"{what}, tokens/s, {runner}"] = figure(series)
    return figures


def qualities(artifacts: dict[str, Path], windows: np.ndarray) -> dict[str, Figure]:
    figures = {}
    for mode, config in perplexity.MODES.items():
        losses = {name: perplexity.losses(path, config, windows) for name, path in artifacts.items()}
        values = {name: float(np.exp(loss.mean())) for name, loss in losses.items()}
        ratios = {name: perplexity.ratio(losses["edgec"], loss) for name, loss in losses.items() if name != "edgec"}
        figures[f"perplexity, {mode}"] = Figure(values, ratios)
    return figures


def size_mb(artifact: Path) -> float:
    return sum((artifact / f"openvino_model.{kind}").stat().st_size for kind in ("xml", "bin")) / 1e6


def compare(source: Path, group: int, windows: np.ndarray | None) -> tuple[dict[str, Figure], dict[str, object]]:
    """Return what was measured for groups of one size, and the settings that OpenVINO had in the race."""
    figures = builds(source, group) if group == min(PROFILES) else {}
    artifacts = {
        "edgec": build_edgec(source, group)[0],
        "optimum": build_peer(source, group, "--all-layers")[0],
        "optimum int8 table": build_peer(source, group)[0],
    }
    figures["model files, MB"] = figure({name: [size_mb(path)] for name, path in artifacts.items()})
    figures |= speeds(artifacts)
    if windows is not None:
        figures |= qualities(artifacts, windows)
    shipped = {name: Decoder(path, {}).settings for name, path in artifacts.items()}
    return figures, {"race": Decoder(artifacts["edgec"], SAME_SETTINGS).settings, "as shipped": shipped}


def table(figures: dict[str, Figure]) -> list[str]:
    """Return Markdown lines."""
    names = list(figures["model files, MB"].values)
    heads = [*names, *(f"edgec / {name} (95 %)" for name in names[1:])]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for title, row in figures.items():
        values = [f"{row.values[name]:.2f}" if name in row.values else "" for name in names]
        ratios = ["{:.3f} ({:.3f} to {:.3f})".format(*row.ratios[n]) if n in row.ratios else "" for n in names[1:]]
        lines.append(f"| {title} | " + " | ".join(values + ratios) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="UTF-8 text to measure perplexity on; left out without it")
    text = parser.parse_args().text
    source = smollm2.huggingface()
    windows = None if text is None else perplexity.windows_of(text, source)
    machine = fingerprint()
    raw: dict[str, object] = {"machine": machine, "versions": versions()}
    lines: list[str] = []
    for group in PROFILES:
        figures, settings = compare(source, group, windows)
        raw[f"group {group}"] = {"figures": {k: asdict(v) for k, v in figures.items()}, "settings": settings}
        lines += [f"Groups of {group}:", "", *table(figures), ""]
    cpus = len(os.sched_getaffinity(0))
    note = (
        f"{machine['cpu_model']}, {cpus} CPUs, Linux. {ROUNDS_BUILD} builds and {ROUNDS_SPEED} races of each, in turn; "
        f"prompt {PROMPT}, {NEW} new tokens. In the runtime all have {SAME_SETTINGS}; in genai, and for the perplexity "
        "in shipped mode, what each artifact asks for."
    )
    lines += [note, ", ".join(f"{name} {number}" for name, number in versions().items())]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "openvino.json").write_text(json.dumps(raw, indent=1) + "\n")
    (RESULTS / "openvino.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def versions() -> dict[str, str]:
    """Return the versions of both environments."""
    ours = {name: version(name) for name in ("edgec", "openvino", "openvino-genai", "openvino-tokenizers")}
    names = ("optimum-intel", "nncf", "openvino", "transformers", "torch")
    code = f"from importlib.metadata import version; print(*map(version, {names}))"
    found = subprocess.run([WORK / "peer-openvino/bin/python", "-c", code], check=True, capture_output=True, text=True)
    return ours | {f"peer's {name}": number for name, number in zip(names, found.stdout.split(), strict=True)}


if __name__ == "__main__":
    main()
