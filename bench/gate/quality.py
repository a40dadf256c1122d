"""How often `edgec gate` finds a loss of quality that is known, on a real model: `quality.py MODEL --text TEXT ...`.

MODEL is a Hugging Face directory (`bench/smollm2.py` writes one), a TEXT a file, "python-docs" or "python-source".
Beside the model in floats stand: the same with seeded noise on the matrices of its layers, as much as makes the
perplexity ratio over all of the text 1 + k x the margin, for k = 1 and 2; and the same with weights rounded to int8. A
few trials on a part of the text find the noise; the whole text then says what the loss really is. Where that is not
quite k margins, the bound is moved by as much, so that k is exact.

Every model reads the text once. Then many gates are drawn: as many windows as a gate takes, at random, since a gate
spreads its windows over a text; each is judged by the gate's own code, at the level of a gate on two texts. What is
known to be true is the ratio over all windows, and the share of draws whose interval holds it is counted too. A
gate that reads a tenth of the text is a little surer of the whole than its interval says.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from edgec.backends.backend import backend_of
from edgec.bundle.open import find_artifact
from edgec.evaluate.documents import Passages, load_passages
from edgec.evaluate.perplexity import token_log_likelihoods
from edgec.gate.bounds import Bounds
from edgec.gate.settings import QualityBound
from edgec.gate.text_findings import judge_text
from edgec.generate.tokenizer import Tokenizer

RESULTS = Path(__file__).parents[1] / "results" / "gate"
CONFIDENCE, GATED = 0.95, 2
# How near to k margins the whole text must come; what is left moves the bound.
_NEAR = 0.1
_TRIALS = 8

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """What gates say of a candidate whose true perplexity ratio is known.

    Args:
        held: share of intervals that hold the true ratio.
        held_if_independent: the same with the error that tokens would have if they were independent.
        documents: of each its tokens, and its negative log-likelihood by the baseline and by the candidate.
    """

    text: str
    name: str
    margins: float
    noise: float | None
    true_ratio: float
    bound: float
    passed: float
    failed: float
    undecided: float
    held: float
    held_if_independent: float
    documents: list[tuple[int, float, float]]


def build(model: Path, profile: str, out: Path) -> Path:
    """Build a bundle anew."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "edgec", "build", str(model), "--target", "cpu", "--profile", profile]
    subprocess.run([*command, "--no-verify", "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
    return out


def add_noise(model: Path, noise: float, out: Path) -> Path:
    """Copy a model; each matrix of its layers gets normal noise, `noise` times its root mean square."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors"))
    rng = np.random.default_rng(1)
    for shard in sorted(model.glob("*.safetensors")):
        weights = load_file(shard)
        for name in sorted(weights):
            matrix = weights[name]
            if matrix.ndim == 2 and ".layers." in name:
                size = noise * np.sqrt(np.square(matrix, dtype=np.float64).mean())
                weights[name] = (matrix + size * rng.standard_normal(matrix.shape)).astype(matrix.dtype)
        save_file(weights, out / shard.name, {"format": "pt"})
    return out


def losses(bundle: Path, windows: NDArray[np.int64]) -> Values:
    """Return the negative log-likelihood of each predicted token, (n, window - 1)."""
    artifact = find_artifact(bundle)
    session = backend_of(artifact).open_session(artifact, "evaluate", max_length=windows.shape[1])
    found = -token_log_likelihoods(session, windows)
    print(f"  {bundle.name}: perplexity {np.exp(found.mean()):.4f} on {found.size} tokens", file=sys.stderr)
    return found


def find_noise(
    model: Path, work: Path, windows: NDArray[np.int64], baseline: Values, wanted: float, part: int
) -> tuple[float, Values]:
    """Return the noise that raises the mean loss by `wanted`, and the losses with it, by a power law through trials."""
    noise, slope = 0.1, 2.0
    which = np.linspace(0, len(windows) - 1, part).astype(int)
    before: tuple[float, float] | None = None
    for _ in range(_TRIALS):
        found = losses(build(add_noise(model, noise, work / "noisy"), "fp32", work / "candidate"), windows[which])
        rise = float((found - baseline[which]).mean())
        print(f"  noise {noise:.4f}: mean loss + {rise:.5f}, wanted {wanted:.5f}", file=sys.stderr)
        if abs(rise / wanted - 1) < _NEAR:
            if len(which) == len(windows):
                return noise, found
            which, before = np.arange(len(windows)), None
            continue
        if before is not None and rise > 0 and noise != before[0]:
            slope = float(np.clip(np.log(rise / before[1]) / np.log(noise / before[0]), 1, 8))
        before = (noise, rise) if rise > 0 else None
        noise *= float(np.clip((wanted / rise) ** (1 / slope), 0.3, 3)) if rise > 0 else 2
    sys.exit(f"no noise was found that raises the loss by {wanted:.4f}")


def draw(passages: Passages, baseline: Values, candidate: Values, bound: float, count: int, draws: int) -> dict:
    """Judge `draws` gates of `count` windows each."""
    rng = np.random.default_rng(2)
    truth = float(np.exp((candidate - baseline).mean()))
    bounds = Bounds({"perplexity_ratio": QualityBound(margin=bound)}, CONFIDENCE, GATED)
    documents = passages.documents[:, 1:]
    verdicts, held, independent = [], 0, 0
    for _ in range(draws):
        rows = rng.choice(len(baseline), count, replace=False)
        a, b = baseline[rows].reshape(-1), candidate[rows].reshape(-1)
        tokens = np.stack((a, b, np.zeros_like(a), np.ones_like(a)))
        windows = np.repeat(rows, baseline.shape[1])
        ratio = judge_text(tokens, documents[rows].reshape(-1), windows, bounds, where=passages.name)[0]
        verdicts.append(ratio.verdict)
        held += ratio.low <= truth <= ratio.high
        independent += abs(np.log(ratio.estimate / truth)) <= 1.96 * (b - a).std() / np.sqrt(len(a))
    share = {name: verdicts.count(name) / draws for name in ("pass", "fail", "inconclusive")}
    return {
        "true_ratio": truth, "bound": bound, "passed": share["pass"], "failed": share["fail"],
        "undecided": share["inconclusive"], "held": held / draws, "held_if_independent": independent / draws,
        "documents": [
            (int(at.sum()), round(float(baseline[at].sum()), 3), round(float(candidate[at].sum()), 3))
            for at in (documents == number for number in np.unique(documents))
        ],
    }  # fmt: skip


def study(model: Path, text: str, options: argparse.Namespace, work: Path) -> list[Case]:
    """Return what gates say on one text."""
    tokenizer = Tokenizer.from_directory(model)
    passages = load_passages(text, tokenizer, tokens=options.tokens, window=options.window)
    count = options.sample // options.window
    if count >= len(passages.windows):
        sys.exit(f"{text} has {len(passages.windows)} windows, a gate takes {count}: give a longer text")
    floats = losses(build(model, "fp32", work / "floats"), passages.windows)
    judge = partial(draw, passages, floats, count=count, draws=options.draws)
    rounded = losses(build(model, "int8", work / "int8"), passages.windows)
    away = float((rounded - floats).mean()) / np.log(options.margin)
    cases = [Case(passages.name, "rounded to int8", away, None, **judge(rounded, bound=options.margin))]
    for margins in (1, 2):
        wanted = float(np.log(1 + margins * (options.margin - 1)))
        noise, found = find_noise(model, work, passages.windows, floats, wanted, count)
        bound = 1 + (float(np.exp((found - floats).mean())) - 1) / margins
        cases.append(Case(passages.name, f"noise, {margins} x margin", margins, noise, **judge(found, bound=bound)))
    return cases


def main() -> None:
    """Run the study, and write the numbers, of which `report.py` makes a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", action="append", help="default: python-docs and python-source")
    parser.add_argument("--tokens", type=int, default=100_000, help="of each text, that are read")
    parser.add_argument("--sample", type=int, default=20_000, help="tokens in a gate")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--margin", type=float, default=1.02)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS / "quality.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        texts = options.text or ["python-docs", "python-source"]
        cases = [case for text in texts for case in study(options.model, text, options, Path(work))]
    numbers = {key: value for key, value in vars(options).items() if isinstance(value, int | float)}
    settings = {"model": options.model.name, "confidence": CONFIDENCE, "gated": GATED, **numbers}
    options.out.write_text(json.dumps({**settings, "cases": [asdict(case) for case in cases]}) + "\n")


if __name__ == "__main__":
    main()
