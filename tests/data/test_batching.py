import concurrent.futures
import functools
import json
import threading
from typing import Any

import jax
import numpy as np
import pytest
from toy_stages import example_maker

from clara_jax.clara.batches import IGNORE
from clara_jax.config import DataConfig, MemoryConfig
from clara_jax.data import Part, Record, UniqueDocuments, make_batches, open_records
from clara_jax.errors import ClaraError
from clara_jax.text import ClaraTokenizer
from tests.text.toy import toy_tokenizer

MEMORY = MemoryConfig(doc_max_length=24, compression_rate=12)
DATA = DataConfig(
    batch_size=4,
    window=3,
    doc_buckets=(12, 20),
    prompt_buckets=(260, 280, 300, 320),
    prompt_max_length=400,
    question_max_length=24,
    workers=2,
)


@pytest.fixture(scope="module")
def tokenizer() -> ClaraTokenizer:
    return ClaraTokenizer(toy_tokenizer(), MEMORY.num_memory)


def make_records(count: int = 30) -> list[Record]:
    """Record i asks "q i?" over three documents, the i-th and two all have."""
    return [
        Record(
            (f"d{i} " + "x" * (i % 20), "common", "ground"),
            (f"q{i}?",),
            (f"a{i}" + "y" * (7 * i % 60),),
            positives=(0,),
            source=f"f:{i}",
        )
        for i in range(count)
    ]


def make(tokenizer, stage="end_to_end", data=DATA, records=None, **settings) -> Any:
    records = make_records() if records is None else records
    chosen: Any = {"top_k": 2, "seed": 5} | settings
    own = {k: chosen.pop(k) for k in ("top_k", "seed", "corpus") if k in chosen}
    return make_batches(
        records, example_maker(tokenizer, stage, MEMORY, data, **own), **chosen
    )


def take(dataset, count):
    iterator = iter(dataset)
    return [next(iterator) for _ in range(count)]


def same(left: Any, right: Any) -> bool:
    ours, theirs = jax.tree.leaves(left), jax.tree.leaves(right)
    return len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs))


def questions(tokenizer, batch: Any) -> list[str]:
    return [
        tokenizer.decode(ids[mask])
        for ids, mask in zip(batch.question.ids, batch.question.mask, strict=True)
    ]


def test_batches_are_numpy_and_fit_their_buckets(tokenizer):
    for batch in take(make(tokenizer), 6):
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(batch))
        assert batch.prompt.ids.shape[0] == 4
        assert batch.prompt.ids.shape[1] in (*DATA.prompt_buckets, 400)
        assert batch.candidates.ids.shape[:2] == (4, 3)
        assert batch.candidates.ids.shape[2] in (12, 20, 29)
        longest = int(batch.prompt.mask.sum(-1).max())
        fitting = [n for n in DATA.prompt_buckets if n >= longest]
        assert batch.prompt.ids.shape[1] == min([*fitting, 400])


def test_sorting_saves_padding(tokenizer):
    def padding(data):
        batches = take(make(tokenizer, data=data), 6)
        return sum(int((~batch.prompt.mask).sum()) for batch in batches)

    plain = DataConfig(**{**DATA.__dict__, "window": 1})
    assert padding(DATA) < padding(plain)


def test_an_epoch_has_every_record_once(tokenizer):
    data = DataConfig(batch_size=5, window=2, prompt_buckets=(300,), workers=0)
    batches = list(make(tokenizer, data=data, epochs=2))
    assert len(batches) == 12
    seen = [q for batch in batches for q in questions(tokenizer, batch)]
    first, second = seen[:30], seen[30:]
    assert set(first) == set(second) == {f"q{i}?" for i in range(30)}
    assert first != second


def test_order_depends_on_the_seed_alone(tokenizer):
    first = take(make(tokenizer), 8)
    other = DataConfig(**{**DATA.__dict__, "workers": 0})
    assert all(map(same, first, take(make(tokenizer, data=other), 8)))
    assert not all(map(same, first, take(make(tokenizer, seed=6), 8)))


