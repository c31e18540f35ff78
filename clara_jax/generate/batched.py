"""Texts and prompts of any number and length through the compiled functions.

Every new shape compiles anew, so lengths are rounded up to 16, 24, 32, 48, 64, 96, ...
and numbers of rows to powers of two: at most half of a batch is padding, and a service
sees about two programs per doubling of the length. Where many rows come together, as
when a corpus is compressed, eight programs per doubling pay for themselves. Vectors
stay in host memory between the parts, so that only padded shapes are ever compiled.
"""

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clara_jax.clara import Network, Tokens, cosine_scores
from clara_jax.clara.batches import pad_rows
from clara_jax.distributed import to_host
from clara_jax.errors import ClaraError
from clara_jax.generate.decode import DecodeConfig, Sampling
from clara_jax.model import Transformer
from clara_jax.shapes import Array, Float, Int, Params
from clara_jax.sharding import place
from clara_jax.text import PARAPHRASES, ClaraTokenizer, Prompt, plain

AnyArray = Array | np.ndarray

_MANY = 4
"""Full batches from which on closer lengths are worth their programs."""


@dataclasses.dataclass(frozen=True)
class AnswerConfig:
    """How answers are made.

    Attributes:
      max_new_tokens: longest answer.
      sampling: greedy by default.
      seed: of the draws, and of paraphrase instructions.
      eos_ids: end tokens; empty takes the tokenizer's.
      batch_size: rows read together.
      prompt_max_length: longest prompt with document slots, in tokens.
      question_max_length: longest question for the reasoner; 0 takes doc_max_length.
      too_long: what to do with a longer question or prompt: ``error`` or ``cut``.
      control_tokens: whether a document or question that spells a control token of the
        tokenizer, such as ``</s>``, means it, as in the original; else its characters
        are text like others.
    """

    max_new_tokens: int = 64
    sampling: Sampling = Sampling()
    seed: int = 0
    eos_ids: tuple[int, ...] = ()
    batch_size: int = 8
    prompt_max_length: int = 1024
    question_max_length: int = 0
    too_long: Literal["error", "cut"] = "error"
    control_tokens: bool = False

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size", "prompt_max_length"):
            if getattr(self, name) < 1:
                raise ClaraError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ClaraError(f"seed must be from 0 to 2**32 - 1, not {self.seed}")

    def decoding(self, tokenizer: ClaraTokenizer) -> DecodeConfig:
        """Return the static settings of decoding with this tokenizer."""
        return DecodeConfig(
            max_new_tokens=self.max_new_tokens,
            eos_ids=self.eos_ids or (tokenizer.eos_id,),
            pad_id=tokenizer.pad_id,
            sampling=self.sampling,
        )


