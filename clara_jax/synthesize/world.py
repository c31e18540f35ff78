"""An invented encyclopedia: people and the towns they come from, all of them made up.

Every entry is a name of two words and four facts of several words each. Names are split
once, by a fixed rule, into those that training may use and those that are held out, so
that no stage, the base's pretraining included, ever meets a held-out name.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Mapping, Sequence

GIVEN = (
    "Abo Bela Cato Dima Eno Falu Gori Hana Iko Jala Kemi Luso Mira Nodo Oda Pavi Quno "
    "Rema Sito Tula Udo Vani Wero Xana Yori Zeka Bruno Orso"
).split()
FAMILY = (
    "Alden Barrow Cinder Dorsey Ember Fallow Garrick Harlow Inkwell Jasper Kestrel "
    "Linden Marlow Norvik Osprey Pinter Quill Rowan Sorrel Thistle Umber Vesper Wicket "
    "Yarrow Zephyr Birch Cobalt Draper"
).split()

_TOWNS = (
    "Port Aldra,New Boreth,Old Corvane,Fort Delmar,Lake Estrel,Mount Forlan,"
    "Cape Gadira,Saint Hestia,Port Istrin,New Jorvia,Old Kaldor,Fort Lumen,Lake Morwen,"
    "Mount Nestor,Cape Ostara,Saint Perrin"
).split(",")
_YEARS = [
    f"the year of the {beast}"
    for beast in (
        "fox owl bear wolf hare crane otter lynx raven stag toad moth heron adder mole "
        "swan"
    ).split()
]
_WORKS = (
    "stone carver,glass blower,bread baker,boat builder,clock maker,sheep shearer,"
    "cloth weaver,silver smith,wine trader,bell ringer,map drawer,horse trainer,"
    "roof mender,salt miner,lamp lighter,letter writer"
).split(",")
_FAMES = (
    "red lamps,green tea,white horses,wild honey,old songs,sharp knives,paper kites,"
    "cold soup,tall towers,fine silk,sweet plums,blue pottery,long poems,rare books,"
    "black cheese,wooden toys"
).split(",")
FACTS: Mapping[str, Sequence[str]] = {
    "birthplace": _TOWNS,
    "birthyear": _YEARS,
    "work": _WORKS,
    "fame": _FAMES,
}
"""Fact to its possible values."""

SENTENCES = (
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
)
"""For each sentence of a document the ways to put it; ``{n}`` is the name."""

QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "birthplace": ("Where was {n} born?", "What is the birthplace of {n}?"),
    "birthyear": ("When was {n} born?", "What is the birth year of {n}?"),
    "work": ("What was the work of {n}?", "As what has {n} worked?"),
    "fame": ("For what was {n} famous?", "What was the fame of {n}?"),
}
"""For each fact the ways to ask for it."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A person, with facts by name of the fact."""

    name: str
    facts: Mapping[str, str]


def names(held_out: bool) -> list[str]:
    """All names on one side of the fixed split (one in eight is held out)."""
    return [
        f"{given} {family}"
        for i, given in enumerate(GIVEN)
        for j, family in enumerate(FAMILY)
        if ((3 * i + j) % 8 == 5) == held_out
    ]


def entry(name: str, rng: random.Random) -> Entry:
    """An entry of this name with facts drawn afresh."""
    return Entry(name, {fact: rng.choice(values) for fact, values in FACTS.items()})


def document(item: Entry, rng: random.Random) -> str:
    """The entry's facts as running text, in one of its phrasings."""
    ways = [rng.choice(ways) for ways in SENTENCES]
    rng.shuffle(ways)
    return " ".join(way.format(n=item.name, **item.facts) for way in ways)


def question(item: Entry, fact: str, rng: random.Random) -> tuple[str, str]:
    """A question for one fact, and its answer."""
    return rng.choice(QUESTIONS[fact]).format(n=item.name), item.facts[fact]


def questions(item: Entry, rng: random.Random) -> list[tuple[str, str]]:
    """One question for every fact, in random order."""
    facts = list(item.facts)
    rng.shuffle(facts)
    return [question(item, fact, rng) for fact in facts]


def count_values(value: str) -> int:
    """How many values a fact could have had that has this one."""
    return next(len(values) for values in FACTS.values() if value in values)


def words() -> list[str]:
    """Every word of the encyclopedia, sorted."""
    texts = [*GIVEN, *FAMILY]
    for values in (*FACTS.values(), *SENTENCES, *QUESTIONS.values()):
        texts += values
    found: set[str] = set()
    for text in texts:
        found.update(re.findall(r"\w+|[^\w\s]", re.sub(r"\{\w+\}", " ", text)))
    return sorted(found)