def test_unshuffled_records_keep_their_order(tokenizer):
    data = DataConfig(batch_size=4, shuffle=False)
    (batch,) = take(make(tokenizer, data=data), 1)
    assert questions(tokenizer, batch) == ["q0?", "q1?", "q2?", "q3?"]


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_exact_anywhere(tokenizer, workers):
    data = DataConfig(**{**DATA.__dict__, "workers": workers})
    dataset = make(tokenizer, data=data)
    iterator = iter(dataset)
    states, whole = [iterator.get_state()], []
    for _ in range(9):  # three windows, the last across two epochs
        whole.append(next(iterator))
        states.append(json.loads(json.dumps(iterator.get_state())))
    again = iter(dataset)
    next(again)
    for stop in (7, 0, 1, 2, 3, 4):
        again.set_state(states[stop])
        assert again.get_state() == states[stop]
        rest = [next(again) for _ in range(2)]
        assert all(map(same, rest, whole[stop : stop + 2]))
        assert again.get_state() == states[stop + 2]


def test_resume_after_the_end_stays_there(tokenizer):
    dataset = make(tokenizer, epochs=1)
    iterator = iter(dataset)
    count = len(list(iterator))
    assert count == 7
    again = iter(dataset)
    again.set_state(iterator.get_state())
    assert list(again) == []
    # Also where the records have become fewer than the window that was saved.
    again.set_state({"window": 99, "position": 0})
    assert list(again) == []


class Meeting:
    """Stands for processes: threads that hand each other arrays."""

    def __init__(self, count: int):
        self.barrier = threading.Barrier(count, timeout=60)
        self.arrays: list[Any] = [None] * count

    def gather(self, index: int, array: np.ndarray) -> np.ndarray:
        self.arrays[index] = array
        self.barrier.wait()
        stacked = np.stack(self.arrays)
        self.barrier.wait()
        return stacked

    def run(self, work) -> list[Any]:
        count = len(self.arrays)
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            return list(pool.map(work, range(count)))


class Counted(list):
    """Records that note who was read."""

    def __init__(self, records):
        super().__init__(records)
        self.read: list[int] = []

    def __getitem__(self, index: Any) -> Any:
        self.read.append(index)
        return super().__getitem__(index)


