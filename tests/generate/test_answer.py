"""Answers from documents: batches, padding and numbers of documents change nothing."""

import dataclasses
import functools

import numpy as np
import pytest

from clara_jax.config import MemoryConfig
from clara_jax.errors import ClaraError
from clara_jax.generate import AnswerConfig, Clara, Sampling
from clara_jax.generate.batched import batches_by_length, length_bucket, row_bucket
from clara_jax.testing import toy_network, toy_tokenizer
from clara_jax.text import ClaraTokenizer

DOCUMENTS = [
    "Ada Bell was born in Corin and works as a baker",
    "Edo Falk studied in Gemma",
    "Hana Iver was born in Jory",
    "Kip",
]
QUESTIONS = ["Where was Ada Bell born", "Where did Edo Falk study"]


@functools.cache
def clara(dtype="float32"):
    tokenizer = toy_tokenizer(DOCUMENTS + QUESTIONS)
    toy = toy_network(text_vocab=len(tokenizer), dtype=dtype)
    return Clara(
        network=toy,
        tokenizer=ClaraTokenizer(tokenizer, toy.num_memory),
        memory=MemoryConfig(doc_max_length=8, compression_rate=4),
        config=AnswerConfig(max_new_tokens=4, batch_size=4),
    )


def test_vectors_do_not_depend_on_the_batch():
    together = clara().compress(DOCUMENTS)
    alone = [clara().compress([text])[0] for text in DOCUMENTS]
    assert together.shape == (4, 2, 16)
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-4, atol=1e-5)


def test_answers_do_not_depend_on_the_batch_or_the_padding_of_documents():
    rows = [DOCUMENTS[:1], DOCUMENTS[1:4]]
    tokens = continue_answers(clara(), QUESTIONS, rows)
    for i in range(2):
        alone = continue_answers(clara(), QUESTIONS[i : i + 1], rows[i : i + 1])
        np.testing.assert_array_equal(tokens[i], alone[0])
    assert clara().answer(QUESTIONS, rows) == [
        clara().tokenizer.decode(row).strip() for row in tokens
    ]


def continue_answers(model, questions, rows):
    vectors, mask = model.gather(rows)
    prompts = model.answer_prompts(questions, vectors, mask)
    return model.continue_prompts(prompts, vectors)


def test_selection_is_that_of_a_loop():
    model = clara()
    rows = [DOCUMENTS, DOCUMENTS[1:]]
    result = model.select_and_answer(QUESTIONS, rows, top_k=2)
    for i, row in enumerate(rows):
        question = np.ravel(model.reason([QUESTIONS[i]])[0])
        documents = np.stack([np.ravel(v) for v in model.compress(row)])
        norms = np.linalg.norm(documents, axis=1) * np.linalg.norm(question)
        cosines = documents @ question / norms
        np.testing.assert_allclose(result.scores[i, : len(row)], cosines, atol=1e-5)
        np.testing.assert_array_equal(result.indices[i], np.argsort(-cosines)[:2])
        chosen = [row[j] for j in result.indices[i]]
        assert result.answers[i] == model.answer([QUESTIONS[i]], [chosen])[0]
    assert result.scores[1, 3] == -np.inf
    shared = model.select(model.reason(QUESTIONS), model.compress(DOCUMENTS), 2)
    np.testing.assert_allclose(shared[1][0], result.scores[0], atol=1e-5)


def test_bfloat16_selects_alike():
    wide, narrow = (
        model.select(model.reason(QUESTIONS), model.compress(DOCUMENTS), 1)[1]
        for model in (clara(), clara("bfloat16"))
    )
    assert clara("bfloat16").compress(DOCUMENTS[:1]).dtype == "bfloat16"
    np.testing.assert_allclose(narrow, wide, atol=0.05)


def test_text_baseline_and_paraphrase_run():
    model = clara()
    plain = model.answer_from_text(QUESTIONS, [DOCUMENTS[:2], []])
    tuned = model.answer_from_text(QUESTIONS, [DOCUMENTS[:2], []], "generator")
    assert len(plain) == len(tuned) == 2
    assert len(model.paraphrase([DOCUMENTS[:1], DOCUMENTS[1:3]])) == 2
    rows = model.paraphrase_prompts([1], [0])
    assert (
        rows == model.paraphrase_prompts([1], [0]) != model.paraphrase_prompts([2], [0])
    )


