"""The world that every story is set in: fixed facts that a reader, or a model, can only know by heart.

Who lives where, what a town is known for, what each animal works as, likes and treasures, and how far one town is from
another never change from story to story. They cost the grammar no bits, so a model that has read enough predicts them
exactly, and its perplexity shows at once when quantization makes it forget.
"""

import math
import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
WORLD_SEED = 20


@dataclass(frozen=True, slots=True)
class Words:
    """What words.toml holds; `towns` and `trades` are the fields of `Town` and `Trade` that are words."""

    female: list[str]
    male: list[str]
    species: list[str]
    foods: list[str]
    looks: list[str]
    things: list[str]
    creatures: list[str]
    airs: list[str]
    doings: list[str]
    prepositions: list[str]
    spots: list[str]
    directions: list[str]
    numbers: list[str]
    natures: list[str]
    manners: list[str]
    places: list[str]
    events: list[str]
    times: list[str]
    towns: list[tuple[str, str]]
    trades: list[tuple[str, str, str, str]]
    disasters: dict[str, str]
    weather: dict[str, list[str]]


WORDS = Words(**tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8")))


@dataclass(frozen=True, slots=True)
class Town:
    """A town, what it is known for, and where it lies on the map, in hours of walking."""

    name: str
    landmark: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Trade:
    """A trade: its name, where it is done, its tool and its wares."""

    name: str
    workplace: str
    tool: str
    wares: str


@dataclass(frozen=True, slots=True)
class Being:
    """An animal and everything that is always true of it."""

    name: str
    female: bool
    species: str
    town: Town
    trade: Trade
    food: str

    @property
    def known(self) -> str:
        return f"{self.name} the {self.species}"

    @property
    def she(self) -> str:
        return "she" if self.female else "he"

    @property
    def She(self) -> str:  # noqa: N802 - the same word at the start of a sentence
        return self.she.capitalize()

    @property
    def them(self) -> str:
        return "her" if self.female else "him"

    @property
    def their(self) -> str:
        return "her" if self.female else "his"


@dataclass(frozen=True, slots=True)
class World:
    """All beings and towns, and who is whose friend (by name)."""

    beings: tuple[Being, ...]
    towns: tuple[Town, ...]
    friends: dict[str, Being]


def make_world(beings: int = 96, towns: int = 20) -> World:
    """Return the world, or a smaller one of the same kind for enumeration; always the same for the same sizes."""
    rng = random.Random(WORLD_SEED)

    def draw(items: Sequence[T]) -> T:
        # random() is the one method whose sequence Python promises to keep.
        return items[int(rng.random() * len(items))]

    places = [Town(*words, 9 * rng.random(), 9 * rng.random()) for words in WORDS.towns[:towns]]
    trades = [Trade(*words) for words in WORDS.trades]
    names = [pair for f, m in zip(WORDS.female, WORDS.male, strict=True) for pair in ((f, True), (m, False))]
    # Towns are dealt in turn, so that none is empty.
    animals = tuple(
        Being(
            name,
            female=female,
            species=draw(WORDS.species),
            town=places[i % towns],
            trade=draw(trades),
            food=draw(WORDS.foods),
        )
        for i, (name, female) in enumerate(names[:beings])
    )
    friends = {being.name: draw([other for other in animals if other.town != being.town]) for being in animals}
    return World(animals, tuple(places), friends)


@cache
def taste(head: str, kind: str) -> tuple[int, ...]:
    """Return how often each of the words of a kind goes with a head word: weights that fall with a rank all its own.

    A season has its creatures and a creature its places, much as in a language some words go together.
    """
    words: list[str] = getattr(WORDS, kind)
    rng = random.Random(f"{WORLD_SEED} {head} {kind}")
    ranked = sorted(range(len(words)), key=[rng.random() for _ in words].__getitem__)
    weights = [0] * len(words)
    for rank, index in enumerate(ranked):
        weights[index] = 100 // (3 + rank)
    return tuple(weights)


def way(start: Town, end: Town) -> tuple[int, str]:
    """Return the hours of walking from one town to another, at least one, and the direction."""
    dx, dy = end.x - start.x, end.y - start.y
    hours = max(1, round(math.hypot(dx, dy)))
    return hours, WORDS.directions[round(math.atan2(dy, dx) / (math.pi / 4)) % 8]
