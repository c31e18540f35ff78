"""The feed of a corpus, on a reasoner of four numbers and a store of thirty vectors."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_store import write_store

from clara_jax.clara import Batch, Network, Tokens
from clara_jax.config import MemoryConfig
from clara_jax.data import Example
from clara_jax.documents import Document
from clara_jax.errors import ClaraError
from clara_jax.search import Store, StoreSettings, compact, delete
from clara_jax.train.corpus_feed import CorpusFeed
from clara_jax.train.document_vectors import StoredVectors
from clara_jax.train.feeds import Pinned, note_of
from clara_jax.train.loop import NotFinite, fit
from clara_jax.train.loop import Run as Progress
from clara_jax.train.state import TrainState, init_state
from clara_jax.train.step import make_train_step

ROWS, STEPS, CANDIDATES = 3, 8, 4
SETTINGS = StoreSettings("f" * 32, "model", "", MemoryConfig(8, 8), 4)


GONE = ("d0", "d12", "d13")


def piece(i):
    return Document(text=f"text {i}", id=f"d{i}", source="corpus")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Thirty vectors, and three whose documents were deleted."""
    vectors = np.random.default_rng(0).normal(size=(33, 1, 4)).astype(np.float32)
    place = tmp_path_factory.mktemp("c") / "store"
    write_store(place, SETTINGS, vectors, [piece(i) for i in range(33)], 11)
    delete(place, GONE)
    return Store.open(place)


class Nearest:
    """Exact search that notes what it was asked."""

    def __init__(self, store):
        self.store = store
        flat = store.vectors(store.ids).reshape(len(store), -1)
        self.table = flat / np.linalg.norm(flat, axis=1, keepdims=True)
        self.asked = []

    def __call__(self, queries, k, texts=None, where=None):
        assert texts is None and where is None
        self.asked.append(queries)
        scores = queries @ self.table.T
        places = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, places, 1), self.store.ids[places]


class Questions:
    """Batch i holds numbers of seed i; its first right document is text i."""

    def __init__(self, end=None, bad=None, own=(0, 1, 2)):
        self.position, self.end, self.bad, self.own = 0, end, bad, list(own)

    def draw(self):
        if self.position == self.end:
            raise StopIteration
        self.position += 1
        draw = np.random.default_rng(self.position)
        ids = draw.integers(-9, 9, (ROWS, 4)).astype(np.int32)
        labels = np.full((ROWS, 1), self.position == self.bad, np.int32)
        question = Tokens(ids, np.ones_like(ids, bool), right_padded=True)
        batch = Batch(question=question, labels=labels)
        gold = Example(gold=(f"text {self.position}", "nowhere"))
        examples = [gold, Example(), gold]
        batch = jax.tree.map(lambda x: x[self.own], batch)
        return batch, [examples[i] for i in self.own]

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def encode(state, question):
    return (
        jnp.asarray(question.ids, jnp.float32) / 9
        + 2 * state.trainable["reasoner"][None]
    )


def loss(network, batch, rng):
    wanted = jnp.where(batch.labels[:, :, None] > 0, jnp.nan, 1.0)
    out = network.adapters["reasoner"][None, None] * batch.vectors.sum(2) - wanted
    out = jnp.sum(out**2)
    count = jnp.sum(batch.candidate_mask, dtype=jnp.float32)
    return {"square": out}, {"square": count}, {}


OPTIMIZER = optax.adam(0.3)
STEP = jax.jit(
    make_train_step(loss, OPTIMIZER, lambda i: 0.3 + 0 * i), donate_argnums=0
)


