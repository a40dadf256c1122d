"""Compare what two models of one network compute, layer by layer, and find where they part."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.backends.backend import Mode, backend_names, backend_of, get_backend, is_hidden_state
from edgec.bundle.manifest import MANIFEST
from edgec.bundle.open import find_decoder
from edgec.checkpoint.model import Checkpoint, read_finite
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import BundleError, UsageError
from edgec.evaluate.divergence import Accumulator, Divergence
from edgec.evaluate.streamed import Streamed
from edgec.frontends.architecture import Decoder
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe
from edgec.generate.tokenizer import Tokenizer
from edgec.graph.blocks import Block, cut
from edgec.graph.weights import Codes

Array = NDArray[np.float32]
Ids = NDArray[np.int64]
States = Iterable[tuple[str, Array]]
"""Hidden states (1, tokens, hidden) by name, in the order of the graph, and `logits` (1, tokens, vocab) last."""

# Float32 rounds to about this: falling to it from "the same to the last bit" is no finding.
_ROUNDING_DB = 140.0


class State(msgspec.Struct, frozen=True):
    """One value of a model against the reference.

    Args:
        name: such as `layers.3.mlp_residual`: the hidden state after the MLP of layer 3.
        snr_db: power of the reference over the power of the difference, averaged over tokens as noise to signal, so
            that the few tokens with huge activations do not speak for all; infinite where both are the same.
        max_error: largest absolute difference.
        cosine: of the angle between both vectors of a token, averaged over tokens.
    """

    name: str
    snr_db: float
    max_error: float
    cosine: float


class Comparison(msgspec.Struct, frozen=True):
    """All values that both models have, in the order of the graph, the logits last; and what their logits predict."""

    states: tuple[State, ...]
    predictions: Divergence

    def first_below(self, min_snr_db: float) -> State | None:
        """Return the first value whose signal-to-noise ratio is below a bound."""
        # A NaN is below every bound.
        return next((state for state in self.states if not state.snr_db >= min_snr_db), None)

    def largest_drop(self) -> tuple[State, float] | None:
        """Return the value that falls furthest below the one before it, and by how many dB."""
        levels = [min(state.snr_db, _ROUNDING_DB) for state in self.states]
        drops = [before - after for before, after in pairwise(levels)]
        if not drops:
            return None
        worst = int(np.argmax(drops))
        return self.states[worst + 1], drops[worst]


def compare_layers(reference: States, test: States, input_ids: Ids) -> Comparison:
    """Compare two models that ran the same tokens (1, n).

    `reference` is run to its end before `test` begins, so that the weights of both are never in memory together.

    Raises:
        UsageError: they are not of the same architecture.
    """
    expected = dict(reference)
    states, found = [], set()
    for name, value in test:
        found.add(name)
        if name not in expected:
            continue
        if value.shape != expected[name].shape:
            raise _other_architecture(f"'{name}' is {expected[name].shape[1:]} in A and {value.shape[1:]} in B")
        states.append(_compare(name, expected[name], value))
        if name == "logits":
            predictions = _predictions(expected[name], value, input_ids)
    layers = _layers(expected), _layers(found)
    if all(layers) and layers[0] != layers[1]:
        raise _other_architecture(f"A has {len(layers[0])} layers, B has {len(layers[1])}")
    return Comparison(tuple(states), predictions)


def _layers(names: Iterable[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("layers.")}


def _other_architecture(what: str) -> UsageError:
    return UsageError(f"the models cannot be compared: {what}", hint="compare two builds of one checkpoint")


def _compare(name: str, reference: Array, test: Array) -> State:
    # Token by token: the logits of a whole window in float64 would be large.
    with np.errstate(all="ignore"):  # what is not finite gives NaN, which is below every bound
        sums = [_sums(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(reference[0], test[0], strict=True)]
        signal, power, product, noise, error = np.array(sums).T
        length = np.sqrt(signal * power)
        cosine = np.divide(product, length, out=np.ones_like(length), where=length != 0)
        relative = np.divide(noise, signal, out=noise, where=signal != 0)
        snr_db = -10 * np.log10(relative.mean())
    return State(name, float(snr_db), float(error.max()), float(cosine.mean()))


def _sums(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    difference = a - b
    return np.array((a @ a, b @ b, a @ b, difference @ difference, np.abs(difference).max()))


def _predictions(reference: Array, test: Array, input_ids: Ids) -> Divergence:
    accumulator = Accumulator()
    following = input_ids[0, 1:]
    accumulator.add(reference[0, :-1], test[0, :-1], following, np.zeros_like(following))
    return accumulator.result()


def trace_checkpoint(checkpoint: Checkpoint, decoder: Decoder, input_ids: Ids) -> Iterator[tuple[str, Array]]:
    """Yield the hidden states and the logits of a checkpoint in float32, with one block of weights in memory.

    Args:
        checkpoint: the opened checkpoint.
        decoder: its description.
        input_ids: the tokens (1, n), at most as many as the decoder takes.
    """
    model = emit(decoder, checkpoint, lambda name: read_finite(checkpoint, name), input_ids.shape[1])
    with TemporaryDirectory(prefix="edgec-") as scratch:
        runner = _Recorder(cut(model), Path(scratch))
        hidden = runner.hidden(input_ids)
        yield from runner.states.items()
        yield "logits", np.concatenate(list(runner.logits(hidden)))[None]


class _Recorder(Streamed):
    """Keeps the hidden states that pass from block to block."""

    def __init__(self, blocks: Sequence[Block], folder: Path) -> None:
        super().__init__(blocks, folder)
        self.states: dict[str, Array] = {}

    def _run(self, block: Block, values: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        made = super()._run(block, values)
        self.states.update({name: value for name, value in made.items() if is_hidden_state(name)})
        return made


@dataclass(frozen=True)
class Side:
    """A model to compare: an artifact, or a checkpoint.

    Args:
        kind: what it is, in words.
        path: where it is.
        tokenizer: its own.
        context_length: the most tokens that it takes.
        trace: gives its hidden states and logits for tokens (1, n).
        codes: gives its integers; None for a checkpoint.
        note: what runs in place of an artifact that this machine cannot run; None where it can.
    """

    kind: str
    path: Path
    tokenizer: Tokenizer
    context_length: int
    trace: Callable[[Ids, Mode], States]
    codes: Callable[[], Iterable[tuple[str, Codes]]] | None = None
    note: str | None = None


def open_side(path: str, ignored: frozenset[str] = frozenset()) -> Side:
    """Return what is at `path`: a bundle or an artifact if there is one, else a checkpoint.

    Args:
        path: a directory, a GGUF file, or a hub id.
        ignored: keys of a checkpoint's config.json that are declared harmless.

    Raises:
        EdgecError: there is nothing, or it is damaged.
    """
    try:
        artifact = find_decoder(Path(path))
    except BundleError:
        if (Path(path) / MANIFEST).is_file():
            raise
        return _checkpoint(path, ignored)
    return _artifact(artifact)


def _artifact(artifact: Path) -> Side:
    backend = backend_of(artifact)
    name = next(name for name in backend_names() if get_backend(name) is backend)
    return Side(
        kind=f"{name} artifact",
        path=artifact,
        tokenizer=Tokenizer.from_directory(artifact),
        context_length=backend.read_settings(artifact).context_length,
        trace=partial(backend.trace, artifact),
        codes=partial(backend.read_codes, artifact),
        note=backend.not_run(artifact),
    )


def _checkpoint(source: str, ignored: frozenset[str]) -> Side:
    checkpoint = open_checkpoint(source)
    decoder = describe(checkpoint, ignored)
    return Side(
        kind=f"{checkpoint.format} checkpoint",
        path=checkpoint.path,
        tokenizer=Tokenizer.from_files(checkpoint.tokenizer_files(), str(checkpoint.path)),
        context_length=decoder.context_length,
        trace=lambda input_ids, _: trace_checkpoint(checkpoint, decoder, input_ids),
    )
