"""The command that answers questions from documents, and what it is made of."""

from clara_jax.answer.documents import Document, read_documents, read_questions
from clara_jax.answer.pieces import split_documents
from clara_jax.answer.session import Answer, Session, Stopwatch, check_question

__all__ = [
    "Answer",
    "Document",
    "Session",
    "Stopwatch",
    "check_question",
    "read_documents",
    "read_questions",
    "split_documents",
]
