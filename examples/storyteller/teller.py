"""Tell a story choice by choice, so that its probability is known exactly.

A grammar here is a plain function that takes a `Teller`. What it `say`s is certain; what it `pick`s is a choice, told
at once. No alternative of a choice may be the beginning of another, so a text can be told in one way only: its
derivation can be read back from it, and the sum of its choices' bits is exactly -log2 of its probability.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")
# (what was told so far, the alternatives, their weights) -> the index of the one to tell
Chooser = Callable[[str, tuple[str, ...], tuple[int, ...]], int]
Grammar = Callable[["Teller"], None]


class NotInGrammarError(ValueError):
    """The text cannot be told by the grammar; `offset` is the character where it leaves it."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"the text leaves the grammar at character {offset}")
        self.offset = offset


class Teller:
    """Collects the text of one story and the bits that its choices took.

    Attributes:
        text: what was told so far.
        bits: -log2 of the probability of the choices made so far.
    """

    def __init__(self, choose: Chooser) -> None:
        self._choose = choose
        self.text = ""
        self.bits = 0.0

    def say(self, text: str) -> None:
        """Tell what follows from what was told."""
        self.text += text

    def pick(self, items: Sequence[T], render: Callable[[T], str], weights: Sequence[int] | None = None) -> T:
        """Choose an item (all alike without weights), tell it as `render` words it, and return it.

        Raises:
            ValueError: one wording is the beginning of another, so the choice could not be read back.
        """
        told = tuple(map(render, items))
        _check_prefix_free(told)
        chances = tuple(weights) if weights else (1,) * len(told)
        index = self._choose(self.text, told, chances)
        self.text += told[index]
        self.bits += math.log2(sum(chances) / chances[index])
        return items[index]

    def vary(self, *wordings: str) -> None:
        """Tell one of several wordings, all alike."""
        self.pick(wordings, str)


@lru_cache(maxsize=1 << 14)
def _check_prefix_free(told: tuple[str, ...]) -> None:
    ordered = sorted(told)
    for first, second in itertools.pairwise(ordered):
        if second.startswith(first):
            raise ValueError(f"{first!r} is the beginning of {second!r}: the choice could not be read back")


def tell(grammar: Grammar, rng: random.Random) -> tuple[str, float]:
    """Return a random story and its bits."""

    def choose(_: str, __: tuple[str, ...], weights: tuple[int, ...]) -> int:
        point = rng.random() * sum(weights)
        for index, weight in enumerate(weights):
            point -= weight
            if point < 0:
                return index
        return len(weights) - 1

    teller = Teller(choose)
    grammar(teller)
    return teller.text, teller.bits


def read(grammar: Grammar, text: str) -> float:
    """Return the bits of a text: exactly -log2 of its probability under the grammar.

    Raises:
        NotInGrammarError: the grammar never tells this text.
    """

    def choose(so_far: str, told: tuple[str, ...], _: tuple[int, ...]) -> int:
        if not text.startswith(so_far):
            raise NotInGrammarError(_common_length(text, so_far))
        rest = text[len(so_far) :]
        for index, alternative in enumerate(told):
            if rest.startswith(alternative):
                return index
        raise NotInGrammarError(len(so_far) + max(_common_length(rest, alternative) for alternative in told))

    teller = Teller(choose)
    grammar(teller)
    if teller.text != text:
        raise NotInGrammarError(_common_length(text, teller.text))
    return teller.bits


def enumerate_all(grammar: Grammar) -> Iterator[tuple[str, float]]:
    """Yield every text of a small grammar with its bits, by telling it once for each sequence of choices."""
    script: list[int] = []
    while True:
        sizes: list[int] = []
        teller = Teller(_scripted(script, sizes))
        grammar(teller)
        yield teller.text, teller.bits
        while script and script[-1] + 1 == sizes[len(script) - 1]:
            script.pop()
        if not script:
            return
        script[-1] += 1


def _scripted(script: list[int], sizes: list[int]) -> Chooser:
    """Follow the script and extend it with first alternatives; note how many alternatives each choice had."""

    def choose(_: str, told: tuple[str, ...], __: tuple[int, ...]) -> int:
        sizes.append(len(told))
        if len(sizes) > len(script):
            script.append(0)
        return script[len(sizes) - 1]

    return choose


def _common_length(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
