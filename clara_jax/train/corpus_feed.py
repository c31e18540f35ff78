"""Candidates from a whole corpus, searched for while training goes on.

The compressor is frozen, so a corpus is compressed once and its index never goes stale:
only the questions' vectors change. So that the devices do not wait for the search for a
step's candidates, it runs beside the step before:

    step t-1 is dispatched
        its state, which has seen t-1 steps, encodes the questions of batch t+1
    step t is dispatched, with candidates found by the weights after step t-2
        meanwhile a thread searches for batch t+1 and reads its vectors

ScaNN searches on the host; an exact search takes its turn on the devices, after the
step that is running. Hence what is stale: *which* documents are the candidates of step
t was decided by the reasoner's weights of one step earlier than those that the step
starts from (by the very same ones in step 1). The scores of these candidates, the
selection among them and all gradients are of the current weights.
"""

import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.clara import Batch, Network, Tokens
from clara_jax.data import Example
from clara_jax.distributed import to_host
from clara_jax.search import Store
from clara_jax.search.exact import Searcher
from clara_jax.shapes import Array, Float, Int
from clara_jax.sharding import named_sharding
from clara_jax.train.placement import Placer
from clara_jax.train.state import TrainState

Future = concurrent.futures.Future
Encode = Callable[[TrainState, Tokens], Array]
"""Begin to encode this process's questions; return all processes' ``[B, W]``."""


class _Coming(NamedTuple):
    """A batch under way: where it began, its candidates' rows, and all of it."""

    position: Any
    rows: Future[Int[np.ndarray, "B C"]]
    batch: Future[Batch]


class CorpusFeed:
    """Batches whose candidates are the nearest of a whole store; also a hook.

    Call `prime` with the state that training starts from, then let it be the first
    hook. A thread of its own searches and reads; what it raises, `next` raises. It
    calls nothing that other processes take part in.

    A batch has C candidates for every question, the most similar first, and knows as
    positives those that have exactly the text of one of the question's right documents;
    no loss reads them. The metric ``recall`` of a step is over the questions that have
    any, so over those whose right document was found: ``evaluate.CorpusRetrieval``
    measures recall over the store.

    Args:
      questions: batches without candidates, an iterator of `data.make_batches`.
      encode: see `question_encoder`.
      search, store: of the run's own frozen compressor.
      candidates: C.
      rows: this process's rows of a global batch; None for all.
      dtype: of the vectors that batches carry.
    """

    every = 1
    pauses = False

    def __init__(
        self,
        questions: Any,
        encode: Encode,
        search: Searcher,
        store: Store,
        candidates: int,
        *,
        rows: Sequence[int] | None = None,
        dtype: str = "float32",
    ):
        self._questions, self._encode = questions, encode
        self._search, self._store, self._candidates = search, store, candidates
        self._own = None if rows is None else list(rows)
        self._dtype = np.dtype(dtype)
        self._restored: Sequence[Sequence[int]] | None = None
        self._coming: collections.deque[_Coming] = collections.deque()
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "corpus")

    def prime(self, state: TrainState) -> None:
        """Begin the first two batches, as after the step that `state` stopped at.

        Where `set_state` has given the first one's candidates, only those of the second
        are searched for.
        """
        rows, self._restored = self._restored, None
        self._begin(state, rows)
        self._begin(state)

    def __call__(self, state: TrainState, metrics: Mapping[str, Any]) -> None:
        """Begin the batch after the next one, by the weights of this state."""
        self._begin(state)

    def __next__(self) -> Batch:
        if not self._coming:
            raise StopIteration
        return self._coming.popleft().batch.result()

    def get_state(self) -> dict[str, Any]:
        """Return where the next batch begins, and its candidates' rows ``[B][C]``.

        They cannot be found again later: the weights that found them are gone by then.
        """
        if not self._coming:
            return {"feed": self._questions.get_state(), "rows": self._restored}
        coming = self._coming[0]
        return {"feed": coming.position, "rows": coming.rows.result().tolist()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a position of `get_state`; `prime` must follow."""
        self._coming.clear()
        self._questions.set_state(state["feed"])
        self._restored = state["rows"]

    def close(self) -> None:
        """Let the thread end; batches under way are dropped.

        Nobody waits for it, since it may wait for devices of a process that is gone.
        """
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(
        self, state: TrainState, restored: Sequence[Sequence[int]] | None = None
    ) -> None:
        """Draw a batch, and search with `state`, unless rows are `restored`."""
        position = self._questions.get_state()
        try:
            batch, examples = self._questions.draw()
        except StopIteration:
            return
        if restored is None:
            assert batch.question is not None
            # Dispatched now: the next step takes over the memory of these weights.
            queries = self._encode(state, batch.question)
            rows = self._pool.submit(
                lambda: self._search(to_host(queries), self._candidates)[1]
            )
        else:
            rows = self._pool.submit(np.asarray, restored, np.int64)
        whole = self._pool.submit(self._complete, batch, examples, rows)
        self._coming.append(_Coming(position, rows, whole))

    def _complete(
        self,
        batch: Batch,
        examples: Sequence[Example],
        found: Future[Int[np.ndarray, "B C"]],
    ) -> Batch:
        """Give this process's rows of a batch their candidates."""
        rows = found.result()
        if self._own is not None:
            rows = rows[self._own]
        distinct, places = np.unique(rows, return_inverse=True)
        vectors = self._store.vectors(distinct).astype(self._dtype)
        numbers = iter(self._store.find([text for e in examples for text in e.gold]))
        gold = [[next(numbers) for _ in example.gold] for example in examples]
        positives = np.stack([np.isin(*pair) for pair in zip(rows, gold, strict=True)])
        return dataclasses.replace(
            batch,
            vectors=vectors[places.reshape(rows.shape)],
            candidate_mask=np.ones(rows.shape, bool),
            positives=positives,
        )


def question_encoder(
    network: Network, placer: Placer, mesh: jax.sharding.Mesh
) -> Encode:
    """Make what encodes the questions of a batch with a state's reasoner.

    It does not wait for the devices. Every device of the mesh gets all vectors, so that
    any process reads them without asking another.
    """
    memory = {"memory": network.adapters["memory"]}
    fixed = dataclasses.replace(network, adapters=memory)

    @functools.partial(jax.jit, out_shardings=named_sharding(mesh))
    def encode(network: Network, question: Tokens) -> Float[Array, "B W"]:
        return network.reason(question).astype(jnp.float32)

    def begin(state: TrainState, question: Tokens) -> Array:
        placed = placer.put(Batch(question=question)).question
        own = {"reasoner": state.trainable["reasoner"]}
        return encode(fixed.with_adapters(own), placed)

    return begin
