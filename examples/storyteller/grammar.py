"""The grammar of the stories: an opening, one of six plots, and an ending that remembers how the story began.

A story of about 130 words keeps its promises: what stood on the shelf is what is lost or given away, what is given away
is missing from the count, and everything agrees with the facts and tastes in `world`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from teller import Grammar, Teller
from world import WORDS, Being, Town, World, taste, way

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scene:
    """What the opening settled: the world, the hero, the hero's nature and things, and the season."""

    world: World
    hero: Being
    nature: str
    shelf: tuple[str, ...]
    season: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot: the words that begin it, and its telling, which returns what will be remembered."""

    lead: Callable[[Scene], str]
    tell: Callable[[Teller, Scene], str]


def story(world: World) -> Grammar:
    """Return the grammar of all stories of a world."""

    def grammar(t: Teller) -> None:
        scene = opening(t, world)
        plot = t.pick(PLOTS, lambda plot: plot.lead(scene))
        ending(t, scene, plot.tell(t, scene))

    return grammar


def opening(t: Teller, world: World) -> Scene:
    """Introduce the hero, at home, on a day of some season."""
    t.vary("Once upon a time there was ", "Once, long ago, there was ", "Once there was ", "Once, far away, there was ")
    nature = t.pick(WORDS.natures, lambda word: f"{_a(word)} ", taste("hero", "natures"))
    hero = t.pick(world.beings, lambda being: f"{being.species} called {being.name}")
    t.vary(
        f", the {hero.trade.name} of {hero.town.name}.",
        f" who lived in {hero.town.name}, near the {hero.town.landmark}.",
        f" who liked nothing better than {hero.food}.",
    )
    t.vary(f" On {hero.their} shelf stood", f" In {hero.their} {hero.trade.workplace} lay")
    shelf = things(t, hero.name, 4)
    t.say(".")
    days = [(word, season) for season, words in WORDS.weather.items() for word in words]
    _, season = t.pick(days, lambda day: f" One {day[0]} {day[1]} ")
    t.pick(WORDS.times, lambda time: f"{time},")
    return Scene(world, hero, nature, shelf, season)


def things(t: Teller, head: str, count: int) -> tuple[str, ...]:
    """List some things, such as " two old maps and nine keys", to the taste of `head`, and return them."""
    found: list[str] = []
    left = dict.fromkeys(WORDS.things)
    for sign in (*[","] * (count - 2), " and", ""):
        number = t.pick(range(2, 13), lambda n: f" {WORDS.numbers[n]}")
        look = t.pick(WORDS.looks, lambda word: f" {word}", taste(head, "looks"))
        weights = [weight for word, weight in zip(WORDS.things, taste(look, "things"), strict=True) if word in left]
        thing = t.pick(tuple(left), lambda word: f" {word}", weights)
        t.say(sign)
        del left[thing]
        found.append(f"{WORDS.numbers[number]} {look} {thing}")
    return tuple(found)


def sight(t: Teller, head: str) -> None:
    """Tell of an animal, such as " a lame duck sleeping in the shade", to the taste of `head`."""
    air = t.pick(WORDS.airs, lambda word: f" {_a(word)}", taste(head, "airs"))
    creature = t.pick(WORDS.creatures, lambda word: f" {word}", taste(air, "creatures"))
    t.pick(WORDS.doings, lambda word: f" {word}", taste(creature, "doings"))
    where = t.pick(WORDS.prepositions, lambda word: f" {word} the", taste(creature, "prepositions"))
    t.pick(WORDS.spots, lambda word: f" {word}", taste(where, "spots"))


def market(t: Teller, s: Scene) -> str:
    """Buy some wares in another town, and give some of them away."""
    hero = s.hero
    town = t.pick(_without(s.world.towns, hero.town), lambda town: town.name)
    t.say(f", {_walk(hero.town, town)}. On the road {hero.she} saw")
    sight(t, s.season)
    sellers = [being for being in s.world.beings if being.town == town]
    seller = t.pick(sellers, lambda being: f". By the {town.landmark} {being.known}")
    wares = seller.trade.wares
    t.say(f" sold {wares}.")
    bought = t.pick(range(4, 10), lambda n: f" {hero.name} bought {WORDS.numbers[n]} of them")
    price = t.pick(range(2, 5), lambda n: f" for {WORDS.numbers[n]} pennies each")
    t.say(f" and paid {WORDS.numbers[bought * price]} pennies. Then {hero.she} bought")
    others = things(t, town.name, 2)
    t.say(f". On the way home {hero.she} gave")
    given = t.pick(range(1, bought - 1), lambda n: f" {WORDS.numbers[n]} of the {wares}")
    t.pick(_without(s.world.beings, hero, seller), lambda being: f" to {being.known}")
    t.say(f", and came home with {WORDS.numbers[bought - given]} {wares}, {others[0]} and {others[1]}.")
    return f"the {wares} from {town.name}"


def lost(t: Teller, s: Scene) -> str:
    """Lose something from the shelf, look for it, and find it with another's help."""
    hero = s.hero
    gone = t.pick(s.shelf, lambda some: f"{some} were gone.")
    first = t.pick(WORDS.places, lambda place: f" {hero.She} looked {place}")
    second = t.pick(_without(WORDS.places, first), lambda place: f" and {place}, but found only")
    things(t, second, 2)
    other = t.pick(_without(s.world.beings, hero), lambda being: f". Then {hero.she} asked {being.known}")
    t.vary(
        f", who was making {other.trade.wares} in the {other.trade.workplace}.",
        f", who lived in {other.town.name}, near the {other.town.landmark}.",
        f", who was just eating {other.food}.",
    )
    t.vary(' "I saw', ' "They were taken by', ' "Ask')
    sight(t, s.season)
    t.say(f'," said {other.name}. {hero.name} went there')
    t.pick(WORDS.manners, lambda word: f" {word}")
    t.say(f", and there lay the {gone}.")
    return f"the {gone} and {other.name}"


