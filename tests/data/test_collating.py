from typing import Any

import numpy as np
import pytest
from toy_stages import layout_of

from clara_jax.clara.batches import IGNORE
from clara_jax.config import DataConfig, MemoryConfig
from clara_jax.data import Example
from clara_jax.data.collating import Layout, longest_of, measure
from clara_jax.data.collating import collate as collate_examples
from clara_jax.errors import ClaraError

MEMORY = MemoryConfig(doc_max_length=8, compression_rate=4)


def collate(*arguments, **settings) -> Any:
    """A batch that is not asked which fields it has."""
    return collate_examples(*arguments, **settings)


def row(length: int, start: int = 1) -> np.ndarray:
    return np.arange(start, start + length, dtype=np.int32)


def prompt(length: int, **fields) -> Example:
    return Example(prompt=row(length), labels=row(length), **fields)


def test_layout_of_a_stage():
    data = DataConfig(
        doc_buckets=(6, 12, 99), prompt_buckets=(16, 32), prompt_max_length=32
    )
    scp = layout_of("scp", MEMORY, data, top_k=4, pad_id=7)
    assert scp == Layout((6, 12, 13), (), (16, 32), 1, 0, 7)
    ranked = layout_of("rerank", MEMORY, data, candidates=5)
    assert ranked == Layout((6, 12, 13), (6, 12, 13), (), 0, 5)
    assert layout_of("lm", MEMORY, DataConfig()).prompts == (128, 256, 512, 1024)
    one_length = DataConfig(doc_buckets=(), prompt_buckets=())
    plain = layout_of("instruct", MEMORY, one_length, top_k=4)
    assert plain == Layout((13,), (), (1024,), 4)
    assert not plain.has_choice
    assert scp.has_choice
    assert layout_of("lm", MEMORY, DataConfig(doc_buckets=(6,))).documents == ()


def test_rows_are_padded_on_the_right_to_a_bucket():
    layout = Layout(prompts=(4, 8, 16), pad_id=9)
    batch = collate([prompt(2), prompt(5)], layout, 2)
    assert batch.prompt.right_padded
    assert batch.prompt.ids.tolist() == [[1, 2] + [9] * 6, [1, 2, 3, 4, 5, 9, 9, 9]]
    assert batch.prompt.mask.sum(-1).tolist() == [2, 5]
    assert batch.labels[0].tolist() == [1, 2] + [IGNORE] * 6
    assert batch.documents is batch.question is batch.candidates is None
    assert collate([prompt(4)], layout, 1).prompt.ids.shape == (1, 4)


def test_missing_examples_become_empty_rows():
    layout = Layout(documents=(4,), questions=(4,), prompts=(4,), slots=2, candidates=3)
    example = prompt(
        3,
        documents=(row(2),),
        question=row(3),
        candidates=(row(2), row(3)),
        positives=np.asarray([False, True]),
    )
    batch = collate([example], layout, 2)
    assert not batch.prompt.mask[1].any()
    assert (batch.labels[1] == IGNORE).all()
    assert batch.documents.ids.shape == (2, 2, 4)
    assert batch.documents.mask.sum(-1).tolist() == [[2, 0], [0, 0]]
    assert batch.candidates.mask.sum(-1).tolist() == [[2, 3, 0], [0, 0, 0]]
    assert batch.candidate_mask.tolist() == [[True, True, False], [False] * 3]
    assert batch.positives.tolist() == [[False, True, False], [False] * 3]
    assert batch.question.mask.sum(-1).tolist() == [3, 0]


def test_parts_of_a_batch_agree_on_lengths():
    layout = Layout(documents=(2, 8), prompts=(4, 8), slots=1)
    examples = [prompt(2, documents=(row(1),)), prompt(7, documents=(row(5),))]
    whole = collate(examples, layout, 4)
    longest = longest_of([measure(e) for e in examples])
    parts = [collate(examples[i : i + 1], layout, 1, lengths=longest) for i in range(4)]
    ids = np.concatenate([part.prompt.ids for part in parts])
    np.testing.assert_array_equal(ids, whole.prompt.ids)
    documents = np.concatenate([part.documents.ids for part in parts])
    np.testing.assert_array_equal(documents, whole.documents.ids)


def test_a_corpus_leaves_the_candidates_to_others():
    data = DataConfig(doc_buckets=(6,), prompt_buckets=(), candidates=5)
    layout = layout_of("end_to_end", MEMORY, data)
    assert (layout.documents, layout.questions) == ((), (6, 13))
    assert layout.candidates == 0
    batch = collate([prompt(2, question=row(7), gold=("a",))], layout, 2)
    assert batch.question.ids.shape == (2, 13) and batch.prompt is not None
    assert batch.candidates is batch.vectors is batch.positives is None


@pytest.mark.parametrize("kind", ["array", "function"])
def test_vectors_stand_for_candidates(kind):
    layout = Layout(questions=(4,), prompts=(4,), candidates=3)
    table = np.arange(5 * 2 * 3, dtype=np.float32).reshape(5, 2, 3)
    vectors = table if kind == "array" else lambda ids: table[ids]
    example = prompt(
        2,
        question=row(2),
        candidate_ids=np.asarray([4, 0], np.int32),
        positives=np.asarray([True, False]),
    )
    batch = collate([example], layout, 2, vectors=vectors)
    assert batch.candidates is None
    assert batch.vectors.shape == (2, 3, 2, 3)
    np.testing.assert_array_equal(batch.vectors[0, :2], table[[4, 0]])
    assert not batch.vectors[0, 2:].any()
    assert not batch.vectors[1].any()
    assert batch.candidate_mask.tolist() == [[True, True, False], [False] * 3]


def test_too_many_candidates():
    layout = Layout(documents=(4,), questions=(4,), candidates=1)
    example = Example(
        question=row(2),
        candidates=(row(2), row(2)),
        positives=np.zeros(2, bool),
        source="f:3",
    )
    with pytest.raises(ClaraError, match="f:3: has 2 candidate"):
        collate([example], layout, 1)
