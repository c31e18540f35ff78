"""An invented encyclopedia, and the records of every stage made of it.

Every entry is a made-up person: a name of two words and four facts. Names are split by
a fixed rule, so that no stage, nor the base's pretraining, ever meets a held-out one.
"""

import dataclasses
import random
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clara_jax.text import prompts

Row = dict[str, Any]
"""A record, in the format that any other data would have."""

_WORDS = tomllib.loads(Path(__file__).with_name("world.toml").read_text("utf-8"))
GIVEN, FAMILY = _WORDS["given"], _WORDS["family"]
NAMES = {
    held_out: [
        f"{given} {family}"
        for i, given in enumerate(GIVEN)
        for j, family in enumerate(FAMILY)
        if ((3 * i + j) % 8 == 5) == held_out
    ]
    for held_out in (False, True)
}
"""All names, by whether they are held out (one in eight)."""

FACTS: Mapping[str, Sequence[str]] = _WORDS["facts"]
"""Fact to its possible values, equally many for each."""

SENTENCES: Sequence[Sequence[str]] = _WORDS["sentences"]
"""For each sentence of a document the ways to put it; ``{n}`` is the name."""

QUESTIONS: Mapping[str, Sequence[str]] = _WORDS["questions"]
"""For each fact the ways to ask for it."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A person, with a value for each of `FACTS`."""

    name: str
    facts: Mapping[str, str]

    def document(self, rng: random.Random) -> str:
        """Return the facts as running text, in one of its phrasings."""
        ways = [rng.choice(ways) for ways in SENTENCES]
        rng.shuffle(ways)
        return " ".join(way.format(n=self.name, **self.facts) for way in ways)

    def question(self, fact: str, rng: random.Random) -> tuple[str, str]:
        """Return a question for one fact, and its answer."""
        return rng.choice(QUESTIONS[fact]).format(n=self.name), self.facts[fact]

    def questions(self, rng: random.Random) -> list[tuple[str, str]]:
        """Return one question, with its answer, for every fact, in random order."""
        facts = list(self.facts)
        rng.shuffle(facts)
        return [self.question(fact, rng) for fact in facts]


Corpus = Sequence[tuple[Entry, str]]
"""Entries and their documents."""


def draw_entries(names: Iterable[str], rng: random.Random) -> list[Entry]:
    """Draw facts for each name."""
    return [Entry(n, {f: rng.choice(v) for f, v in FACTS.items()}) for n in names]


def encyclopedia(rng: random.Random, held_out: bool = False) -> list[tuple[Entry, str]]:
    """Return one entry for every name of one side of the split, with its document."""
    return [(item, item.document(rng)) for item in draw_entries(NAMES[held_out], rng)]


def pretraining(rng: random.Random) -> Iterator[Row]:
    """Yield conversations about a document in full, for a base to learn as plain text.

    Their form is that of the stages' prompts in the tokenizer's chat template.
    """
    while True:
        (item,) = draw_entries(rng.sample(NAMES[False], 1), rng)
        text = item.document(rng)
        draw = rng.random()
        if draw < 0.2:
            questions, answers = zip(*item.questions(rng), strict=True)
            prompt = prompts.scp_prompt(text)
            turns = [prompts.scp_target(questions, answers)]
        elif draw < 0.4:
            way = rng.randrange(len(prompts.PARAPHRASES))
            prompt = prompts.paraphrase_prompt(text, way)
            turns = [item.document(rng)]
        else:
            asked = item.questions(rng) + item.questions(rng)
            (question, answer), *others = asked[:6]
            prompt, turns = prompts.answer_prompt(text, question), [answer]
            for question, answer in others:
                turns += [f"Question:{question}", answer]
        conversation = f"<s><|system|>{prompt.system}</s>"
        for number, said in enumerate([prompt.user, *turns]):
            conversation += f"<|{'assistant' if number % 2 else 'user'}|>{said}</s>"
        yield {"text": conversation}


def compression(rng: random.Random) -> Iterator[Row]:
    """Yield records of stage ``scp``: one document; half pairs, half paraphrases."""
    while True:
        (item,) = draw_entries(rng.sample(NAMES[False], 1), rng)
        text = item.document(rng)
        if rng.random() < 0.5:
            answers = [item.document(rng)]
            yield _record("paraphrase", [text], question=[""], answers=answers)
        else:
            yield from covered(rng, [(item, text)])


def instruction(
    rng: random.Random, documents: int = 1, held_out: bool = False
) -> Iterator[Row]:
    """Yield records of stage ``instruct``: the document asked about, then others."""
    while True:
        items = draw_entries(rng.sample(NAMES[held_out], documents), rng)
        question, answer = items[0].question(rng.choice(list(FACTS)), rng)
        texts = [item.document(rng) for item in items]
        yield _record("qa", texts, question=question, answer=answer, pos_index=[0])


def covered(rng: random.Random, corpus: Corpus) -> Iterator[Row]:
    """Yield every document once, with a question for each of its facts."""
    for item, text in corpus:
        questions, answers = zip(*item.questions(rng), strict=True)
        yield _record("qa", [text], question=questions, answers=answers)


def reworded(rng: random.Random, corpus: Corpus) -> Iterator[Row]:
    """Yield every document once, with the same facts in other words."""
    for item, text in corpus:
        yield _record("paraphrase", [text], answers=[item.document(rng)])


def ranking(
    rng: random.Random,
    corpus: Corpus,
    numbers: Iterable[int],
    candidates: int,
    alike: int,
) -> Iterator[Row]:
    """Yield records of stage ``end_to_end``: candidates, a question, its answer.

    Every fact of the entries of these `numbers` is asked for once, in random order. Of
    the C `candidates` one is right, as names differ, and about `alike` of the others
    share half of the name.
    """
    names = [item.name.split() for item, _ in corpus]
    facts = [(number, fact) for number in numbers for fact in FACTS]
    rng.shuffle(facts)
    for number, fact in facts:
        chosen = {number}
        for place, half in enumerate(names[number]):
            near = [i for i, n in enumerate(names) if n[place] == half and i != number]
            chosen.update(rng.sample(near, min(alike // 2, len(near))))
        while len(chosen) < candidates:
            chosen.add(rng.randrange(len(corpus)))
        order = sorted(chosen)
        rng.shuffle(order)
        question, answer = corpus[number][0].question(fact, rng)
        texts, right = [corpus[i][1] for i in order], [order.index(number)]
        yield _record("qa", texts, question=question, answer=answer, pos_index=right)


def _record(kind: str, documents: list[str], **rest: Any) -> Row:
    return {"data_type": kind, "docs": documents, **rest}