def visit(t: Teller, s: Scene) -> str:
    """Bring the best friend some wares, of which a few are lost on the way."""
    hero, friend = s.hero, s.world.friends[s.hero.name]
    wares = hero.trade.wares
    t.say(f"{friend.known}, the {friend.trade.name} of {friend.town.name}, {_walk(hero.town, friend.town)}.")
    asked = t.pick(range(4, 13), lambda n: f' "Come soon and bring {WORDS.numbers[n]} {wares},')
    brought = things(t, friend.name, 2)
    t.say(f'," it said. {hero.name} packed everything')
    t.pick(WORDS.manners, lambda word: f" {word}. On the way {hero.she} met")
    sight(t, s.season)
    gone = t.pick(range(2, asked - 1), lambda n: f", and {WORDS.numbers[n]} of the {wares}")
    t.vary(" fell into a ditch.", " were stolen by a thief.", " were lost in a river.", " went to a hungry giant.")
    t.say(f" So {hero.she} came to the {friend.town.landmark} with {WORDS.numbers[asked - gone]} {wares},")
    t.say(f" {brought[0]} and {brought[1]}.")
    t.vary(f" {friend.name} laughed and served {friend.food}.", f" {friend.name} hugged {hero.them}.")
    return f"{friend.name} and the {brought[0]}"


def disaster(t: Teller, s: Scene) -> str:
    """Mend the landmark of the home town with two helpers, and thank them in turn."""
    hero, landmark = s.hero, s.hero.town.landmark
    first = _helper(t, "First", _strangers(s))
    second = _helper(t, "Then", _strangers(s, first))
    t.say(" Under the ruins they found")
    sight(t, s.season)
    t.say(" and")
    things(t, landmark, 2)
    days = t.pick(range(2, 13), lambda n: f". They worked for {WORDS.numbers[n]} days,")
    t.say(f" and {hero.name} cooked {first.food} for {first.name} and {second.food} for {second.name}.")
    t.say(f" After {WORDS.numbers[days]} days the {landmark} stood again.")
    one = t.pick(s.shelf, lambda some: f" {hero.name} thanked {first.name} with the {some}")
    t.pick(_without(s.shelf, one), lambda some: f" and {second.name} with the {some}.")
    return f"{first.name} and {second.name}"


def _helper(t: Teller, order: str, others: Sequence[Being]) -> Being:
    helper = t.pick(others, lambda being: f" {order} {being.known} came from {being.town.name}")
    t.say(f" with {helper.their} {helper.trade.tool}.")
    return helper


