"""Tiny tales in simple English, made by rule: each has someone who wants something, a trouble, and an end.

A tale follows a plot (`scratchlm.text.plots`), whose beats can each be told in a few ways, with a hero, a place and
small things drawn for it. The other one is always of the other gender, so that "he" and "she" are never in doubt.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scratchlm.text.plots import PLOTS

N_TALES = 12_000  # about 9 MB, so that tales are not the first of the built-in sources to run dry

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


class _Character:
    """Someone in a tale; its own text is the name."""

    def __init__(self, name: str, kind: str, is_female: bool, intro: str = "") -> None:
        self.name, self.kind, self.intro = name, kind, intro
        self.he, self.him, self.his = ("she", "her", "her") if is_female else ("he", "him", "his")
        self.He, self.His, self.himself = self.he.capitalize(), self.his.capitalize(), f"{self.him}self"
        self.Intro = intro[:1].upper() + intro[1:]

    def __str__(self) -> str:
        return self.name


class _Thing(str):
    """A noun with its article at hand: `{thing}` and `{thing.a}`."""

    @property
    def a(self) -> str:
        return f"{'an' if self[0] in 'aeiou' else 'a'} {self}"


@dataclass(frozen=True)
class _World:
    home: str
    outdoors: str
    spots: Sequence[str]
    junk: Sequence[str]


@dataclass(frozen=True)
class _Plot:
    other: str  # who the other one is: friend, elder, family or small
    lists: Sequence[
        tuple[Sequence[str], Sequence[Sequence[str]]]
    ]  # names, and the options that give each of them a text
    beats: Sequence[Sequence[str]]


def _plot(text: str) -> _Plot:
    head, *blocks = text.strip().split("\n\n")
    other, *lines = head.replace("\n ", " ").split("\n")
    lists = []
    for line in lines:
        names, options = line.split(" = ")
        lists.append((names.split(" / "), [" ".join(o.split()).split(" / ") for o in options.split(" ; ")]))
    beats = [[" ".join(way.split()) for way in f"\n{block}".split("\n- ")[1:]] for block in blocks]
    return _Plot(other, lists, beats)


def tales(n_tales: int = N_TALES) -> Iterator[tuple[str, str]]:
    """The tales with their ids, by number; no two are alike.

    Yields:
        (text, id).
    """
    seen: set[str] = set()
    for number in range(n_tales):
        attempt = 0
        while (text := _tale(number, attempt)) in seen:
            attempt += 1
        seen.add(text)
        yield text, f"tale-{number}"


def _listed(text: str) -> list[str]:
    return [" ".join(entry.split()) for entry in text.split(",")]


class _Dice:
    """Draws that are the same in every Python: only `random()` is promised to be."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def pick(self, options: Sequence[Any]) -> Any:
        return options[int(self._random() * len(options))]

    def pick_some(self, options: Sequence[Any], n: int) -> list[Any]:
        left = list(options)
        return [left.pop(int(self._random() * len(left))) for _ in range(n)]


def _tale(number: int, attempt: int) -> str:
    dice = _Dice(f"tale {number} {attempt}")
    plot: _Plot = dice.pick(_PLOTS)
    hero, other = _characters(dice, plot.other)
    world: _World = dice.pick(_WORLDS)
    words: dict[str, Any] = {"h": hero, "f": other, "home": world.home, "outdoors": world.outdoors}
    words |= zip(("spot", "spot2", "spot3"), dice.pick_some(world.spots, 3), strict=True)
    words |= zip(("junk", "junk2"), dice.pick_some(world.junk, 2), strict=True)
    words |= zip(("hobby", "hobby2"), dice.pick_some(_HOBBIES, 2), strict=True)
    words["thing"] = _Thing(f"{dice.pick(_LOOKS)} {dice.pick(_TREASURES)}")
    for names, options in plot.lists:
        words |= zip(names, dice.pick(options), strict=True)
    text = "\n\n".join(dice.pick(beat) for beat in (_OPENINGS, *plot.beats))
    text = text.replace("{when}", _WHEN).replace("{weather}", _WEATHER)
    text = _CHOICE.sub(lambda found: str(dice.pick(found[1].split("|"))), text)
    text = text.format(**words).format(**words)  # an option may name the hero as well
    return text.replace("  ", " ").replace(" \n", "\n").strip()


