"""Evaluators: sums divided once, gold documents, selection, cached vectors."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from clara_jax.config import MemoryConfig, SelectionConfig
from clara_jax.data.records import Record
from clara_jax.evaluate import (
    CompressedAnswers,
    HeldOutLoss,
    SelectedAnswers,
    TextAnswers,
    questions_of,
    score_answers,
)
from clara_jax.evaluate.evaluators import shuffle_documents
from clara_jax.generate import AnswerConfig, Clara
from clara_jax.stages import make_loss
from clara_jax.testing import random_batch, toy_network, toy_tokenizer
from clara_jax.text import ClaraTokenizer
from clara_jax.train.step import make_eval_step

DOCUMENTS = ("Ada lives in Corin", "Edo lives in Gemma", "Hana lives in Jory")
RECORDS = [
    Record(
        documents=DOCUMENTS,
        questions=(f"Where does {name} live",),
        answers=(town,),
        positives=(i,),
        gold=(town, f"in {town}"),
    )
    for i, (name, town) in enumerate([("Ada", "Corin"), ("Edo", "Gemma")])
]
SEVERAL = Record(("a",), ("first", "second"), ("one", "two"))


@dataclasses.dataclass
class State:
    trainable: dict[str, Any]


@functools.cache
def parts():
    tokenizer = toy_tokenizer([*DOCUMENTS, *(r.questions[0] for r in RECORDS)])
    return tokenizer, toy_network(text_vocab=len(tokenizer))


def split(*trains):
    """The toy with some adapters in the state and the others frozen."""
    tokenizer, toy = parts()
    frozen = {k: v for k, v in toy.adapters.items() if k not in trains}
    clara = Clara(
        network=toy.replace(adapters=frozen),
        tokenizer=ClaraTokenizer(tokenizer, toy.num_memory),
        memory=MemoryConfig(doc_max_length=8, compression_rate=4),
        selection=SelectionConfig(top_k=2),
        config=AnswerConfig(max_new_tokens=3, batch_size=4),
    )
    trainable = {name: toy.adapters[name] for name in trains}
    return clara, State(trainable)


def complete(clara, state):
    network = clara.network.with_adapters(state.trainable)
    return dataclasses.replace(clara, network=network)


def test_questions_keep_their_own_answers():
    text = Record(("a",), kind="text")
    first, second, third = questions_of([SEVERAL, text, *RECORDS], limit=3)
    assert (first.question, first.gold) == ("first", ("one",))
    assert (second.question, second.gold) == ("second", ("two",))
    assert first.gold_documents == ("a",)
    assert third.gold == ("Corin", "in Corin")
    assert third.gold_documents == DOCUMENTS[:1]


@pytest.mark.parametrize("stage", ["scp", "end_to_end"])
def test_held_out_loss_divides_once(stage):
    toy = toy_network()
    selection = SelectionConfig(top_k=2)
    loss = make_loss(stage, selection=selection)
    # The same shapes, but other numbers of supervised tokens.
    batches = [random_batch(stage, rows=2, documents=2, seed=s) for s in (1, 2)]

    bare = toy.replace(adapters={})

    @jax.jit
    def step(trainable, network, batch):
        return loss(network.with_adapters(trainable), batch, None)

    evaluator = HeldOutLoss(step, bare, lambda: iter(batches))
    state = State(toy.adapters)
    results = dict(evaluator.run(state))
    assert results == dict(evaluator.run(state))
    found = [step(toy.adapters, bare, batch) for batch in batches]
    for name in found[0][0]:
        total = sum(float(sums[name]) for sums, _, _ in found)
        weight = sum(float(weights[name]) for _, weights, _ in found)
        np.testing.assert_allclose(results[f"loss/{name}"], total / weight, rtol=1e-5)
    terms = [value for name, value in results.items() if name.startswith("loss/")]
    assert results["loss"] == pytest.approx(sum(terms))


def test_answers_from_gold_documents():
    clara, state = split("compressor", "generator", "memory")
    questions = questions_of(RECORDS)
    results = dict(CompressedAnswers(clara, questions).run(state))
    model = complete(clara, state)
    answers = model.answer(
        [q.question for q in questions], [[d] for d in DOCUMENTS[:2]]
    )
    expected = score_answers(answers, [q.gold for q in questions])
    assert results == {f"gold/{name}": value for name, value in expected.items()}
    said = [
        dataclasses.replace(q, gold=(a,))
        for q, a in zip(questions, answers, strict=True)
    ]
    assert dict(CompressedAnswers(clara, said).run(state))["gold/exact_match"] == 1.0


def test_selection_is_scored_and_frozen_vectors_are_kept(monkeypatch):
    clara, state = split("reasoner", "generator")
    questions = questions_of(RECORDS)
    chosen = complete(clara, state).select_and_answer(
        [q.question for q in questions], [DOCUMENTS] * 2
    )
    # Call right what is chosen first for question 0, and last for question 1.
    ranks = np.argsort(-chosen.scores, axis=1)
    questions = [
        dataclasses.replace(q, positives=(int(p),), gold=(a,))
        for q, p, a in zip(
            questions, (ranks[0, 0], ranks[1, 2]), chosen.answers, strict=True
        )
    ]
    evaluator = SelectedAnswers(clara, questions, ks=(1, 3))
    results = dict(evaluator.run(state))
    assert results["recall@1"] == 0.5 and results["recall@3"] == 1.0
    assert results["selected/exact_match"] == 1.0
    monkeypatch.setattr(Clara, "compress", None)
    assert dict(evaluator.run(state)) == results


def test_text_baseline():
    clara, state = split("generator")
    results = dict(TextAnswers(clara, questions_of(RECORDS), "generator").run(state))
    assert set(results) >= {"text/exact_match", "text/f1", "text/cover_em"}


def test_shuffled_documents_are_those_of_the_row_before():
    batch = jax.device_get(random_batch("instruct", rows=4))
    mask = np.array(batch.documents.mask)
    mask[3] = False  # a row that only fills the batch up
    batch = batch.replace(documents=batch.documents.replace(mask=mask))
    found = shuffle_documents(batch)
    order = [2, 0, 1, 3]
    np.testing.assert_array_equal(found.documents.ids, batch.documents.ids[order])
    np.testing.assert_array_equal(found.documents.mask, mask[order])
    assert found.prompt is batch.prompt


def test_what_the_memory_is_worth_is_told_beside_the_loss():
    _, toy = parts()
    batch = jax.device_get(random_batch("scp", network=toy))
    step = make_eval_step(make_loss("scp"))
    state = State({"generator": toy.adapters["generator"]})
    frozen = {k: v for k, v in toy.adapters.items() if k != "generator"}
    network = toy.replace(adapters=frozen)
    given = (step, network, lambda: [batch])
    plain = dict(HeldOutLoss(*given).run(state))
    shuffled = dict(HeldOutLoss(*given, shuffled=True).run(state))
    assert set(shuffled) == {f"shuffled/{name}" for name in plain}
    moved = jax.device_put(shuffle_documents(batch))
    sums, weights, _ = step(state.trainable, network, moved)
    expected = sum(float(sums[n] / weights[n]) for n in sums)
    assert shuffled["shuffled/loss"] == pytest.approx(expected, abs=1e-5)
    assert shuffled["shuffled/loss/answer"] != pytest.approx(plain["loss/answer"])


def test_what_is_not_known_is_counted():
    clara, state = split("reasoner", "generator")
    first, second = questions_of(RECORDS)
    lost = dataclasses.replace(first, missing=1)
    bare = dataclasses.replace(second, positives=(), gold=())
    results = dict(SelectedAnswers(clara, [lost, bare], ks=(3,)).run(state))
    assert results["recall@3"] == 0.5 and results["missing_documents"] == 1.0
    assert results["selected/without_answers"] == 1.0
    one = dict(SelectedAnswers(clara, [first], ks=(3,)).run(state))
    assert "missing_documents" not in one and one["recall@3"] == 1.0
    for name in ("exact_match", "f1"):
        assert results[f"selected/{name}"] == one[f"selected/{name}"]
    gold = dict(CompressedAnswers(clara, [first, bare]).run(state))
    assert gold["gold/unknown_documents"] == gold["gold/without_answers"] == 1.0
    text = dict(TextAnswers(clara, [first, second], "generator").run(state))
    assert not [name for name in text if name.endswith(("answers", "documents"))]


def test_questions_carry_what_records_say():
    record = Record(DOCUMENTS, ("p", "q"), id="7", missing=2)
    first, second = questions_of([record])
    assert (first.gold, first.missing, second.id) == ((), 2, "7_1")
    assert first.gold_unknown and not questions_of(RECORDS)[0].gold_unknown
    assert not questions_of([SEVERAL])[0].gold_unknown  # its only document
