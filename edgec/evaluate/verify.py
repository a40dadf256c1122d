"""Prove that an artifact computes what its canonical graph computes, and measure what quantization cost.

The integers in its files must be those of the canonical graph. In exact mode (float32 activations) it must give the
canonical graph's logits: what is left is rounding. In shipped mode (the plan's accuracy level and cache) its
perplexity, KL divergence and top-1 agreement are measured against the source checkpoint and compared with the profile's
bounds.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.backends.session import Session
from edgec.evaluate.divergence import Accumulator, Divergence
from edgec.evaluate.streamed import LOGITS_AT_ONCE, Streamed
from edgec.graph.blocks import Block
from edgec.report.model import Blame, Exact, Integers
from edgec.spec.profile import Verify

Ids = NDArray[np.int64]
Tick = Callable[[str], object]
OpenSession = Callable[[], Session]

# The exact check runs one window: most of it as a prompt, the rest token by token through the KV cache.
_DECODED = 8
# Enough tokens to rank layer groups by their KL, few enough to try each group.
_BLAME_WINDOWS = 2


def check_exact(open_session: OpenSession, canonical: Streamed, window: Ids, bound: float) -> Exact:
    """Compare logits over one window (tokens,), most of it as one prompt and the last tokens one by one."""
    expected = np.concatenate(list(canonical.logits(canonical.hidden(window[None]))))
    prompt = len(window) - _DECODED
    session = open_session()
    pieces = [session.step(window[None, :prompt])[0]]
    pieces += [session.step(window[None, i : i + 1])[0] for i in range(prompt, len(window))]
    error = float(np.abs(np.concatenate(pieces) - expected).max())
    relative = error / float(expected.std())
    return Exact(error, relative if np.isfinite(relative) else float("inf"), len(window), bound)


def compare(source: Streamed, open_session: OpenSession, windows: Ids, tick: Tick) -> Divergence:
    """Compare an artifact in shipped mode with its source over windows (n, tokens).

    The source's logits wait in a file, so that its output matrix and the artifact are never in memory together.
    """
    path = source.folder / "logits.bin"
    with path.open("wb") as file:
        rows = []
        for piece in source.logits(source.hidden(windows, tick)):
            piece.tofile(file)
            rows.append(len(piece))
    result = _accumulate(_pieces(path, rows), _session_logits(open_session(), windows, tick), windows)
    path.unlink()
    return result


def compare_graphs(source: Streamed, test: Streamed, windows: Ids, hidden: Any = None) -> Divergence:
    """Compare two canonical graphs over windows (n, tokens); `hidden` is what goes into the head of `source`."""
    reference = source.hidden(windows) if hidden is None else hidden
    return _accumulate(source.logits(reference), test.logits(test.hidden(windows)), windows)


def _pieces(path: Path, rows: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """Yield the logits in a file, as many rows at a time as `rows` says."""
    width = path.stat().st_size // (4 * sum(rows))
    with path.open("rb") as file:
        for count in rows:
            yield np.fromfile(file, np.float32, count * width).reshape(count, width)


def _session_logits(session: Session, windows: Ids, tick: Tick) -> Any:
    """Yield logits in the pieces that `Streamed.logits` yields: whole windows joined, cut every LOGITS_AT_ONCE rows."""
    pending: list[NDArray[np.float32]] = []
    for number, window in enumerate(windows):
        session.reset(1)
        for start in range(0, len(window), LOGITS_AT_ONCE):
            pending.append(session.step(window[None, start : start + LOGITS_AT_ONCE])[0])
            while sum(map(len, pending)) >= LOGITS_AT_ONCE:
                joined = np.concatenate(pending)
                yield joined[:LOGITS_AT_ONCE]
                pending = [joined[LOGITS_AT_ONCE:]]
        tick(f"window {number}")
    if sum(map(len, pending)):
        yield np.concatenate(pending)


def _accumulate(reference: Any, test: Any, windows: Ids) -> Divergence:
    """Join pieces of logits (rows, vocab) over all positions of `windows` with the tokens that follow them."""
    count, length = windows.shape
    targets = np.roll(windows, -1, axis=1).reshape(-1)
    numbers = np.repeat(np.arange(count), length)
    predicts = np.tile(np.arange(length) < length - 1, count)  # the last position of a window has no target
    accumulator, start = Accumulator(), 0
    for expected, found in zip(reference, test, strict=True):
        rows = slice(start, start + len(expected))
        keep = predicts[rows]
        accumulator.add(expected[keep], found[keep], targets[rows][keep], numbers[rows][keep])
        start += len(expected)
    return accumulator.result()


def broken_bounds(integers: Integers, exact: Exact, shipped: Divergence, bounds: Verify) -> tuple[str, ...]:
    """Return a sentence for each bound that is broken."""
    found = []
    if integers.different:
        found.append(
            f"{len(integers.different)} of {integers.weights} weights are not the integers of the canonical graph "
            f"(first: {integers.different[0]})"
        )
    if not exact.passed:
        found.append(
            f"exact mode: logits differ from the canonical graph by {exact.relative_error:.2e} standard deviations "
            f"(allowed {exact.bound:.0e})"
        )
    return (*found, *broken_quality(shipped, bounds))


def broken_quality(found: Divergence, bounds: Verify) -> tuple[str, ...]:
    """Return a sentence for each bound on quality that is broken; a NaN breaks each."""
    checks = (
        ("perplexity ratio", found.perplexity_ratio, bounds.max_perplexity_ratio, 1),
        ("mean KL divergence", found.mean_kl, bounds.max_mean_kl, 1),
        ("top-1 agreement", found.top1_agreement, bounds.min_top1_agreement, -1),
    )
    return tuple(
        f"{name} is {value:.4f} (allowed {'at most' if sign > 0 else 'at least'} {bound:g})"
        for name, value, bound, sign in checks
        if not sign * value <= sign * bound
    )


def blame(source: Streamed, quantized: Sequence[Block], windows: Ids, tick: Tick) -> tuple[Blame, ...]:
    """Return the mean KL of quantizing each group of layers alone, the worst first."""
    sample = windows[:_BLAME_WINDOWS]
    hidden = source.hidden(sample)
    found = []
    for group, members in _groups([block.name for block in quantized]).items():
        mixed = [q if q.name in members else s for q, s in zip(quantized, source.blocks, strict=True)]
        runner = Streamed(mixed, source.folder, source.threads)
        found.append(Blame(group, compare_graphs(source, runner, sample, hidden).mean_kl))
        tick(group)
    return tuple(sorted(found, key=lambda b: -b.mean_kl))


def _groups(names: Sequence[str]) -> dict[str, set[str]]:
    """Return group -> block names: embedding, head, and the attention and MLP blocks of each third of the layers."""
    layers = sorted({int(name.split(".")[1]) for name in names if name.startswith("layers.")})
    groups = {"embedding": {"embedding"}, "output matrix": {"head"}}
    for third in np.array_split(np.array(layers), min(3, len(layers))):
        where = f"layers {third[0]}-{third[-1]}" if len(third) > 1 else f"layer {third[0]}"
        for kind in ("attention", "mlp"):
            groups[f"{kind} of {where}"] = {f"layers.{i}.{kind}" for i in third}
    return groups
