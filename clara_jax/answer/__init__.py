"""The command that answers questions from documents, and what it is made of."""

from clara_jax.answer.session import Answer, Given, Session, Stored, check_question

__all__ = ["Answer", "Given", "Session", "Stored", "check_question"]
