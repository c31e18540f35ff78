"""Answers from documents: compress, reason, select, answer.

The methods of `Clara` take texts, split them into padded batches of few shapes and run
the functions of `clara_jax.clara` and of `clara_jax.generate.decode` on them.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.clara import Network
from clara_jax.config import MemoryConfig, SelectionConfig
from clara_jax.distributed import to_host
from clara_jax.errors import ClaraError
from clara_jax.generate import batched, decode
from clara_jax.generate.batched import AnswerConfig, AnyArray, Spoken
from clara_jax.model import Transformer
from clara_jax.shapes import Bool, Float, Int, Params
from clara_jax.text import (
    ClaraTokenizer,
    Prompt,
    answer_prompt,
    paraphrase_prompt,
    plain,
)

_PROMPT = 64  # shortest padded prompt: no real one is much shorter


class Selection(NamedTuple):
    """Answers and what they were answered from.

    Attributes:
      indices: ``[B, J]`` chosen candidates, best first.
      scores: ``[B, C]`` cosines of all candidates; minus infinity where there is none.
    """

    answers: list[str]
    indices: np.ndarray
    scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class Clara:
    """A model that answers questions from compressed documents.

    Attributes:
      network: backbone and adapters.
      tokenizer: with special tokens.
      memory, selection, config: how documents are compressed, chosen and answered from.
      merged: role to a network whose weights hold its adapter; see `merge`.
      watch: called with a part's name (compress, reason, select, prefill, decode) for a
        context around it, to take times.

    Example::

      vectors = clara.compress(documents)                     # [n, M, D]
      clara.answer_from_vectors(["Who?"], vectors[None, :5])  # ["..."]
    """

    network: Network
    tokenizer: ClaraTokenizer
    memory: MemoryConfig
    selection: SelectionConfig = SelectionConfig()
    config: AnswerConfig = AnswerConfig()
    merged: Mapping[str, Network] = dataclasses.field(default_factory=dict)
    watch: Callable[[str], contextlib.AbstractContextManager] = contextlib.nullcontext

    def compress(self, documents: Sequence[str]) -> Float[np.ndarray, "n M D"]:
        """Compress documents; text beyond ``doc_max_length`` tokens is not read.

        Raises:
          ClaraError: a document is empty, or the model has no compressor.
        """
        batched.refuse_empty(documents, "document {}")
        limit = self.memory.doc_max_length
        return self._encode("compress", documents, limit, "compressor")

    @property
    def question_limit(self) -> int:
        """Return how many tokens of a question the reasoner reads."""
        return self.config.question_max_length or self.memory.doc_max_length

    def reason(self, questions: Sequence[str]) -> Float[np.ndarray, "n M D"]:
        """Encode questions into the documents' space.

        Raises:
          ClaraError: a question is empty or too long, or there is no reasoner.
        """
        batched.refuse_empty(questions, "question {}")
        limit = self.question_limit
        if self.config.too_long == "error":
            batched.refuse_long(questions, "question {}", self.tokenizer, limit)
        return self._encode("reason", questions, limit, "reasoner")

    def gather(
        self, documents: Sequence[Sequence[str]]
    ) -> tuple[Float[np.ndarray, "B C M D"], Bool[np.ndarray, "B C"]]:
        """Compress B rows of documents, C at most, each distinct text once.

        Returns:
          Vectors, and which of them exist.
        """
        for i, row in enumerate(documents):
            batched.refuse_empty(row, f"document {{}} of question {i + 1}")
        distinct, places, mask = batched.number_texts(documents)
        return self.compress(distinct)[places], mask

    def select(
        self,
        question_vectors: Float[AnyArray, "B M D"],
        vectors: Float[AnyArray, "*rows C M D"],
        top_k: int,
        mask: Bool[np.ndarray, "B C"] | None = None,
    ) -> tuple[Int[np.ndarray, "B J"], Float[np.ndarray, "B C"]]:
        """Rank candidates by their cosine with the question (paper section 3.3).

        Args:
          question_vectors: as of `reason`.
          vectors: of each question's candidates, or of the same ones for all.
          top_k: J; `ClaraError` where a question has fewer candidates.
          mask: candidates that exist.

        Returns:
          Chosen indices, best first, and all cosines; minus infinity beside the mask.
        """
        if mask is None:
            mask = np.ones((question_vectors.shape[0], vectors.shape[-3]), bool)
        for i, found in enumerate(mask.sum(axis=1).tolist()):
            if top_k > found:
                raise ClaraError(
                    f"top_k {top_k} is above the number of candidates {found} of "
                    f"question {i + 1}; lower top_k or give more documents"
                )
        with self.watch("select"):
            found = batched.candidate_scores(question_vectors, vectors)
            scores = np.where(mask, found, -np.inf)
            order = np.argsort(-scores, axis=1, kind="stable")
            return order[:, :top_k], scores

    def answer_from_vectors(
        self,
        questions: Sequence[str],
        vectors: Float[AnyArray, "B J M D"],
        mask: Bool[np.ndarray, "B J"] | None = None,
    ) -> list[str]:
        """Answer questions from the vectors of their documents.

        Args:
          questions: none empty.
          vectors: of J documents each, in the prompt's order.
          mask: documents that exist, the first ones of each row; by default all.
        """
        return self._texts(self.answer_prompts(questions, vectors, mask), vectors)

    def answer(
        self, questions: Sequence[str], documents: Sequence[Sequence[str]]
    ) -> list[str]:
        """Answer each question from its own documents, any number; none is empty."""
        return self.answer_from_vectors(questions, *self.gather(documents))

    def select_and_answer(
        self,
        questions: Sequence[str],
        candidates: Sequence[Sequence[str]],
        top_k: int | None = None,
    ) -> Selection:
        """Answer each question from the best of its candidates.

        Args:
          questions: none empty.
          candidates: per question at least `top_k` documents; numbers may differ.
          top_k: J; the trained number by default.

        Raises:
          ClaraError: `top_k` above the number of candidates; see also `reason`.
        """
        top_k = self.selection.top_k if top_k is None else top_k
        queries = self.reason(questions)
        vectors, mask = self.gather(candidates)
        indices, scores = self.select(queries, vectors, top_k, mask)
        chosen = vectors[np.arange(len(questions))[:, None], indices]
        return Selection(self.answer_from_vectors(questions, chosen), indices, scores)

    def answer_from_text(
        self,
        questions: Sequence[str],
        documents: Sequence[Sequence[str]],
        role: str | None = None,
    ) -> list[str]:
        """Answer from any number of documents' text: the baseline without compression.

        The `role` is ``generator``, or None for the plain backbone.
        """
        batched.refuse_empty(questions, "question {}")
        prompts = [
            answer_prompt("\n\n".join(map(plain, texts)), question)
            for question, texts in zip(questions, documents, strict=True)
        ]
        longest = self.network.model.config.rope.max_position
        limit = longest - self.config.max_new_tokens if longest else None
        rows = batched.encode_prompts(self.tokenizer, prompts, limit)
        return self._texts(rows, None, role)

    def paraphrase(
        self,
        documents: Sequence[Sequence[str]],
        instructions: Sequence[int] | None = None,
    ) -> list[str]:
        """Say in other words what documents say, from their vectors.

        Args:
          documents: per row one or more texts, none empty.
          instructions: per row which of `PARAPHRASES`; by default drawn with the seed.
        """
        vectors, mask = self.gather(documents)
        rows = self.paraphrase_prompts(mask.sum(axis=1).tolist(), instructions)
        return self._texts(rows, vectors)

    def answer_prompts(
        self,
        questions: Sequence[str],
        vectors: Float[AnyArray, "B J M D"],
        mask: Bool[np.ndarray, "B J"] | None = None,
    ) -> list[list[int]]:
        """Return the token ids of the prompts of `answer_from_vectors`."""
        batched.refuse_empty(questions, "question {}")
        counts = [vectors.shape[1]] * len(questions)
        if mask is not None:
            counts = mask.sum(axis=1).tolist()
        return self._encode_slots(counts, answer_prompt, questions)

    def paraphrase_prompts(
        self, counts: Sequence[int], instructions: Sequence[int] | None = None
    ) -> list[list[int]]:
        """Return the token ids of the prompts of `paraphrase` of so many documents."""
        if instructions is None:
            instructions = batched.draw_instructions(self.config.seed, len(counts))
        return self._encode_slots(counts, paraphrase_prompt, instructions)

    def continue_prompts(
        self,
        rows: Sequence[Sequence[int]],
        vectors: Float[AnyArray, "n J M D"] | None,
        role: str | None = "generator",
    ) -> Int[np.ndarray, "n new"]:
        """Decode what follows prompts: rows of tokens, filled up with pads.

        Draws do not depend on how rows fall into batches.

        Args:
          rows: token ids of each prompt.
          vectors: fill the memory tokens from the left; None where there are none.
          role: whose adapter writes; None for the plain backbone.
        """
        config = self.config.decoding(self.tokenizer)
        out = np.full((len(rows), config.max_new_tokens), config.pad_id, np.int32)
        for chosen, played, state in self._prefilled(rows, vectors, role):
            with self.watch("decode"):
                state = decode.jit_decode_loop(*played, state, config)
                out[chosen] = to_host(state.tokens)[: len(chosen)]
        return out

    def with_adapters(self, adapters: Mapping[str, Params]) -> "Clara":
        """Return the model with these adapters in place of its own, such as trained."""
        return dataclasses.replace(self, network=self.network.with_adapters(adapters))

    def merge(self, role: str = "generator") -> "Clara":
        """Return the model with `role` faster: its adapter merged into the weights.

        The sum is made in float32. Each merged role keeps weights of its own.
        """
        batched.require_role(self.network, role)
        merged = {**self.merged, role: self.network.merge(role)}
        return dataclasses.replace(self, merged=merged)

    def stream(self, question: str, vectors: Float[AnyArray, "J M D"]) -> Iterator[str]:
        """Yield the answer of `answer_from_vectors` in pieces, as it is decoded."""
        rows = self.answer_prompts([question], vectors[None])
        config = self.config.decoding(self.tokenizer)

        def tokens() -> Iterator[int]:
            ((_, played, state),) = self._prefilled(rows, vectors[None], "generator")
            for step in range(config.max_new_tokens):
                if step:
                    with self.watch("decode"):
                        state = decode.jit_decode_step(*played, state, config)
                        jax.block_until_ready(state)
                token = int(state.tokens[0, step])
                if token in config.eos_ids:
                    return
                yield token

        return batched.text_pieces(tokens(), self.tokenizer.decode)

    def _prefilled(
        self,
        rows: Sequence[Sequence[int]],
        vectors: Float[AnyArray, "n J M D"] | None,
        role: str | None,
    ) -> Iterator[tuple[np.ndarray, tuple[Transformer, Params], decode.DecodeState]]:
        """Read prompts; yield each batch's rows, who reads them, and its state."""
        network, role = self._player(role)
        played = network.model, network.variables(role)
        config, size = self.config.decoding(self.tokenizer), self.config.batch_size
        filled = None if vectors is None else np.asarray(vectors)
        batches = batched.batches_by_length(rows, config.pad_id, size, smallest=_PROMPT)
        for chosen, prompt in batches:
            places = np.pad(chosen, (0, prompt.ids.shape[0] - len(chosen)), "edge")
            with self.watch("prefill"):
                filling = None if filled is None else jnp.asarray(filled[places])
                prompt_vectors = batched.embed_prompts(network, prompt, filling)
                keys = decode.row_keys(self.config.seed, jnp.asarray(places))
                given = (*played, prompt_vectors, prompt.mask, config, keys)
                state = jax.block_until_ready(decode.jit_prefill(*given))
            yield chosen, played, state

    def explain(
        self, questions: Sequence[str], count: int = 10
    ) -> list[list[list[Spoken]]]:
        """Return, for each vector of each question, the `count` tokens nearest to it.

        The paper looks at the reasoner in this way: among them are words that the
        question does not hold and its documents do.

        Raises:
          ClaraError: `count` is below 1, or above the vocabulary; see also `reason`.
        """
        return [
            batched.nearest_tokens(self.network, vectors, count, self.tokenizer.decode)
            for vectors in self.reason(questions)
        ]

    def _texts(
        self,
        rows: Sequence[Sequence[int]],
        vectors: Float[AnyArray, "B J M D"] | None,
        role: str | None = "generator",
    ) -> list[str]:
        tokens = self.continue_prompts(rows, vectors, role)
        ends = self.config.decoding(self.tokenizer).eos_ids
        return [self.tokenizer.decode(row).strip() for row in decode.trim(tokens, ends)]

    def _encode(
        self, part: str, texts: Sequence[str], max_length: int, role: str
    ) -> Float[np.ndarray, "n M D"]:
        network, adapter = self._player(role)
        with self.watch(part):
            return batched.encode_rows(
                network,
                self.tokenizer.encode_documents(texts, max_length),
                role=adapter,
                pad_id=self.tokenizer.pad_id,
                batch_size=self.config.batch_size,
                largest=self.memory.row_length(max_length),
            )

    def _player(self, role: str | None) -> tuple[Network, str | None]:
        """Return the network that plays a role, and the adapter that it needs for it.

        Without a role it is the plain backbone, which knows no special tokens.
        """
        network = self.network
        if role is None:
            own = {k: v for k, v in network.adapters.items() if k == "backbone"}
            return dataclasses.replace(network, adapters=own), None
        batched.require_role(network, role)
        return (self.merged[role], None) if role in self.merged else (network, role)

    def _encode_slots(
        self, counts: Sequence[int], form: Callable[..., Prompt], said: Sequence[Any]
    ) -> list[list[int]]:
        """Encode prompts of a form, each with slots for so many documents."""
        prompts = [
            form(self.tokenizer.slots(count, self.memory.separator), text)
            for count, text in zip(counts, said, strict=True)
        ]
        limit, cut = self.config.prompt_max_length, self.config.too_long == "cut"
        return batched.encode_prompts(self.tokenizer, prompts, limit, cut)