ROWS = {
    "halves": ((0, 1), (2, 3)),
    "four": ((0,), (1,), (2,), (3,)),
    "interleaved": ((0, 2), (1, 3)),
    "alike": ((0, 1, 2, 3), (0, 1, 2, 3)),
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("train", [True, False])
def test_processes_share_global_batches(tokenizer, train, rows):
    whole = take(make(tokenizer, records=make_records(27), train=train), 6)
    meeting = Meeting(len(ROWS[rows]))

    def run(index):
        gather = functools.partial(meeting.gather, index)
        part = Part(ROWS[rows][index], index, len(ROWS[rows]), gather)
        dataset = make(tokenizer, records=make_records(27), train=train, part=part)
        return take(dataset, 6)

    for own, batches in zip(ROWS[rows], meeting.run(run), strict=True):
        for mine, batch in zip(batches, whole, strict=True):
            assert same(mine, jax.tree.map(lambda x, own=own: x[list(own)], batch))


def test_a_process_reads_its_part(tokenizer):
    data = DataConfig(batch_size=8, window=4, prompt_buckets=(260, 300), workers=0)
    records = [Counted(make_records(64)) for _ in range(4)]
    meeting = Meeting(4)

    def run(index):
        gather = functools.partial(meeting.gather, index)
        part = Part((2 * index, 2 * index + 1), index, 4, gather)
        settings: Any = {"data": data, "records": records[index], "part": part}
        return take(make(tokenizer, stage="instruct", **settings), 8)

    meeting.run(run)
    # An epoch of 64: 16 rows of its own, and 16 whose lengths it tells the others.
    assert all(16 <= len(one.read) <= 32 for one in records)


def test_resume_on_another_number_of_processes(tokenizer):
    iterator = iter(make(tokenizer))
    for _ in range(4):
        next(iterator)
    state, then = iterator.get_state(), [next(iterator) for _ in range(4)]
    meeting = Meeting(2)

    def run(index):
        part = Part(ROWS["halves"][index], index, 2, lambda x: meeting.gather(index, x))
        again = iter(make(tokenizer, part=part))
        again.set_state(json.loads(json.dumps(state)))
        return [next(again) for _ in range(4)]

    for left, right, batch in zip(*meeting.run(run), then, strict=True):
        joined = jax.tree.map(lambda a, b: np.concatenate((a, b)), left, right)
        assert same(batch, joined)


def test_evaluation_fills_the_last_batch(tokenizer):
    data = DataConfig(**{**DATA.__dict__, "eval_batch_size": 8})
    batches = list(make(tokenizer, data=data, records=make_records(10), train=False))
    asked = [q for batch in batches for q in questions(tokenizer, batch)]
    assert asked == [f"q{i}?" for i in range(10)] + [""] * 6
    assert (batches[1].labels[2:] == IGNORE).all()
    assert not batches[1].candidate_mask[2:].any()


def test_paraphrases_are_drawn_anew_in_every_epoch(tokenizer):
    record = Record(("text",), (), ("text",), "paraphrase")
    data = DataConfig(batch_size=4, shuffle=False)
    settings = {"stage": "scp", "data": data, "records": [record] * 4}
    prompts = [batch.prompt.ids for batch in take(make(tokenizer, **settings), 3)]
    assert not np.array_equal(prompts[0], prompts[1])
    assert len({row.tobytes() for ids in prompts for row in ids}) > 4
    again = [batch.prompt.ids for batch in take(make(tokenizer, **settings), 3)]
    assert all(map(np.array_equal, prompts, again))
    (fixed,) = make(tokenizer, train=False, **settings)
    assert len({row.tobytes() for row in fixed.prompt.ids}) == 1


def test_vectors_replace_candidates(tokenizer):
    records = make_records()
    unique = UniqueDocuments(records)
    assert len(unique) == 32
    table = np.random.default_rng(0).normal(size=(32, 2, 4)).astype(np.float32)
    settings = {"documents": unique, "vectors": table, "train": False}
    batches = list(make(tokenizer, records=records, **settings))
    assert batches[0].candidates is None
    assert batches[0].vectors.shape == (4, 3, 2, 4)
    np.testing.assert_array_equal(batches[1].vectors[2], table[unique.candidates(6)])
    settings["train"] = True
    (shuffled,) = take(make(tokenizer, records=records, **settings), 1)
    for asked, vectors in zip(
        questions(tokenizer, shuffled), shuffled.vectors, strict=True
    ):
        number = int(asked.strip("q?"))
        np.testing.assert_array_equal(vectors, table[unique.candidates(number)])
    with pytest.raises(ClaraError, match="go together"):
        make(tokenizer, vectors=table)


def test_questions_about_a_corpus_come_as_with_cached_vectors(tokenizer):
    unique = UniqueDocuments(make_records())
    table = np.zeros((len(unique), 2, 4), np.float32)
    iterator = iter(make(tokenizer, corpus=True))
    for other in take(make(tokenizer, documents=unique, vectors=table), 9):
        batch, examples = iterator.draw()
        assert batch.candidates is batch.positives is batch.candidate_mask is None
        assert same(batch.question, other.question) and same(batch.prompt, other.prompt)
        asked = [int(q.strip("q?")) for q in questions(tokenizer, batch)]
        documents = [make_records()[i].documents for i in asked]
        assert [example.gold for example in examples] == [d[:1] for d in documents]


def test_language_model_batches(tokenizer):
    texts = [Record((f"text {i}",), kind="text") for i in range(8)]
    data = DataConfig(batch_size=4, prompt_max_length=16)
    (batch, _) = take(make(tokenizer, "lm", data=data, records=texts), 2)
    assert batch.prompt.ids.shape == (4, 16)
    assert (batch.labels == IGNORE).sum() == (~batch.prompt.mask).sum()
    assert len(jax.tree.leaves(batch)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_records_stop_with_their_line(tokenizer, tmp_path, workers):
    path = tmp_path / "a.jsonl"
    good = json.dumps({"docs": ["d", "e"], "question": "q?", "answer": "a"})
    path.write_text("\n".join([good] * 7 + ["oops"]), encoding="utf-8")
    data = DataConfig(batch_size=4, candidates=2, workers=workers)
    with pytest.raises(ClaraError, match=r"a.jsonl:8: is not JSON"):
        list(make(tokenizer, data=data, records=open_records(path), epochs=1))


def test_refusals(tokenizer):
    with pytest.raises(ClaraError, match=r"data.batch_size.*31 is more than the 30"):
        make(tokenizer, data=DataConfig(batch_size=31))