class Run:
    """A feed, its run, and what a checkpoint after each step would hold."""

    def __init__(self, store, saved=None, questions=None):
        self.search = Nearest(store)
        self.encoded = []
        self.feed = CorpusFeed(
            questions or Questions(), self.encode, self.search, store, CANDIDATES
        )
        self.losses, self.batches, self.kept = {}, [], {}
        trainable = {"reasoner": jnp.zeros(4)}
        self.state = init_state(trainable, OPTIMIZER, jax.random.key(0))
        if saved is not None:
            arrays, extra = saved
            self.state = TrainState.restored(jax.device_put(arrays))
        kept = None if saved is None else json.loads(extra)
        self.run = Progress(self.feed, STEPS, kept=kept)

    every, pauses = 1, False

    def encode(self, state, question):
        self.encoded.append(int(state.step))
        return encode(state, question)

    def __call__(self, state, metrics):
        """Note the loss, and what would be saved now: also of the steps before."""
        step = metrics["step"]
        self.losses[step] = float(metrics["loss"])
        saved = jax.tree.map(np.array, state.saved())
        self.kept[step, 0] = saved, json.dumps(self.run.position(step))
        for late in (1, 2):
            if (step - late, 0) in self.kept:
                arrays = self.kept[step - late, 0][0]
                self.kept[step - late, late] = (
                    arrays,
                    json.dumps(self.run.position(step - late)),
                )

    def step(self, state, batch):
        self.batches.append(batch)
        return STEP(state, Network(None, {}, {}), batch)

    def fit(self, hooks=()):
        self.feed.prime(self.state)
        try:
            return fit(self.state, self.step, self.run, [self.feed, self, *hooks])
        finally:
            self.feed.close()


@pytest.fixture(scope="module")
def whole(store):
    run = Run(store)
    run.fit()
    return run


def test_candidates_are_chosen_by_the_weights_of_one_step_ago(store, whole):
    # The state before step t has seen t - 1 steps; its candidates' weights t - 2.
    assert whole.encoded == [0, 0, *range(1, STEPS + 1)]
    weights = {0: np.zeros(4, np.float32)}
    weights |= {s: k[0]["trainable"]["reasoner"] for (s, late), k in whole.kept.items()}
    questions = Questions()
    distinct = set()
    for t, batch in enumerate(whole.batches, 1):
        ids = questions.draw()[0].question.ids
        queries = ids.astype(np.float32) / 9 + 2 * weights[max(t - 2, 0)]
        _, rows = Nearest(store)(queries, CANDIDATES)
        np.testing.assert_array_equal(
            np.asarray(batch.vectors), store.vectors(rows.ravel()).reshape(3, 4, 1, 4)
        )
        distinct.add(rows.tobytes())
        gold = rows == store.find([f"text {t}"])[0]
        gold[1] = False
        np.testing.assert_array_equal(batch.positives, gold)
        assert np.all(batch.candidate_mask)
    # The weights do matter to what is found.
    first = Nearest(store)(questions.draw()[0].question.ids / 9, CANDIDATES)[1]
    assert len(distinct) == STEPS and first.shape == (3, 4)
    moved = Nearest(store)(ids.astype(np.float32) / 9, CANDIDATES)[1]
    assert not np.array_equal(moved, rows)


@pytest.mark.parametrize("late", [0, 1, 2])
def test_a_resumed_run_is_the_undisturbed_one(store, whole, late):
    """Saved after the step itself, or when the loop was one or two steps ahead."""
    for step in (1, 2, 5):
        again = Run(store, whole.kept[step, late])
        final = again.fit()
        expected = {s: value for s, value in whole.losses.items() if s > step}
        assert again.losses == expected
        ours, theirs = final.saved(), whole.kept[STEPS, 0][0]
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
        # What was found already is not searched for again.
        assert again.encoded == [step, *range(step + 1, STEPS + 1)]


def test_a_step_that_is_not_finite_leaves_a_position_to_go_on_from(store, whole):
    class Stop:
        every, pauses, before = 1, False, True

        def __call__(self, state, metrics):
            if not self.before:
                raise NotFinite(metrics["step"] - 1, state)
            self.before = bool(metrics["finite"])

    run = Run(store, questions=Questions(bad=4))
    with pytest.raises(NotFinite, match="step 4") as caught:
        run.fit([Stop()])
    assert int(caught.value.state.step) == 3
    saved = jax.tree.map(np.array, caught.value.state.saved())
    again = Run(store, (saved, json.dumps(run.run.position(3))))
    again.fit()
    assert again.losses == {s: x for s, x in whole.losses.items() if s > 3}