def _characters(dice: _Dice, other: str) -> tuple[_Character, _Character]:
    is_female = dice.pick((True, False))
    names, other_names = (_SHE, _HE) if is_female else (_HE, _SHE)
    animal = dice.pick((True, False))
    kind = dice.pick(_ANIMALS) if animal else ("girl" if is_female else "boy")
    hero = _Character(dice.pick(names), _Thing(f"{dice.pick(_TRAITS)} {kind}").a, is_female)
    name = dice.pick(other_names)
    if other in ("elder", "family"):
        elders = _GRANDFATHERS if is_female else _GRANDMOTHERS
        title, intro = dice.pick(elders if other == "elder" else [elder for elder in elders if "{h.his}" in elder[1]])
        return hero, _Character(title, "", not is_female, intro.format(h=hero))
    if other == "small":
        creature = dice.pick(_SMALL)
        return hero, _Character(name, creature, not is_female, _Thing(creature).a)
    return hero, _Character(name, "", not is_female, f"{hero.his} friend {name}")


_SHE = _listed("""Mia, Lily, Anna, Rosa, Nora, Ella, Ivy, Hazel, Luna, Clara, Ruby, Daisy, Maya, Tess, Wren, Pearl,
     June, Olive, Poppy, Zoe, Freya, Lena, Sofia, Mina, Ada, Greta, Tilly, Nell, Amber, Bella, Cora, Edie, Fern,
    Gwen, Holly, Iris, Kira, Maple, Penny, Willow""")
_HE = _listed("""Tom, Ben, Leo, Max, Sam, Finn, Oscar, Theo, Jack, Milo, Hugo, Owen, Felix, Otto, Jasper, Noah, Eli,
     Toby, Rory, Dan, Kai, Luke, Arlo, Bruno, Casper, Dexter, Emil, Gus, Henry, Ivan, Jonas, Karl, Louis, Niko,
    Pip, Rufus, Sol, Walter, Barney, Alfie""")
_TRAITS = _listed("""curious, shy, cheerful, clever, gentle, brave, dreamy, patient, lively, stubborn, quiet, kind,
     little, busy, careful, proud, playful, thoughtful, hopeful, merry, small, young, eager, friendly""")
_ANIMALS = _listed("""fox, rabbit, bear cub, mouse, hedgehog, duckling, squirrel, owl, kitten, puppy, frog, badger,
     otter, turtle, lamb, piglet, fawn, mole, beaver, raccoon, goat, pony""")
_SMALL = _listed("""tiny bird, baby turtle, small lizard, little bee, young swallow, grey kitten, baby hedgehog, small
     duck""")
# How they are called, and how they are first spoken of.
_GRANDMOTHERS = [
    ("Grandma", "{h.his} grandmother"),
    ("Mrs. Plum", "Mrs. Plum from next door"),
    ("Aunt May", "{h.his} Aunt May"),
    ("Mama", "{h.his} mother"),
    ("Mrs. Reed", "old Mrs. Reed"),
    ("Nana", "{h.his} Nana"),
    ("Miss Bell", "Miss Bell the teacher"),
    ("Mrs. Fig", "Mrs. Fig the baker"),
]
_GRANDFATHERS = [
    ("Grandpa", "{h.his} grandfather"),
    ("Mr. Hill", "Mr. Hill from next door"),
    ("Uncle Ray", "{h.his} Uncle Ray"),
    ("Papa", "{h.his} father"),
    ("Mr. Moss", "old Mr. Moss"),
    ("Pop", "{h.his} old Pop"),
    ("Mr. Lane", "Mr. Lane the teacher"),
    ("Mr. Oats", "Mr. Oats the baker"),
]
_HOBBIES = _listed("""counting the stars, climbing trees, singing silly songs, collecting smooth stones, drawing
     pictures, telling jokes, jumping in puddles, watching the clouds, baking small cakes, reading by the window,
    building towers, looking for bugs, dancing in the kitchen, making up stories, feeding the birds, running down
    hills, picking flowers, playing hide and seek, listening to the rain, whistling""")