def test_bad_input_is_one_line():
    model = clara()
    with pytest.raises(ClaraError, match=r"^document 2 is empty"):
        model.compress(["a", " \n"])
    with pytest.raises(ClaraError, match=r"^document 1 of question 2 is empty"):
        model.answer(QUESTIONS, [["a"], [""]])
    with pytest.raises(ClaraError, match=r"^question 1 is empty"):
        model.answer([" "], [["a"]])
    with pytest.raises(ClaraError, match=r"^question 1 has 10 tokens.* limit 8"):
        model.reason(["Ada " * 10])
    with pytest.raises(ClaraError, match=r"top_k 5 is above .* 4 of question 1"):
        model.select_and_answer(QUESTIONS[:1], [DOCUMENTS], top_k=5)
    bare = model.network.replace(adapters={"memory": 0})
    lacking = dataclasses.replace(model, network=bare)
    with pytest.raises(ClaraError, match="no reasoner; give the folder of a run that"):
        lacking.reason(QUESTIONS)
    short = dataclasses.replace(model.config, prompt_max_length=20)
    with pytest.raises(ClaraError, match="prompt of question 1 has .* above the limit"):
        dataclasses.replace(model, config=short).answer(QUESTIONS, [["a"], ["b"]])


def test_long_questions_can_be_cut():
    config = dataclasses.replace(clara().config, too_long="cut")
    model = dataclasses.replace(clara(), config=config)
    np.testing.assert_allclose(
        model.reason(["Ada " * 30]), model.reason(["Ada " * 40]), atol=1e-6
    )


def test_few_shapes():
    assert {length_bucket(n) for n in range(1, 1025)} == {
        *(2**i for i in range(4, 11)),
        *(3 * 2**i for i in range(3, 9)),
    }
    assert length_bucket(60, 61) == 61
    assert length_bucket(3, smallest=64) == length_bucket(64) == 64
    assert {length_bucket(n, steps=8) for n in range(129, 257)} == {
        *range(144, 257, 16)
    }
    assert [row_bucket(n, 8) for n in (1, 2, 3, 5, 8)] == [1, 2, 4, 8, 8]


def test_a_merged_adapter_gives_the_same_answers():
    model = clara()
    vectors, mask = model.gather([DOCUMENTS[:1], DOCUMENTS[1:3]])
    merged = model.merge()
    assert merged.answer_from_vectors(QUESTIONS, vectors, mask) == (
        model.answer_from_vectors(QUESTIONS, vectors, mask)
    )
    np.testing.assert_array_equal(merged.compress(DOCUMENTS), model.compress(DOCUMENTS))
    for role, encode in (("compressor", Clara.compress), ("reasoner", Clara.reason)):
        whole, apart = encode(model.merge(role), QUESTIONS), encode(model, QUESTIONS)
        np.testing.assert_allclose(whole, apart, atol=1e-3)
        assert np.any(whole != apart)  # other sums: the merged weights were used


def test_many_rows_get_closer_lengths():
    rows = [[1] * n for n in range(60, 100)]
    few = list(batches_by_length(rows[:31], 0, 8, close=True))
    many = list(batches_by_length(rows, 0, 8, close=True))
    assert [tokens.ids.shape[1] for _, tokens in few] == [96] * 4
    assert [tokens.ids.shape[1] for _, tokens in many] == [72, 80, 88, 96, 104]
    for chosen, tokens in many:
        assert tokens.mask.sum(axis=1).tolist() == [60 + i for i in chosen]


def test_only_trained_roles_can_be_merged():
    model = clara()
    own = {"compressor": model.network.adapters["compressor"]}
    bare = model.network.replace(adapters=own)
    with pytest.raises(ClaraError, match="no generator; give the folder of a run that"):
        dataclasses.replace(model, network=bare).merge()


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_streamed_answer_is_the_answer(merged, temperature):
    model = dataclasses.replace(
        clara(),
        config=AnswerConfig(
            max_new_tokens=12, sampling=Sampling(temperature=temperature), seed=3
        ),
    )
    model = model.merge() if merged else model
    vectors = model.compress(DOCUMENTS[:2])
    for question in QUESTIONS:
        pieces = list(model.stream(question, vectors))
        (answer,) = model.answer_from_vectors([question], vectors[None])
        assert "".join(pieces) == answer
        assert len(pieces) == len(answer.split())  # the toy's tokens are words


def test_what_a_question_is_near_to():
    model = clara()
    (slots,) = model.explain(QUESTIONS[:1], count=3)
    assert len(slots) == model.memory.num_memory
    (vectors,) = model.reason(QUESTIONS[:1])
    head = model.network.backbone["params"]["head"]["kernel"]
    table = head[:, : model.tokenizer.text_vocab]
    for slot, vector in zip(slots, vectors, strict=True):
        logits = vector @ np.asarray(table)
        best = np.argsort(-logits)[:3]
        assert [t.token for t in slot] == [model.tokenizer.decode([i]) for i in best]
        chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        np.testing.assert_allclose(
            [t.probability for t in slot], chances[best], rtol=1e-4
        )
