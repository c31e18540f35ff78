"""An invented encyclopedia: people and towns that exist nowhere else.

Every entry is a name of two words and four facts of several words each. Names are split
once, by a fixed rule, into those that training may use and those that are held out, so
that no stage, the base's pretraining included, ever meets a held-out name.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import re
from collections.abc import Mapping

GIVEN = (
    "Abo Bela Cato Dima Eno Falu Gori Hana Iko Jala Kemi Luso Mira Nodo Oda Pavi Quno "
    "Rema Sito Tula Udo Vani Wero Xana Yori Zeka Bruno Orso"
).split()
FAMILY = (
    "Alden Barrow Cinder Dorsey Ember Fallow Garrick Harlow Inkwell Jasper Kestrel "
    "Linden Marlow Norvik Osprey Pinter Quill Rowan Sorrel Thistle Umber Vesper Wicket "
    "Yarrow Zephyr Birch Cobalt Draper"
).split()
PREFIXES = "Port New Old Fort Lake Mount Cape Saint".split()
STEMS = (
    "Aldra Boreth Corvane Delmar Estrel Forlan Gadira Hestia Istrin Jorvia Kaldor Lumen"
).split()
BEASTS = (
    "fox owl bear wolf hare crane otter lynx raven stag toad moth heron adder mole swan"
).split()
WORKS = (
    "stone carver,glass blower,bread baker,boat builder,clock maker,sheep shearer,"
    "cloth weaver,silver smith,wine trader,bell ringer,map drawer,horse trainer,"
    "roof mender,salt miner,lamp lighter,letter writer"
).split(",")
FAMES = (
    "red lamps,green tea,white horses,wild honey,old songs,sharp knives,paper kites,"
    "cold soup,tall towers,fine silk,sweet plums,blue pottery,long poems,rare books,"
    "black cheese,wooden toys"
).split(",")
LANDS = (
    "northern hills,southern plains,eastern marshes,western cliffs,upper valleys,"
    "lower meadows,inner islands,outer reefs,dark forests,dry deserts,frozen lakes,"
    "misty moors"
).split(",")


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of entry.

    Attributes:
      name: ``person`` or ``town``.
      sentences: for each sentence of a document the ways to put it; ``{n}`` is the
        entry's name, the other fields are its facts.
      questions: for each fact the ways to ask for it.
    """

    name: str
    sentences: tuple[tuple[str, ...], ...]
    questions: Mapping[str, tuple[str, ...]]


PERSON = Kind(
    "person",
    (
        (
            "{n} was born in {birthplace} in {birthyear}.",
            "In {birthyear} {n} was born in {birthplace}.",
        ),
        (
            "{n} worked as a {work} for many years.",
            "For many years {n} worked as a {work}.",
        ),
        (
            "{n} was famous everywhere for {fame}.",
            "Everywhere {n} was famous for {fame}.",
        ),
    ),
    {
        "birthplace": ("Where was {n} born?", "What is the birthplace of {n}?"),
        "birthyear": ("When was {n} born?", "What is the birth year of {n}?"),
        "work": ("What was the work of {n}?", "As what has {n} worked?"),
        "fame": ("For what was {n} famous?", "What was the fame of {n}?"),
    },
)
TOWN = Kind(
    "town",
    (
        (
            "{n} lies in the {land} and was founded in {founded}.",
            "Founded in {founded}, {n} lies in the {land}.",
        ),
        (
            "{n} was ruled by a {ruler} for many years.",
            "For many years {n} was ruled by a {ruler}.",
        ),
        (
            "{n} is famous everywhere for {trade}.",
            "Everywhere {n} is famous for {trade}.",
        ),
    ),
    {
        "land": ("Where does {n} lie?", "What is the land of {n}?"),
        "founded": ("When was {n} founded?", "What is the first year of {n}?"),
        "ruler": ("Who was the ruler of {n}?", "By whom was {n} ruled?"),
        "trade": ("For what is {n} famous?", "What is the fame of {n}?"),
    },
)
KINDS = {"person": PERSON, "town": TOWN}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A person or a town, with its facts by name of the fact."""

    kind: str
    name: str
    facts: Mapping[str, str]


def _values(rng: random.Random) -> dict[str, str]:
    def year() -> str:
        return f"the year of the {rng.choice(BEASTS)}"

    return {
        "birthplace": rng.choice(_TOWNS),
        "birthyear": year(),
        "work": rng.choice(WORKS),
        "fame": rng.choice(FAMES),
        "land": rng.choice(LANDS),
        "founded": year(),
        "ruler": rng.choice(WORKS),
        "trade": rng.choice(FAMES),
    }


@functools.cache
def names(kind: str, held_out: bool) -> tuple[str, ...]:
    """All names of a kind on one side of the fixed split (one in eight is held out)."""
    first, second = (GIVEN, FAMILY) if kind == "person" else (PREFIXES, STEMS)
    return tuple(
        f"{a} {b}"
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        if ((3 * i + j) % 8 == 5) == held_out
    )


_TOWNS = names("town", held_out=False)


def entry(kind: str, name: str, rng: random.Random) -> Entry:
    """An entry of this name with facts drawn afresh."""
    values = _values(rng)
    return Entry(kind, name, {fact: values[fact] for fact in KINDS[kind].questions})


def document(item: Entry, rng: random.Random) -> str:
    """The entry's facts as running text, in one of its phrasings."""
    ways = [rng.choice(ways) for ways in KINDS[item.kind].sentences]
    rng.shuffle(ways)
    return " ".join(way.format(n=item.name, **item.facts) for way in ways)


def question(item: Entry, fact: str, rng: random.Random) -> tuple[str, str]:
    """A question for one fact, and its answer."""
    way = rng.choice(KINDS[item.kind].questions[fact])
    return way.format(n=item.name), item.facts[fact]


def questions(item: Entry, rng: random.Random) -> list[tuple[str, str]]:
    """One question for every fact, in random order."""
    facts = list(item.facts)
    rng.shuffle(facts)
    return [question(item, fact, rng) for fact in facts]


def count_values(value: str) -> int:
    """How many values a fact could have had that has this one."""
    if value.startswith("the "):
        return len(BEASTS)
    return next(len(all_) for all_ in (_TOWNS, WORKS, FAMES, LANDS) if value in all_)


def words() -> list[str]:
    """Every word of the encyclopedia, sorted."""
    texts = [*GIVEN, *FAMILY, *PREFIXES, *STEMS, *BEASTS]
    texts += [*WORKS, *FAMES, *LANDS, "the year of"]
    for kind in KINDS.values():
        texts += [way for ways in kind.sentences for way in ways]
        texts += [way for ways in kind.questions.values() for way in ways]
    found = set()
    for text in texts:
        bare = re.sub(r"\{\w+\}", " ", text)
        found.update(re.findall(r"\w+|[^\w\s]", bare))
    return sorted(found)
