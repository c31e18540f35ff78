"""Records of every stage, in the formats that any other data would have."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from clara_jax.synthesize import world
from clara_jax.synthesize.world import Entry
from clara_jax.text import (
    PARAPHRASES,
    Prompt,
    answer_prompt,
    paraphrase_prompt,
    scp_prompt,
    scp_target,
)

Row = dict[str, Any]

_NAMES = {held_out: world.names(held_out) for held_out in (False, True)}


def entries(count: int, rng: random.Random, held_out: bool = False) -> list[Entry]:
    """Draw entries with different names and fresh facts."""
    chosen = rng.sample(_NAMES[held_out], count)
    return [world.entry(name, rng) for name in chosen]


def pretraining(rng: random.Random, turns: int = 6) -> Iterator[Row]:
    """Rows of plain text for a base: conversations about a document in full.

    They have the form of the stages' prompts, so that the base knows them as an
    instruction-tuned model does.

    Args:
      rng: source of chance.
      turns: questions about a document in one conversation.
    """
    while True:
        (item,) = entries(1, rng)
        text = world.document(item, rng)
        draw = rng.random()
        if draw < 0.2:
            prompt, answer = scp_prompt(text), pairs(item, rng)
            yield {"text": conversation(prompt, [answer])}
        elif draw < 0.4:
            prompt = paraphrase_prompt(text, rng.randrange(len(PARAPHRASES)))
            yield {"text": conversation(prompt, [world.document(item, rng)])}
        else:
            asked = world.questions(item, rng) + world.questions(item, rng)
            first, *others = asked[:turns]
            turn = [first[1]]
            for question, answer in others:
                turn += [f"Question:{question}", answer]
            yield {"text": conversation(answer_prompt(text, first[0]), turn)}


def conversation(prompt: Prompt, turns: Sequence[str]) -> str:
    """A conversation as the tokenizer's chat template renders it."""
    roles = ("assistant", "user")
    text = f"<s><|system|>{prompt.system}</s><|user|>{prompt.user}</s>"
    return text + "".join(
        f"<|{roles[i % 2]}|>{turn}</s>" for i, turn in enumerate(turns)
    )


def pairs(item: Entry, rng: random.Random) -> str:
    """All questions on an entry with their answers, as stage ``scp`` asks for them."""
    asked = world.questions(item, rng)
    return scp_target([q for q, _ in asked], [a for _, a in asked])


def compression(rng: random.Random, held_out: bool = False) -> Iterator[Row]:
    """Records of stage ``scp``: one document; half pairs, half paraphrases."""
    while True:
        (item,) = entries(1, rng, held_out)
        text = world.document(item, rng)
        if rng.random() < 0.5:
            yield {
                "data_type": "paraphrase",
                "docs": [text],
                "question": [""],
                "answers": [world.document(item, rng)],
            }
        else:
            asked = world.questions(item, rng)
            yield {
                "data_type": "qa",
                "docs": [text],
                "question": [q for q, _ in asked],
                "answers": [a for _, a in asked],
            }


def instruction(
    rng: random.Random, documents: int = 1, held_out: bool = False
) -> Iterator[Row]:
    """Records of stage ``instruct``: the document asked about, then others."""
    while True:
        items = entries(documents, rng, held_out)
        question, answer = world.question(
            items[0], rng.choice(list(items[0].facts)), rng
        )
        yield {
            "data_type": "qa",
            "docs": [world.document(item, rng) for item in items],
            "question": question,
            "answer": answer,
            "pos_index": [0],
        }


def encyclopedia(rng: random.Random, held_out: bool = False) -> list[tuple[Entry, str]]:
    """One entry for every name of one side of the split, with its document."""
    items = [world.entry(name, rng) for name in _NAMES[held_out]]
    return [(item, world.document(item, rng)) for item in items]


def covered(rng: random.Random, corpus: Sequence[tuple[Entry, str]]) -> Iterator[Row]:
    """Every document once, with a question for each of its facts."""
    for item, text in corpus:
        asked = world.questions(item, rng)
        yield {
            "data_type": "qa",
            "docs": [text],
            "question": [q for q, _ in asked],
            "answers": [a for _, a in asked],
        }


def reworded(rng: random.Random, corpus: Sequence[tuple[Entry, str]]) -> Iterator[Row]:
    """Every document once, with the same facts in other words."""
    for item, text in corpus:
        other = world.document(item, rng)
        yield {"data_type": "paraphrase", "docs": [text], "answers": [other]}


def ranking(
    rng: random.Random,
    corpus: Sequence[tuple[Entry, str]],
    facts: Iterable[tuple[int, str]],
    candidates: int,
    alike: int,
) -> Iterator[Row]:
    """Records of stage ``end_to_end``: candidates, a question, its answer.

    Args:
      rng: source of chance.
      corpus: entries and documents; names differ, so one candidate alone is right.
      facts: number of an entry in the corpus, and the fact to ask for.
      candidates: C, the right document included.
      alike: how many of the others share half of the name, where there are so many.
    """
    by_half: dict[tuple[int, str], list[int]] = {}
    for number, (item, _) in enumerate(corpus):
        for key in _halves(item):
            by_half.setdefault(key, []).append(number)
    for number, fact in facts:
        item = corpus[number][0]
        chosen = {number}
        for key in _halves(item):
            near = [i for i in by_half[key] if i != number]
            chosen.update(rng.sample(near, min(alike // 2, len(near))))
        while len(chosen) < candidates:
            chosen.add(rng.randrange(len(corpus)))
        order = sorted(chosen)
        rng.shuffle(order)
        question, answer = world.question(item, fact, rng)
        yield {
            "data_type": "qa",
            "docs": [corpus[i][1] for i in order],
            "question": question,
            "answer": answer,
            "pos_index": [order.index(number)],
        }


def _halves(item: Entry) -> list[tuple[int, str]]:
    return list(enumerate(item.name.split()))


def asked(
    rng: random.Random, corpus: Sequence[tuple[Entry, str]], numbers: Iterable[int]
) -> list[tuple[int, str]]:
    """All facts of the entries of these numbers, in random order."""
    found = [(number, fact) for number in numbers for fact in corpus[number][0].facts]
    rng.shuffle(found)
    return found