def length_bucket(
    length: int, largest: int | None = None, smallest: int = 16, steps: int = 2
) -> int:
    """Return the padded length of a row: a power of two, or a step between two.

    Args:
      length: tokens in the longest row.
      largest: longest that can occur, where it is known: no result is above it.
      smallest: lower bound, which saves programs where short rows cost little.
      steps: from one power of two to the next; none is shorter than 8 tokens.
    """
    length = max(length, 1)
    wanted = max(length, smallest, 16)
    step = max((1 << ((wanted - 1).bit_length() - 1)) // steps, 8)
    bucket = -(-wanted // step) * step
    return bucket if largest is None else max(length, min(bucket, largest))


def row_bucket(rows: int, batch_size: int) -> int:
    """Return the padded number of rows: a power of two, or `batch_size`."""
    return min(1 << max(rows - 1, 0).bit_length(), batch_size)


def batches_by_length(
    rows: Sequence[Sequence[int]],
    pad_id: int,
    batch_size: int,
    largest: int | None = None,
    smallest: int = 16,
    close: bool = False,
) -> Iterator[tuple[np.ndarray, Tokens]]:
    """Yield batches of rows of like length, and which rows ``[n]`` come first in each.

    Args:
      rows: token ids.
      pad_id: fills shorter rows.
      batch_size: rows in a batch, at most.
      largest, smallest: see `length_bucket`.
      close: lengths lie closer together once there are many rows.
    """
    order = np.argsort([len(row) for row in rows], kind="stable")
    steps = 8 if close and len(rows) >= _MANY * batch_size else 2
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        longest = max(len(rows[i]) for i in chosen)
        length = length_bucket(longest, largest, smallest, steps)
        count = row_bucket(len(chosen), batch_size)
        padded = pad_rows([rows[i] for i in chosen], pad_id, count, length)
        yield chosen, jax.tree.map(jnp.asarray, padded)


def number_texts(
    rows: Sequence[Sequence[str]],
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Number the distinct texts of B ragged rows, in the order met.

    Returns:
      The texts; their numbers ``[B, C]``, C the longest row; which places hold one.
    """
    number: dict[str, int] = {}
    numbered = [[number.setdefault(t, len(number)) for t in row] for row in rows]
    places = pad_rows(numbered, 0, len(rows), max(map(len, rows), default=0))
    return list(number), np.asarray(places.ids), np.asarray(places.mask)


def require_role(network: Network, role: str) -> None:
    """Refuse to play a role that a model was not trained for."""
    if role not in network.adapters:
        raise ClaraError(
            f"this model has no {role}; give the folder of a run that has trained one"
        )


def refuse_empty(texts: Sequence[str], name: str) -> None:
    """Refuse texts of white space only; in `name`, ``{}`` stands for their number."""
    for i, text in enumerate(texts):
        if not plain(text).strip():
            raise ClaraError(f"{name.format(i + 1)} is empty; give it some text")


def refuse_long(
    texts: Sequence[str], name: str, tokenizer: ClaraTokenizer, limit: int
) -> None:
    """Refuse texts of more than `limit` tokens; for `name` see `refuse_empty`."""
    for i, text in enumerate(texts):
        found = tokenizer.document_length(text)
        if found > limit:
            raise ClaraError(
                f"{name.format(i + 1)} has {found} tokens, above the limit {limit}; "
                "shorten it"
            )


def draw_instructions(seed: int, count: int) -> list[int]:
    """Draw which of `PARAPHRASES` asks for each of `count` paraphrases."""
    draw = random.Random(seed)
    return [draw.choice(range(len(PARAPHRASES))) for _ in range(count)]


def encode_prompts(
    tokenizer: ClaraTokenizer,
    prompts: Sequence[Prompt],
    limit: int | None = None,
    cut: bool = False,
) -> list[list[int]]:
    """Render prompts with the chat template, open for an answer.

    Args:
      tokenizer: with special tokens.
      prompts: system and user texts.
      limit: longest prompt in tokens, if any; `ClaraError` where one is longer.
      cut: cut longer prompts on the right instead, as the original does, unless that
        would cut off a document.
    """
    rows = [tokenizer.encode(tokenizer.chat(*prompt)) for prompt in prompts]
    if limit is None:
        return rows
    for i, row in enumerate(rows):
        rest = row[limit:]
        if rest and (not cut or np.isin(rest, tokenizer.memory_ids).any()):
            raise ClaraError(
                f"the prompt of question {i + 1} has {len(row)} tokens, above the "
                f"limit {limit}; give fewer documents or a shorter question"
            )
    return [row[:limit] for row in rows]


def encode_rows(
    network: Network,
    rows: Sequence[Sequence[int]],
    *,
    role: str | None,
    pad_id: int,
    batch_size: int,
    largest: int | None = None,
    tell: Callable[[int], object] | None = None,
) -> Float[np.ndarray, "n M D"]:
    """Compress documents, or encode questions, batch by batch.

    A batch is fetched when the next one is under way, so that devices do not wait.

    Args:
      network: which reads.
      rows: encoder rows, each ending in M memory tokens.
      role: ``compressor`` or ``reasoner``; None where the backbone holds its adapter.
      pad_id: fills shorter rows.
      batch_size: rows read together.
      largest: longest row that can occur, where it is known.
      tell: called after each batch with its number of rows; may raise to end the work.
    """
    config = network.model.config
    shape = (len(rows), network.num_memory, config.width)
    vectors = np.zeros(shape, jnp.dtype(config.dtype))
    under_way: list[tuple[np.ndarray, Array]] = []

    def fetch() -> None:
        chosen, found = under_way.pop(0)
        vectors[chosen] = to_host(found)[: len(chosen)]
        if tell is not None:
            tell(len(chosen))

    batches = batches_by_length(rows, pad_id, batch_size, largest, close=True)
    for chosen, tokens in batches:
        under_way.append((chosen, compress_batch(network, tokens, role)))
        if len(under_way) > 1:
            fetch()
    while under_way:
        fetch()
    return vectors


def make_compressor(
    network: Network,
    mesh: Mesh,
    *,
    merge: bool,
    pad_id: int,
    batch_size: int,
    largest: int | None = None,
) -> Callable[..., Float[np.ndarray, "n M D"]]:
    """Return what makes document vectors on all devices of a mesh, and nothing else.

    Args:
      network: laid out over `mesh`.
      mesh: the rows of a batch are split over it.
      merge: put the adapter into the weights, which must not be quantized: one product
        per matrix in place of three.
      pad_id, batch_size, largest: as of `encode_rows`.

    Returns:
      ``(rows, tell) -> vectors``, as of `encode_rows`.
    """
    with jax.set_mesh(mesh):
        network = network.merge("compressor") if merge else network
    own = {name: network.adapters[name] for name in ("compressor", "memory")}
    network, role = dataclasses.replace(network, adapters=own), "compressor"
    how = {"pad_id": pad_id, "batch_size": batch_size, "largest": largest}

    def compress(rows: Sequence[Sequence[int]], tell: Callable[[int], object]):
        with jax.set_mesh(mesh):
            given = {"role": None if merge else role, "tell": tell, **how}
            return encode_rows(network, rows, **given)

    return compress


def candidate_scores(
    questions: Float[AnyArray, "B M D"], vectors: Float[AnyArray, "*rows C M D"]
) -> Float[np.ndarray, "B C"]:
    """Return float32 cosines of questions with their candidates.

    These are ``[B, C, M, D]``, or ``[C, M, D]`` the same for all questions.
    """
    rows, candidates = questions.shape[0], vectors.shape[-3]
    more_rows = row_bucket(rows, 1 << 30) - rows
    more = [(0, length_bucket(candidates) - candidates), (0, 0), (0, 0)]
    if vectors.ndim == 4:
        more.insert(0, (0, more_rows))
    scores = _scores(
        jnp.asarray(np.pad(questions, [(0, more_rows), (0, 0), (0, 0)])),
        jnp.asarray(np.pad(vectors, more)),
    )
    return to_host(scores)[:rows, :candidates]


@jax.jit
def _scores(
    questions: Float[Array, "B M D"], vectors: Float[Array, "*rows C M D"]
) -> Float[Array, "B C"]:
    flat = questions.reshape(questions.shape[0], -1)
    documents = vectors.reshape(*vectors.shape[:-2], -1)
    if documents.ndim == 3:
        return cosine_scores(flat, documents)

    return jax.vmap(lambda query: cosine_scores(query[None], documents[None])[0])(flat)


@functools.partial(jax.jit, static_argnames="role")
def compress_batch(
    network: Network, tokens: Tokens, role: str | None
) -> Float[Array, "B M D"]:
    """Return the vectors of one padded batch of documents or questions."""
    tokens = jax.tree.map(lambda x: place(x, "batch", None), tokens)
    return network.compress(tokens, role=role).memory


embed_prompts = jax.jit(Network.embed)


def text_pieces(
    tokens: Iterator[int], decode: Callable[[Sequence[int]], str]
) -> Iterator[str]:
    """Yield text as tokens complete it.

    A token may end in the middle of a character, or change how the one before it is
    spelled; a piece is held back until its text is final. Pieces join to what `decode`
    makes of the whole, white space around it left out.
    """
    ids: list[int] = []
    told = ""
    for token in tokens:
        ids.append(token)
        text = decode(ids).lstrip()
        # White space at the end may be the last of the answer.
        piece = text.rstrip()[len(told) :]
        if piece and not text.endswith("\ufffd") and text.startswith(told):
            yield piece
            told += piece
    rest = decode(ids).strip()[len(told) :]
    if rest:
        yield rest


class Spoken(NamedTuple):
    """A token near a memory vector, with its probability in the text vocabulary."""

    token: str
    probability: float


def nearest_tokens(
    network: Network,
    vectors: Float[AnyArray, "M D"],
    count: int,
    decode: Callable[[Sequence[int]], str],
) -> list[list[Spoken]]:
    """Read vectors through the output head, without adapters (the logit lens).

    Raises:
      ClaraError: `count` is below 1, or above the vocabulary.
    """
    model, params = network.model, network.backbone["params"]
    if not 1 <= count <= model.text_vocab:
        raise ClaraError(
            f"{count} tokens per vector were asked for; take 1 to {model.text_vocab}"
        )
    found = _likeliest(model, params, jnp.asarray(vectors), count)
    return [
        [Spoken(decode([token]), chance) for token, chance in zip(*slot, strict=True)]
        for slot in zip(*(part.tolist() for part in found), strict=True)
    ]


@functools.partial(jax.jit, static_argnames=("model", "count"))
def _likeliest(
    model: Transformer, params: Params, vectors: Float[Array, "M D"], count: int
) -> tuple[Int[Array, "M count"], Float[Array, "M count"]]:
    """Return ids and probabilities of the text tokens with the largest logits."""
    apply: Any = model.apply
    logits = apply({"params": params}, vectors[None], method="logits")[0]
    chances, ids = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), count)
    return ids, chances