def test_data_that_end_end_the_feed(store):
    run = Run(store, questions=Questions(end=3))
    with pytest.raises(ClaraError, match="data ends before step 4 of 8"):
        run.fit()
    assert run.feed.get_state() == {"feed": {"position": 3}, "rows": None}


def test_what_the_thread_raises_ends_the_run(store):
    run = Run(store)

    def damaged(queries, k):
        if len(run.losses) > 2:
            raise ClaraError("the index is damaged")
        return Nearest(store)(queries, k)

    run.feed._search = damaged
    with pytest.raises(ClaraError, match="the index is damaged"):
        run.fit()
    assert 2 <= len(run.losses) < STEPS


def test_a_process_gets_its_own_rows(store, whole):
    def encode_all(state, question):
        # As where processes share the devices: every one of them gets all rows.
        assert len(question.ids) == 2
        return encode(state, Questions().draw()[0].question)

    search = Nearest(store)
    own = CorpusFeed(
        Questions(own=[0, 2]), encode_all, search, store, CANDIDATES, rows=[0, 2]
    )
    own.prime(Run(store).state)
    batch, first = next(own), whole.batches[0]
    own.close()
    np.testing.assert_array_equal(batch.vectors, np.asarray(first.vectors)[[0, 2]])
    np.testing.assert_array_equal(batch.positives, first.positives[::2])
    assert all(len(queries) == ROWS for queries in search.asked)


def test_another_store_is_refused_and_one_that_moved_is_not(store, tmp_path):
    pinned = Pinned(Numbers(), note_of(store))
    state = json.loads(json.dumps(pinned.get_state()))
    moved = shutil.copytree(store.place, tmp_path / "elsewhere")
    compact(moved)
    same = Pinned(Numbers(), note_of(Store.open(moved)))
    same.set_state(state)
    assert same.get_state() == state
    delete(moved, ["d7"])
    vectors = np.zeros((30, 1, 4), np.float32)
    pieces = [piece(i) for i in range(30)]
    changed = write_store(tmp_path / "changed", SETTINGS, vectors, pieces)
    for other in (Store.open(moved), changed):
        with pytest.raises(ClaraError, match=r"'store': .* begun with one of rows 30"):
            Pinned(Numbers(), note_of(other)).set_state(state)
    with pytest.raises(ClaraError, match="and now has no store; give the store as it"):
        Pinned(Numbers(), None).set_state(state)
    with pytest.raises(ClaraError, match="was begun with no store, and now has one of"):
        pinned.set_state({"position": 3})
    plain = Pinned(Numbers(), None)
    plain.set_state({"position": 3})
    assert plain.get_state() == {"position": 3}


class Numbers:
    position = 0

    def __next__(self):
        self.position += 1
        return Batch()

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def test_vectors_come_from_the_store_and_others_from_beside_it(store, tmp_path):
    vectors = np.full((2, 1, 4), 7, np.float32) * np.arange(1, 3)[:, None, None]
    others = write_store(tmp_path, SETTINGS, vectors, [piece(i) for i in range(2)])
    rows = np.array([5, ~1, 9, ~0])
    found = StoredVectors(store, rows, others, "bfloat16")(np.array([3, 0, 0, 2, 1]))
    assert found.dtype.name == "bfloat16" and found.shape == (5, 1, 4)
    # The store keeps bfloat16: nothing is lost.
    np.testing.assert_array_equal(found[[1, 2, 3]], store.vectors([5, 5, 9]))
    np.testing.assert_array_equal(found[0], vectors[0])
    np.testing.assert_array_equal(found[4], vectors[1])
    nothing = StoredVectors(store, rows[:1], None, "float32")(np.zeros(0, np.int64))
    assert nothing.shape == (0, 1, 4)
