"""The grammar knows the probability of what it tells."""

import math
import random
import statistics
from collections import Counter

import pytest
from grammar import story
from teller import NotInGrammarError, Teller, enumerate_all, read, tell
from world import WORDS, make_world, taste


def fruit(t: Teller) -> None:
    """A grammar small enough to count by hand: weights, a choice that depends on another, a certain ending."""
    kind = t.pick(("apple", "pear"), lambda kind: f"an old {kind}", (3, 1))
    if kind == "pear":
        t.vary(" tree", " cake")
    t.say(".")


def small_errand(t: Teller) -> None:
    """Pieces of the real grammar in a world of six: conditional choices, a being, and what is true of it."""
    world = make_world(beings=6, towns=3)
    hero, *others = world.beings
    air = t.pick(WORDS.airs, lambda word: f"{hero.name} saw a {word}", taste("spring", "airs"))
    t.pick(WORDS.creatures, lambda word: f" {word}", taste(air, "creatures"))
    other = t.pick(others, lambda being: f" and asked {being.known}")
    t.vary(f", who was just eating {other.food}.", f", who lived in {other.town.name}.")


def test_bits_are_those_counted_by_hand() -> None:
    found = dict(enumerate_all(fruit))
    assert found == {"an old apple.": math.log2(4 / 3), "an old pear tree.": 3.0, "an old pear cake.": 3.0}


def test_stories_are_told_as_often_as_their_bits_say() -> None:
    rng = random.Random(5)
    count = 20_000
    told = Counter(tell(fruit, rng)[0] for _ in range(count))
    for text, bits in enumerate_all(fruit):
        p = 2**-bits
        assert abs(told[text] - count * p) < 4 * math.sqrt(count * p * (1 - p))


def test_reported_bits_average_to_the_enumerated_entropy() -> None:
    every = list(enumerate_all(small_errand))
    assert len(every) > 1000
    assert len({text for text, _ in every}) == len(every), "two derivations of one text"
    assert sum(2**-bits for _, bits in every) == pytest.approx(1, abs=1e-9)
    entropy = sum(2**-bits * bits for _, bits in every)

    rng = random.Random(1)
    told = [tell(small_errand, rng) for _ in range(4000)]
    assert all(dict(every)[text] == pytest.approx(bits) for text, bits in told[:50])
    bits = [bits for _, bits in told]
    error = statistics.stdev(bits) / math.sqrt(len(bits))
    assert abs(statistics.mean(bits) - entropy) < 4 * error
    assert error < 0.03


def test_reading_a_story_gives_the_bits_of_telling_it() -> None:
    grammar, rng = story(make_world()), random.Random(2)
    for _ in range(300):
        text, bits = tell(grammar, rng)
        assert read(grammar, text) == pytest.approx(bits)


def test_reading_refuses_what_is_not_true_in_the_world() -> None:
    world = make_world()
    grammar = story(world)
    hero = world.beings[0]
    text = f"Once upon a time there was a clever {hero.species} called {hero.name} who lived in "
    wrong = next(town for town in world.towns if town.name[0] != hero.town.name[0])
    with pytest.raises(NotInGrammarError) as caught:
        read(grammar, text + wrong.name)
    assert caught.value.offset == len(text)
    whole, _ = tell(grammar, random.Random(3))
    for damaged in (whole[:-1], whole + " And more.", "", whole.replace(". ", "! ", 1)):
        with pytest.raises(NotInGrammarError):
            read(grammar, damaged)


def test_a_choice_that_cannot_be_read_back_is_refused() -> None:
    with pytest.raises(ValueError, match="'six' is the beginning of 'sixteen'"):
        tell(lambda t: t.vary("six", "ten", "sixteen"), random.Random(0))


def test_the_world_never_changes_and_holds_together() -> None:
    world = make_world()
    assert world == make_world()
    assert len({being.name for being in world.beings}) == 96
    assert {being.town for being in world.beings} == set(world.towns)
    assert all(world.friends[being.name].town != being.town for being in world.beings)
