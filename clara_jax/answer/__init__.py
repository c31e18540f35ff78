"""The command that answers questions from documents, and what it is made of."""

from clara_jax.answer.session import Answer, Session, Stopwatch, check_question
from clara_jax.answer.shelves import Given, Shelf, Stored

__all__ = [
    "Answer",
    "Given",
    "Session",
    "Shelf",
    "Stopwatch",
    "Stored",
    "check_question",
]
