"""Remove channels of a network: every shape that has them really shrinks.

`find_groups` says which channels depend on each other, `score_channels` how much each is needed, `prune_channels` gives
the network without the least needed ones, and `cost_of` counts what either costs. Only scores read weights: a plan can
do all the rest before anything is built.
"""

from collections.abc import Collection, Mapping, Sequence
from math import gcd
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.errors import PlanError, UsageError
from edgec.prune.channels_cost import Of, Prices, cost_left, costs, prices_of
from edgec.prune.channels_groups import Channels, Group, Mask, find_groups
from edgec.prune.channels_refit import refit
from edgec.prune.channels_remove import remove
from edgec.prune.channels_result import GroupReport
from edgec.prune.channels_scores import Statistics

Floats = NDArray[np.float64]
Scores = Mapping[str, NDArray[Any]]

# Counts of layers with fewer channels than this many multiples are rounded to half of one.
_NARROW = 4


def prune_channels(
    model: ir.Model,
    *,
    share: float | None = None,
    sizes: Mapping[str, int] | None = None,
    scores: Scores | None = None,
    multiple: int = 8,
    of: Of = "parameters",
    uniform: bool = False,
    skip: Collection[str] = (),
    statistics: Mapping[str, Statistics] | None = None,
) -> tuple[ir.Model, tuple[GroupReport, ...]]:
    """Return a network with fewer channels, and what became of each group.

    Args:
        model: canonical, with inferred shapes; not changed, and its weights are shared, not read.
        share: to remove, at least; the next that `multiple` allows.
        sizes: or, name of a group -> how many of its channels are kept.
        scores: name of a group -> the score of each channel, as `score_channels` gives them: those go first whose score
            is lowest for what goes with them. Without scores the last ones go, the same share of every group.
        multiple: that the number of channels of layers with at least four times as many is rounded to; half of it for
            others. Numbers in `sizes` are taken as they are.
        of: what `share` is a share of.
        uniform: whether every group gives up the same share, and not those whose channels matter least.
        skip: layers that keep all channels that they give.
        statistics: of what layers read, as `measure_channels` gives them: weights are then fitted to what is left.

    Raises:
        PlanError: no channels can be removed, or not so many.
        UsageError: a group cannot have the size that it is given.
    """
    if (share is None) == (sizes is None):
        raise ValueError("either a share or sizes")
    pruned = model.clone()
    channels = find_groups(pruned, skip)
    if all(group.refused for group in channels.groups):
        hint = _reasons(channels.groups) or "it has no layers that give channels"
        raise PlanError("no channels of this network can be removed", hint=hint)
    prices = prices_of(pruned, of)
    ranks = _ranks(channels, scores, prices)
    if sizes is not None:
        counts = [sizes.get(group.name, len(group.channels)) for group in channels.groups]
        _check(sizes, channels.groups, ranks)
    else:
        assert share is not None
        counts = _counts(channels, ranks, share, prices, multiple, uniform=uniform or scores is None)
    kept = _kept(channels, ranks, counts)
    if statistics is not None:
        refit(pruned, channels, kept, statistics)
    remove(pruned, channels, kept)
    return pruned, tuple(
        GroupReport(group.layers, len(group.channels), int(kept[group.channels].sum()), group.refused)
        for group in channels.groups
    )


def _reasons(groups: Sequence[Group]) -> str | None:
    reasons = list(dict.fromkeys(str(group.refused) for group in groups))
    return f"what holds channels: {'; '.join(reasons[:5])}" if reasons else None


def _ranks(channels: Channels, scores: Scores | None, prices: Prices) -> list[Floats]:
    """Return the scores of each group, for each unit of what goes with the channel; infinite for those that stay.

    At least one channel of everything that has some stays, as of each half that a Split makes.
    """
    by_label = np.full(channels.trace.born, np.inf)
    freed = costs(channels, prices)
    for group in channels.groups:
        given = np.ones(len(group.channels)) if scores is None else np.asarray(scores[group.name], np.float64)
        by_label[group.channels] = np.where(group.removable, given / np.maximum(freed[group.channels], 1.0), np.inf)
    arrays = [layout.labels for layout in channels.trace.layouts.values()]
    arrays += [labels for axes in channels.cuts().values() for labels in axes.values()]
    for labels in (channels.root[array] for array in arrays if array.size):
        by_label[labels[np.argmax(by_label[labels])]] = np.inf
    return [by_label[group.channels] for group in channels.groups]


def _check(sizes: Mapping[str, int], groups: Sequence[Group], ranks: Sequence[Floats]) -> None:
    found = {group.name: (group, rank) for group, rank in zip(groups, ranks, strict=True)}
    for name, size in sizes.items():
        if name not in found:
            raise UsageError(f"no group of channels is called {name}", hint=f"there are {', '.join(found)}")
        group, rank = found[name]
        least = max(1, int(np.isinf(rank).sum()))
        if not least <= size <= len(rank):
            why = f": {group.refused}" if group.refused else ""
            raise UsageError(f"{name} can keep {least} to {len(rank)} channels, not {size}{why}")


def _counts(
    channels: Channels, ranks: Sequence[Floats], share: float, prices: Prices, multiple: int, *, uniform: bool
) -> list[int]:
    """Return how many channels each group keeps so that at least `share` goes."""
    order = _order(ranks, uniform=uniform)

    def counts(removed: int) -> list[int]:
        gone = np.bincount(order[:removed], minlength=len(ranks))
        return [
            _rounded(group, rank, len(rank) - int(count), multiple)
            for group, rank, count in zip(channels.groups, ranks, gone, strict=True)
        ]

    def left(removed: int) -> float:
        return cost_left(channels, prices, _kept(channels, ranks, counts(removed)))

    everything, low, high = left(0), 0, len(order)
    if left(high) > everything * (1 - share):
        held = [group for group in channels.groups if group.refused]
        most = 1 - left(high) / everything
        advice = "remove less, or take a smaller multiple"
        raise PlanError(
            f"a share of {share:.1%} shall go, but at most {most:.1%} can",
            hint="; ".join(filter(None, (advice, _reasons(held)))),
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if left(middle) <= everything * (1 - share) else (middle + 1, high)
    return counts(low)


def _order(ranks: Sequence[Floats], *, uniform: bool) -> NDArray[np.int64]:
    """Return the group that each removable channel is in, the channels that go first in front."""
    if uniform:  # the share of a group that has gone is what counts
        ranks = [np.where(np.isinf(rank), rank, np.argsort(np.argsort(rank)) / len(rank)) for rank in ranks]
    finite = [rank[np.isfinite(rank)] for rank in ranks]
    owners = np.repeat(np.arange(len(finite)), [len(rank) for rank in finite])
    return np.asarray(owners[np.argsort(np.concatenate(finite), kind="stable")])


def _rounded(group: Group, rank: Floats, count: int, multiple: int) -> int:
    """Return the number of channels next to `count` that kernels like; never fewer than must stay."""
    total = len(rank)
    if count == total:
        return total
    wanted = multiple if total * group.positions >= _NARROW * multiple else max(1, multiple // 2)
    step = wanted // gcd(wanted, group.positions)
    least = -(-max(1, int(np.isinf(rank).sum())) // step) * step
    return min(total, max(least, round(count / step) * step))


def _kept(channels: Channels, ranks: Sequence[Floats], counts: Sequence[int]) -> Mask:
    """Return which labels are left."""
    kept = np.ones(channels.trace.born, bool)
    for group, rank, count in zip(channels.groups, ranks, counts, strict=True):
        kept[group.channels[np.argsort(-rank, kind="stable")[count:]]] = False
    return kept