def contest(t: Teller, s: Scene) -> str:
    """Compete with two others for prizes."""
    hero = s.hero
    event = t.pick(WORDS.events, lambda event: f"{event}. The prizes were")
    prizes = things(t, event, 3)
    one = t.pick(_strangers(s), lambda being: f". {being.known} came from {being.town.name}")
    two = t.pick(_strangers(s, one), lambda being: f" and {being.known} from {being.town.name}.")
    t.say(" They were watched by")
    sight(t, s.season)
    winner = t.pick((hero, one, two), lambda being: f". {being.name} was first")
    points = t.pick(range(8, 17), lambda n: f" with {WORDS.numbers[n]} points and took the {prizes[0]}.")
    second = t.pick(_without((hero, one, two), winner), lambda being: f" {being.name} had")
    fewer = t.pick(range(1, 5), lambda n: f" {WORDS.numbers[n]} fewer,")
    (last,) = _without((hero, one, two), winner, second)
    t.say(f" that is {WORDS.numbers[points - fewer]}, and took the {prizes[1]}.")
    t.say(f" {last.name} was last and took the {prizes[2]}.")
    return f"the {event} and the {prizes[0]}"


def order(t: Teller, s: Scene) -> str:
    """Make what a customer ordered, and add something from the shelf."""
    hero, wares = s.hero, s.hero.trade.wares
    guest = t.pick(_strangers(s), lambda being: f" It was {being.known}")
    t.say(f", the {guest.trade.name} of {guest.town.name}, {_walk(hero.town, guest.town)}.")
    count = t.pick(range(3, 10), lambda n: f' "I need {WORDS.numbers[n]} {wares},"')
    price = t.pick(range(2, 5), lambda n: f' {guest.she} said, "for {WORDS.numbers[n]} pennies each,')
    wanted = things(t, guest.name, 2)
    ready = t.pick(range(1, count), lambda n: f'." {hero.She} had only {WORDS.numbers[n]},')
    t.say(f" so {hero.she} took {hero.their} {hero.trade.tool} and made {WORDS.numbers[count - ready]} more, while")
    t.vary(f" {guest.she} talked to", f" {guest.she} played with", f" {guest.she} ate {guest.food} with")
    sight(t, s.season)
    t.say(f". Then {guest.name} took the {WORDS.numbers[count]} {wares}, the {wanted[0]} and the {wanted[1]}")
    t.say(f" and paid {WORDS.numbers[count * price]} pennies for the {wares}.")
    return f"{guest.name} and the {wanted[1]}"


def ending(t: Teller, s: Scene, memory: str) -> None:
    """Look back at the story, and out of the window."""
    hero, town = s.hero, s.hero.town
    t.vary(
        f" That night {hero.known} slept well and dreamed of {memory}.",
        f" From that day on everyone in {town.name} spoke of {memory} and of {s.nature} {hero.name}.",
        f" When {s.season} came again, {s.nature} {hero.name} still remembered {memory}.",
        f" {hero.She} told everyone in {town.name} about {memory}, and they ate {hero.food} until midnight.",
    )
    t.vary(" Outside they heard", " Through the window they saw", " And if you go there, you may still find")
    sight(t, hero.town.name)
    t.say(".")


PLOTS = (
    Plot(lambda s: f" {s.hero.name} set out for the market in ", market),
    Plot(lambda s: f" {s.hero.name} saw that the ", lost),
    Plot(lambda s: f" a letter came from {s.hero.name}'s best friend, ", visit),
    Plot(lambda s: f" a {WORDS.disasters[s.season]} ruined the {s.hero.town.landmark}.", disaster),
    Plot(lambda s: f" {s.hero.town.name} held a ", contest),
    Plot(lambda s: f" somebody knocked at the door of the {s.hero.trade.workplace}.", order),
)


def _strangers(s: Scene, *left_out: Being) -> list[Being]:
    """Return the beings of other towns than the hero's."""
    return [being for being in _without(s.world.beings, *left_out) if being.town != s.hero.town]


def _walk(start: Town, end: Town) -> str:
    hours, direction = way(start, end)
    return f"{WORDS.numbers[hours]} {'hour' if hours == 1 else 'hours'} to the {direction} of {start.name}"


def _without(items: Sequence[T], *left_out: T) -> list[T]:
    return [item for item in items if item not in left_out]


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
