"""Greedy generations equal the original's, token for token (``generation.json``)."""

import dataclasses
import functools
import json
import random

import jax
import numpy as np
import pytest

from clara_jax.clara import Network
from clara_jax.convert import load_model
from clara_jax.generate import AnswerConfig, Clara
from clara_jax.model import Transformer
from clara_jax.text import PARAPHRASES, ClaraTokenizer

WEIGHTS = {
    "paraphrase": "stage1",
    "paraphrase_k2": "stage1",
    "text": "stage1_2",
    "text_early_stop": "stage1_2",
    "compressed": "stage1_2",
    "questions": "stage2",
}
ROLES = {"reasoner", "compressor", "generator", "memory"}


@functools.cache
def load(backbone_dir, stage):
    checkpoint = backbone_dir / stage
    assert checkpoint.is_dir(), f"missing: {checkpoint}"
    folder = load_model(checkpoint, "float32", base=str(backbone_dir / "base"))
    assert folder.clara is not None and set(folder.adapters or ()) <= ROLES
    config = dataclasses.replace(folder.config, dtype="float32")
    vocab = folder.clara.text_vocab
    memory = folder.clara.memory
    return Clara(
        network=Network(
            Transformer(config, vocab, folder.clara.lora),
            jax.device_put(folder.backbone),
            jax.device_put(folder.adapters),
        ),
        tokenizer=ClaraTokenizer(
            folder.tokenizer, memory.num_memory, name=str(backbone_dir / "base")
        ),
        memory=memory,
        selection=folder.clara.selection,
    )


def case_of(backbone_dir, key):
    path = backbone_dir / "generation.json"
    assert path.is_file(), f"missing: {path}"
    cases = json.loads(path.read_text(encoding="utf-8"))
    assert key in cases, f"missing: '{key}' in {path}"
    case = cases[key]
    eos = case["eos_token_id"]
    config = AnswerConfig(
        max_new_tokens=case["args"]["max_new_tokens"],
        eos_ids=(eos,) if isinstance(eos, int) else tuple(eos),
        too_long="cut",
    )
    return dataclasses.replace(load(backbone_dir, WEIGHTS[key]), config=config), case


def check(clara, case, rows, vectors):
    assert clara.tokenizer.pad_id == case["pad_token_id"]
    tokens = clara.continue_prompts(rows, vectors)
    for row, expected, margins in zip(
        tokens, case["token_ids"], case["greedy_margins"], strict=True
    ):
        # The original stops when all rows have; the rest is padding.
        rest = [case["pad_token_id"]] * (tokens.shape[1] - len(expected))
        np.testing.assert_array_equal(row, expected + rest, err_msg=f"{margins}")
    texts = [clara.tokenizer.decode(row) for row in tokens.tolist()]
    assert [text.strip() for text in texts] == [text.strip() for text in case["text"]]


@pytest.mark.parametrize("key", ["paraphrase", "paraphrase_k2"])
def test_paraphrase(backbone_dir, key):
    clara, case = case_of(backbone_dir, key)
    draw = random.Random(case["python_random_seed"])
    documents = case["args"]["documents"]
    vectors, mask = clara.gather(documents)
    instructions = [draw.choice(range(len(PARAPHRASES))) for _ in documents]
    rows = clara.paraphrase_prompts(mask.sum(axis=1).tolist(), instructions)
    check(clara, case, rows, vectors)


@pytest.mark.parametrize("key", ["text", "text_early_stop", "compressed"])
def test_answers_from_given_documents(backbone_dir, key):
    clara, case = case_of(backbone_dir, key)
    arguments = case["args"]
    documents = arguments.get("documents")
    if documents is None:
        # It was given the vectors of the documents of ``text``.
        documents = case_of(backbone_dir, "text")[1]["args"]["documents"]
    vectors, mask = clara.gather(documents)
    assert vectors.shape[1] == case["generation_top_k"]
    rows = clara.answer_prompts(arguments["questions"], vectors, mask)
    check(clara, case, rows, vectors)


def test_answers_from_selected_documents(backbone_dir):
    clara, case = case_of(backbone_dir, "questions")
    questions, candidates = case["args"]["questions"], case["args"]["documents"]
    vectors, mask = clara.gather(candidates)
    top_k = case["generation_top_k"]
    assert clara.selection.top_k == top_k
    indices, scores = clara.select(clara.reason(questions), vectors, top_k, mask)
    np.testing.assert_array_equal(indices, case["topk_idx"])
    np.testing.assert_allclose(scores, case["scores"], rtol=1e-4, atol=1e-5)
    chosen = vectors[np.arange(len(questions))[:, None], indices]
    check(clara, case, clara.answer_prompts(questions, chosen), chosen)
    result = clara.select_and_answer(questions, candidates)
    np.testing.assert_array_equal(result.indices, indices)
    ends = [clara.tokenizer.decode(row) for row in case["token_ids"]]
    assert result.answers == [text.strip() for text in ends]
