"""Text to tokens: the original's prompts and a tokenizer with memory tokens."""

from clara_jax.text.prompts import (
    PARAPHRASES,
    Prompt,
    answer_prompt,
    paraphrase_prompt,
    plain,
    readable,
    scp_prompt,
    scp_target,
)
from clara_jax.text.tokenizer import NAME_KEY, ClaraTokenizer, load_tokenizer

__all__ = [
    "NAME_KEY",
    "PARAPHRASES",
    "ClaraTokenizer",
    "Prompt",
    "answer_prompt",
    "load_tokenizer",
    "paraphrase_prompt",
    "plain",
    "readable",
    "scp_prompt",
    "scp_target",
]
