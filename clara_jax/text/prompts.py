"""Prompts that the original's checkpoints were trained with.

They are part of the checkpoint format, like special tokens: a changed letter is a
changed input. All but the paraphrase instructions were read off the parity files; those
are the published list of xRAG (Cheng et al., arXiv 2405.13792, appendix), of which the
parity files confirm numbers 0, 2, 3, 5, 7, 10 and 11 and the order.

`background` is what `ClaraTokenizer.slots` gives, or documents as text.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from clara_jax.errors import ClaraError

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARK = re.compile(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}")
ESCAPE = "\ufdd2"
"""A noncharacter put into users' words that spell control tokens; see
`clara_jax.text.control_tokens`."""

_FORBIDDEN = str.maketrans("", "", _OPEN + _CLOSE)


def mark(name: str) -> str:
    """Spell the special token `name` (``MEM0``, ``SEP``) so that it is one token."""
    return f"{_OPEN}{name}{_CLOSE}"


def plain(text: str) -> str:
    """Remove the two noncharacters, so that `text` can spell no special token."""
    return text.translate(_FORBIDDEN)


def readable(text: str) -> str:
    """Spell special tokens the way the original does: ``<MEM0>``, ``<SEP>``."""
    return _MARK.sub(r"<\1>", text).replace(ESCAPE, "")


def marker_names(num_memory: int) -> tuple[str, ...]:
    """Return the names of all special tokens in the order of their ids."""
    return (*(f"MEM{i}" for i in range(num_memory)), "AE", "ENC", "SEP")


SCP_SYSTEM = (
    "You are a helpful assistant. Given a document, your task is to generate some "
    "single questions to cover all key information of the document and answer them "
    "sequentially."
)
PARAPHRASE_SYSTEM = (
    "You are a helpful assistant. Your task is follow the instructions to paraphrase "
    "the background information."
)
ANSWER_SYSTEM = (
    "You are a helpful assistant. Your task is to extract relevant information from "
    "provided documents and to answer to questions as briefly as possible."
)

PARAPHRASES = (
    "Background: {docs} means the same as",
    "Background: {docs} Can you put the above sentences in your own terms?",
    "Background: {docs} Please provide a reinterpretation of the preceding background "
    "text.",
    "These two expressions are equivalent in essence:\n(1) {docs}\n(2)",
    "Background: {docs} is a paraphrase of what?",
    "Background: {docs} Could you give me a different version of the background "
    "sentences above?",
    "In other words, background: {docs} is just another way of saying:",
    "You're getting across the same point whether you say background: {docs} or",
    "Background: {docs} After unpacking the ideas in the background information above, "
    "we got:",
    "Background: {docs} Please offer a restatement of the background sentences I've "
    "just read.",
    "Background: {docs}, which also means:",
    "Strip away the mystery, and you'll find background: {docs} is simply another "
    "rendition of:",
    "The essence of background: {docs} is captured again in the following statement:",
)


class Prompt(NamedTuple):
    """The two messages before the answer."""

    system: str
    user: str


def scp_prompt(background: str) -> Prompt:
    """Ask for all question-answer pairs of the background (stage ``scp``)."""
    return Prompt(SCP_SYSTEM, _mend(f"Background:\n{background}"))


def paraphrase_prompt(background: str, instruction: int) -> Prompt:
    """Ask for the background in other words (stage ``scp``).

    The `instruction` is one of `PARAPHRASES`; the original draws one per row.
    """
    text = PARAPHRASES[instruction].replace("{docs}", background)
    return Prompt(PARAPHRASE_SYSTEM, _mend(text))


def answer_prompt(background: str, question: str) -> Prompt:
    """Ask a question about the background (stages ``instruct``, ``end_to_end``)."""
    text = f"Background:\n{background}\n\nQuestion:{plain(question)}"
    return Prompt(ANSWER_SYSTEM, _mend(text))


def scp_target(questions: Sequence[str], answers: Sequence[str]) -> str:
    """Join questions, and an answer to each, to the text that `scp_prompt` wants."""
    if len(questions) != len(answers):
        raise ClaraError(f"{len(questions)} questions, but {len(answers)} answers")
    pairs = zip(questions, answers, strict=True)
    return "\n".join(f"Question: {q}\nAnswer: {a}" for q, a in pairs)


def _mend(user: str) -> str:
    """Drop the backslash of colon, backslash, space, as the original does."""
    return user.replace(":\\ ", ": ")
