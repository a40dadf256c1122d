"""Judge MiniLM's artifacts on up to forty sentences of each article: no speeds.

Ten sentences of each of 59 articles (`data.py`) leave an interval of 2.7 points around what int8 loses of the network's
own task; with up to forty, it is 1.1 points. After `make bench-networks`, whose artifacts it takes:
`PYTHONPATH=bench:bench/networks python bench/networks/more_sentences.py --text FILE`
"""

import argparse
from pathlib import Path

import judge
import numpy as np
from data import PER_ARTICLE, split, tokens, wikitext
from runners import open_artifact
from sources import WORK

_MOST, _THREADS = 40, 2
_RESULTS = Path(__file__).parents[1] / "results/more_sentences.md"


def artifacts() -> dict[str, tuple[Path, str]]:
    """Return name -> (file, runtime): the float network first, edgec's, and what peers made that is there."""
    found = {"float32": (WORK / "float/minilm.onnx", "onnxruntime")}
    for runtime, file in (("onnxruntime", "model.onnx"), ("openvino", "openvino_model.xml")):
        found[f"edgec, {runtime}"] = (WORK / f"edgec/minilm-{runtime}/artifact" / file, runtime)
    for folder in sorted((WORK / "out/minilm").iterdir()):
        for file, runtime in (("model.onnx", "onnxruntime"), ("model.xml", "openvino")):
            if (folder / file).is_file():
                found[folder.name] = (folder / file, runtime)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="WikiText")
    articles = [s for s in map(split, wikitext(parser.parse_args().text.read_text())) if len(s) >= PER_ARTICLE]
    counts = [min(_MOST, len(sentences)) for sentences in articles]
    chosen = [s[i * len(s) // n] for s, n in zip(articles, counts, strict=True) for i in range(n)]
    label, feed = np.repeat(np.arange(len(articles)), counts), tokens(chosen)
    lines = [
        f"MiniLM: {len(chosen)} sentences of {len(articles)} articles. Right: the nearest other is of the same",
        "article. Lost: what float32 has right more often, in points, with a 95 % bootstrap interval over sentences.",
        "", "| | right | lost | nearest as in float32 | 1 - cosine |", "|---|---|---|---|---|",
    ]  # fmt: skip
    reference = right_float = None
    for name, (path, runtime) in artifacts().items():
        answer = judge.embeddings(open_artifact(path, runtime, _THREADS, exact=True), feed)
        reference = answer if reference is None else reference
        right, agrees, distance = judge.sentences(answer, reference, label)
        right_float = right if right_float is None else right_float
        lost = right_float.astype(float) - right
        low, high = judge.interval(lost, np.arange(len(lost)))
        lines.append(
            f"| {name} | {100 * right.mean():.1f} % | {100 * lost.mean():+.1f} ({100 * low:.1f} to {100 * high:.1f}) "
            f"| {100 * agrees.mean():.1f} % | {distance.mean():.4f} |"
        )
        print(lines[-1], flush=True)
    _RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