_LOOKS = _listed("red, blue, green, yellow, silver, shiny, old, tiny, wooden, striped, soft, round, orange, pretty")
_TREASURES = _listed("""button, bell, scarf, whistle, marble, mitten, key, ribbon, toy boat, hat, drum, spoon, cup,
     ball, kite""")
_WORLDS = [
    _World(
        "in a white house by the sea",
        "the beach",
        _listed("""behind the big rock, under the old boat, beside the tide pool, near the wooden pier, at the foot of
             the dunes"""),
        _listed("a crab, some seaweed, an empty shell, a wet feather"),
    ),
    _World(
        "at the edge of a deep forest",
        "the woods",
        _listed("""under the tall pine, behind the mossy log, beside the little stream, near the hollow oak, among the
             ferns"""),
        _listed("a pile of leaves, three mushrooms, a sleepy beetle, an acorn"),
    ),
    _World(
        "on a small farm",
        "the meadow",
        _listed("""behind the red barn, under the apple tree, beside the duck pond, near the wooden gate, in the tall
             grass"""),
        _listed("a brown hen, a broken bucket, some hay, a dandelion"),
    ),
    _World(
        "in a busy town",
        "the park",
        _listed("""behind the fountain, under the green bench, beside the sandbox, near the swings, at the foot of the
             slide"""),
        _listed("a paper cup, two pigeons, an old newspaper, a bottle cap"),
    ),
    _World(
        "in a village high in the mountains",
        "the hillside",
        _listed("""behind the stone wall, under the crooked tree, beside the cold spring, near the wooden bridge, on
             the sunny ledge"""),
        _listed("a grey stone, a patch of snow, a goat's bell, some moss"),
    ),
    _World(
        "in a cottage by the river",
        "the riverbank",
        _listed("""behind the reeds, under the willow, beside the old mill, near the stepping stones, by the little
             dock"""),
        _listed("a green frog, a broken twig, a fishing line, some mud"),
    ),
    _World(
        "in a house with a big garden",
        "the garden",
        _listed("""behind the shed, under the rose bush, beside the birdbath, near the bean rows, between the flower
             pots"""),
        _listed("a fat worm, an old glove, a snail, a bent nail"),
    ),
    _World(
        "on a green island",
        "the shore",
        _listed("""behind the lighthouse, under the palm tree, beside the fishing nets, near the white cliff, at the
             end of the path"""),
        _listed("a coconut, a piece of rope, a gull's feather, a blue shell"),
    ),
]
_WEATHER = (
    "[The sun was warm and the air was sweet.|A soft wind was blowing.|The sky was blue from one end to the other.|"
    "Birds were singing in every tree.|The morning dew still shone.|Small white clouds sailed by.|"
    "Bees hummed in the flowers.|]"
)
_WHEN = "[One|One fine|One bright|One windy|One quiet] [morning|afternoon|day]"
_OPENINGS = (
    "[Once upon a time|Once|Long ago|Not so long ago], {home}, there lived {h.kind} named {h}. {h.He} loved {hobby}.",
    "[Once upon a time|Once] there was {h.kind} named {h}, who lived {home} and liked {hobby}[ best of all|].",
    "{h} was {h.kind} who lived {home}. {h.He} liked {hobby} and {hobby2}.",
    "{h} lived {home}. {h.He} was {h.kind} who [always|often] dreamed of {hobby}.",
    "There was once {h.kind} named {h}. {h.His} home was {home}, and every day {h.he} [found time for|thought about] "
    "{hobby}.",
)
_PLOTS = [_plot(text) for text in PLOTS]
