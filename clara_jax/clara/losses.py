"""The training losses: sums and weights of terms, divided once at the end.

Every loss is ``(network, batch, rng) -> (sums, weights, metrics)``: the step minimises
the sum over terms of ``sums[t] / weights[t]``. A term's weight depends on the batch
alone, so that microbatches, padding and sharding cannot bias its mean. Coefficients are
inside the sums. Metrics are ``name: (sum, weight)``.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from clara_jax.clara.batches import IGNORE, Batch, Tokens
from clara_jax.clara.network import Encoding, Network
from clara_jax.clara.topk import cosine_scores, soft_topk
from clara_jax.config import SelectionConfig
from clara_jax.shapes import Array, Bool, Float, Int, Key, Scores, Shaped
from clara_jax.sharding import place

Terms = dict[str, Float[Array, ""]]
Metrics = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
Outcome = tuple[Terms, Terms, Metrics]

VECTOR_AXES = ("batch", "candidates", None, None)
"""Logical axes of document vectors ``[B, C, M, D]``."""

_STRETCH = 64
"""Positions whose logits exist at one time."""


@runtime_checkable
class Loss(Protocol):
    """What a training step minimises."""

    def __call__(self, network: Network, batch: Batch, rng: Key | None) -> Outcome:
        """Return sums and weights of the loss's terms, and its metrics."""
        ...


def answer_terms(
    network: Network, hidden: Float[Array, "B T D"], labels: Int[Array, "B T"]
) -> Outcome:
    """Return the cross-entropy of labels, each predicted by the position before it.

    Returns:
      The term ``answer`` (nats, weight: supervised tokens, those not `IGNORE`) and the
      metric ``token_accuracy``.
    """

    def score(states, targets):
        logits = network.logits(states)
        counted = targets != IGNORE
        targets = jnp.where(counted, targets, 0)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        loss = jax.nn.logsumexp(logits, axis=-1) - chosen
        right = (jnp.argmax(logits, axis=-1) == targets) & counted
        return jnp.sum(jnp.where(counted, loss, 0.0)), jnp.sum(right, dtype=jnp.float32)

    def nothing(states, targets):
        del states, targets
        return jnp.zeros(()), jnp.zeros(())

    # Logits are a step's largest array: made a stretch of positions at a time, again
    # backwards, and not at all where no row has a label (the prompt, the padding).
    @jax.checkpoint
    def stretch(totals, inputs):
        counted = jnp.any(inputs[1] != IGNORE)
        found = jax.lax.cond(counted, score, nothing, *inputs)
        return jax.tree.map(jnp.add, totals, found), None

    targets = labels[:, 1:]
    stretches = _stretches(hidden[:, :-1], 0), _stretches(targets, IGNORE)
    (total, right), _ = jax.lax.scan(stretch, nothing(hidden, labels), stretches)
    weight = jnp.sum(targets != IGNORE, dtype=jnp.float32)
    return {"answer": total}, {"answer": weight}, {"token_accuracy": (right, weight)}


