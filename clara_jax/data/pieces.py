"""Long documents in pieces that the model can read whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from clara_jax.data.documents import Document
from clara_jax.text import ClaraTokenizer

OVERLAP = 8
"""One in so many tokens of a piece is in the piece before it, too."""


def split_documents(
    documents: Sequence[Document], tokenizer: ClaraTokenizer, limit: int
) -> list[Document]:
    """Cut documents that are longer than `limit` tokens.

    Pieces end between words where they can, overlap by an eighth, and name the part
    that they are in their label; the text that is compressed is the piece alone.

    Args:
      documents: of any length.
      tokenizer: counts tokens.
      limit: longest piece.

    Returns:
      Documents in their order, long ones as several.
    """
    found: list[Document] = []
    for document in documents:
        if tokenizer.document_length(document.text) <= limit:
            found.append(document)
            continue
        texts = split_text(document.text, tokenizer, limit)
        for i, text in enumerate(texts):
            part = f"part {i + 1} of {len(texts)}"
            found.append(
                dataclasses.replace(
                    document, text=text, title=f"{document.label} ({part})"
                )
            )
    return found


def split_text(text: str, tokenizer: ClaraTokenizer, limit: int) -> list[str]:
    """Cut one text into pieces of at most `limit` tokens.

    Args:
      text: of any length.
      tokenizer: counts tokens.
      limit: longest piece, at least 1.

    Returns:
      Pieces, none blank; every word of the text is in at least one.
    """
    spans = tokenizer.base(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )["offset_mapping"]
    pieces: list[str] = []
    start = 0
    while start < len(spans):
        stop = min(start + limit, len(spans))
        # Cut alone, a piece may count some tokens more than within the text.
        while stop > start + 1 and (
            tokenizer.document_length(_cut(text, spans, start, stop)) > limit
        ):
            stop -= 1
        if stop < len(spans):
            stop = _word_end(text, spans, start, stop)
        piece = _cut(text, spans, start, stop)
        if piece:
            pieces.append(piece)
        if stop == len(spans):
            break
        start = max(stop - (stop - start) // OVERLAP, start + 1)
    return pieces


def _cut(text: str, spans: Sequence[tuple[int, int]], start: int, stop: int) -> str:
    return text[spans[start][0] : spans[stop - 1][1]].strip()


def _word_end(
    text: str, spans: Sequence[tuple[int, int]], start: int, stop: int
) -> int:
    """The last stop in the later half of the piece that is followed by white space."""
    for candidate in range(stop, start + (stop - start) // 2, -1):
        end = spans[candidate - 1][1]
        if text[end : end + 1].isspace() or text[spans[candidate][0]].isspace():
            return candidate
    return stop
