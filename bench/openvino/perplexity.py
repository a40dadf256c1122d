"""Perplexity of OpenVINO decoders on one text, in OpenVINO's shipped mode and in its exact mode.

python bench/openvino/perplexity.py --text FILE --tokenizer DIRECTORY ARTIFACT...
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from decoder import Decoder
from numpy.typing import NDArray

from edgec.evaluate.corpus import load_corpus
from edgec.evaluate.perplexity import token_log_likelihoods
from edgec.evaluate.statistics import clustered_error
from edgec.generate.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgec.backends.session import Session

# The exact mode names each property: the hint alone would leave an artifact's own runtime options in force.
MODES: dict[str, dict[str, str]] = {
    "shipped mode": {},
    "exact mode": {
        "EXECUTION_MODE_HINT": "ACCURACY",
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    },
}
WINDOW, TOKENS = 512, 32 * 512


def losses(artifact: Path, config: Mapping[str, str], windows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the negative log-likelihood in nats of every predicted token: (windows, tokens - 1)."""
    decoder = cast("Session", Decoder(artifact, config))  # evaluation only steps and resets
    return -token_log_likelihoods(decoder, windows)


def ratio(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the perplexity of a over that of b, and a 95 % interval: paired, and clustered by window."""
    difference = a - b
    centre = difference.mean()
    error = clustered_error(difference.reshape(-1), np.repeat(np.arange(len(a)), a.shape[1])) or 0.0
    middle, low, high = np.exp([centre, centre - 1.96 * error, centre + 1.96 * error])
    return float(middle), float(low), float(high)


def windows_of(text: Path, tokenizer: Path) -> NDArray[np.int64]:
    return load_corpus(text, Tokenizer.from_directory(tokenizer), tokens=TOKENS, window=WINDOW).windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a Hugging Face directory")
    parser.add_argument("artifacts", type=Path, nargs="+", help="the first is what the others are compared with")
    arguments = parser.parse_args()
    windows = windows_of(arguments.text, arguments.tokenizer)
    for mode, config in MODES.items():
        values = {artifact: losses(artifact, config, windows) for artifact in arguments.artifacts}
        first = values[arguments.artifacts[0]]
        for artifact, value in values.items():
            middle, low, high = ratio(value, first)
            print(f"{mode}: {np.exp(value.mean()):.3f}, ratio {middle:.4f} ({low:.4f} to {high:.4f})  {artifact}")


if __name__ == "__main__":
    main()