def _stretches(x: Shaped[Array, "B T *rest"], fill: int) -> Shaped[Array, "..."]:
    """Cut the length into equal stretches, which become the leading axis."""
    length = x.shape[1]
    count = max(1, -(-length // _STRETCH))
    size = -(-length // count)
    widths = [(0, 0)] * x.ndim
    widths[1] = (0, count * size - length)
    padded = jnp.pad(x, widths, constant_values=fill)
    return jnp.moveaxis(padded.reshape(len(x), count, size, *x.shape[2:]), 1, 0)


@dataclasses.dataclass(frozen=True)
class CompressionLoss:
    """Stages 1 and 2: answer (or paraphrase) from compressed documents.

    Cross-entropy plus ``mse_weight`` times the mean squared difference between each
    document's mean memory state and its mean text state; gradients reach both means.
    Source: paper section 3.1.
    """

    mse_weight: float = 0.1

    def __call__(self, network: Network, batch: Batch, rng: Key | None) -> Outcome:
        """Return the terms ``answer`` and ``mse``; see `Loss`."""
        prompt, labels, documents = batch.prompt, batch.labels, batch.documents
        assert prompt is not None and labels is not None and documents is not None
        keys = (None, None) if rng is None else tuple(jax.random.split(rng))
        vectors, encoding = _compressed(network, documents, keys[0])
        hidden = network.generate_hidden(prompt, vectors, rng=keys[1])
        sums, weights, metrics = answer_terms(network, hidden, labels)
        present = jnp.any(documents.mask, axis=-1).ravel().astype(jnp.float32)
        gap = jnp.square(encoding.memory_mean - encoding.text_mean)
        mse = jnp.sum(jnp.mean(gap, axis=-1) * present)
        count = jnp.sum(present)
        metrics["mse"] = (mse, count)
        if self.mse_weight:
            sums["mse"] = self.mse_weight * mse
            weights["mse"] = count
        return sums, weights, metrics


@dataclasses.dataclass(frozen=True)
class EndToEndLoss:
    """Stage 3: retrieve and answer, from the answer's cross-entropy alone.

    The compressor is frozen; candidates come as vectors or are compressed on the way.
    Gradients reach the reasoner through the differentiable top-k (paper section 3.3).
    Gold positions, when a batch has them, only feed the metric ``recall``.
    """

    selection: SelectionConfig = SelectionConfig()

    def __call__(self, network: Network, batch: Batch, rng: Key | None) -> Outcome:
        """Return the term ``answer``; see `Loss`."""
        prompt, labels = batch.prompt, batch.labels
        assert prompt is not None and labels is not None
        keys = (None, None) if rng is None else tuple(jax.random.split(rng))
        vectors = candidate_vectors(network, batch)
        scores = question_scores(network, batch, vectors, keys[0])
        k, mask = self.selection.top_k, batch.candidate_mask
        temperature, exclusion = self.selection.temperature, self.selection.exclusion
        weights, indices = soft_topk(scores, k, temperature, exclusion, mask)
        weights = weights.astype(vectors.dtype)
        selected = jnp.einsum("bjc,bcmd->bjmd", weights, vectors, precision="highest")
        hidden = network.generate_hidden(prompt, selected, rng=keys[1])
        sums, totals, metrics = answer_terms(network, hidden, labels)
        if batch.positives is not None:
            metrics |= _recall(indices, batch.positives)
        return sums, totals, metrics


@dataclasses.dataclass(frozen=True)
class RerankLoss:
    """The supervised baseline: contrastive, with labelled positives.

    Minus the log share of the positives in a softmax over all candidates; rows without
    a positive do not count. Trains the reasoner alone.
    """

    selection: SelectionConfig = SelectionConfig()

    def __call__(self, network: Network, batch: Batch, rng: Key | None) -> Outcome:
        """Return the term ``rerank``; see `Loss`."""
        positives = batch.positives
        assert positives is not None
        vectors = candidate_vectors(network, batch)
        scores = question_scores(network, batch, vectors, rng)
        logits = scores / max(self.selection.temperature, 1e-6)
        if batch.candidate_mask is not None:
            logits = jnp.where(batch.candidate_mask, logits, -1e30)
        counted = jnp.any(positives, axis=-1)
        # A finite stand-in keeps rows without positives out of the gradient, not NaN.
        among = jnp.where(positives | ~counted[:, None], logits, -1e30)
        share = jax.nn.logsumexp(logits, axis=-1) - jax.nn.logsumexp(among, axis=-1)
        loss = jnp.sum(jnp.where(counted, share, 0.0))
        weight = jnp.sum(counted, dtype=jnp.float32)
        _, indices = jax.lax.top_k(logits, min(self.selection.top_k, scores.shape[-1]))
        return {"rerank": loss}, {"rerank": weight}, _recall(indices, positives)


@dataclasses.dataclass(frozen=True)
class TextLoss:
    """Next-token cross-entropy of prompts without vectors: the text baselines.

    Attributes:
      role: whose adapter reads; None trains the whole backbone (stage ``lm``).
    """

    role: str | None = "generator"

    def __call__(self, network: Network, batch: Batch, rng: Key | None) -> Outcome:
        """Return the term ``answer`` over every labelled token; see `Loss`."""
        prompt, labels = batch.prompt, batch.labels
        assert prompt is not None and labels is not None
        hidden = network.generate_hidden(prompt, None, role=self.role, rng=rng)
        return answer_terms(network, hidden, labels)


def candidate_vectors(network: Network, batch: Batch) -> Float[Array, "B C M D"]:
    """Return the batch's vectors, or compress its candidates, without gradients."""
    if batch.vectors is not None:
        vectors = batch.vectors.astype(network.model.config.dtype)
        vectors = place(vectors, *VECTOR_AXES)
    else:
        assert batch.candidates is not None
        vectors, _ = _compressed(network, batch.candidates, None)
    return jax.lax.stop_gradient(vectors)


def question_scores(
    network: Network,
    batch: Batch,
    vectors: Float[Array, "B C M D"],
    rng: Key | None = None,
) -> Scores:
    """Return the cosine of each question with its candidates."""
    assert batch.question is not None
    queries = network.reason(batch.question, rng=rng)
    return cosine_scores(queries, vectors.reshape(*vectors.shape[:2], -1))


def _compressed(
    network: Network, documents: Tokens, rng: Key | None
) -> tuple[Float[Array, "B C M D"], Encoding]:
    rows, per_row, length = documents.ids.shape
    flat = jax.tree.map(lambda x: x.reshape(rows * per_row, length), documents)
    encoding = network.compress(flat, rng=rng)
    vectors = encoding.memory.reshape(rows, per_row, *encoding.memory.shape[1:])
    return place(vectors, *VECTOR_AXES), encoding


def _recall(indices: Int[Array, "B J"], positives: Bool[Array, "B C"]) -> Metrics:
    found = jnp.take_along_axis(positives, indices, axis=1)
    gold = jnp.sum(positives, axis=-1)
    rows = jnp.sum(gold > 0, dtype=jnp.float32)

    def at(k: int) -> Float[Array, ""]:
        hits = jnp.sum(found[:, :k], axis=-1)
        return jnp.sum(hits / jnp.maximum(gold, 1), dtype=jnp.float32)

    return {f"recall@{k}": (at(k), rows) for k in sorted({1, indices.shape[1]})}
