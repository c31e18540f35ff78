"""Scores of answers and retrieval, and the evaluators that a training run calls."""

from clara_jax.evaluate.evaluators import (
    CompressedAnswers,
    CorpusRetrieval,
    Evaluator,
    HeldOutLoss,
    Question,
    SelectedAnswers,
    TextAnswers,
    questions_of,
)
from clara_jax.evaluate.metrics import score_answers, score_retrieval

__all__ = [
    "CompressedAnswers",
    "CorpusRetrieval",
    "Evaluator",
    "HeldOutLoss",
    "Question",
    "SelectedAnswers",
    "TextAnswers",
    "questions_of",
    "score_answers",
    "score_retrieval",
]
