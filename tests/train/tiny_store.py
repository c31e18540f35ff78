"""Stores of the documents that the tiny experiment asks about."""

from pathlib import Path

import jax
from toy_store import write_store

from clara_jax.clara import vector_fingerprint
from clara_jax.data import Corpus
from clara_jax.documents import Document
from clara_jax.generate import encode_rows
from clara_jax.search import StoreSettings
from clara_jax.train.runner import assemble

QUESTIONS = Path(__file__).parent / "tiny" / "questions.jsonl"


def tiny_texts():
    """Every document that a question has as a candidate, once."""
    return list(dict.fromkeys(d.text for d in Corpus([QUESTIONS]).all()))


def store_maker(folder, config):
    """What makes stores of the first so many texts, by a run's frozen compressor."""
    parts, texts = assemble(config), tiny_texts()
    memory = config.memory
    with jax.set_mesh(parts.mesh):
        vectors = encode_rows(
            parts.network,
            parts.tokenizer.encode_documents(texts, memory.doc_max_length),
            role="compressor",
            pad_id=parts.tokenizer.pad_id,
            batch_size=16,
        )
        made_by = vector_fingerprint(parts.network)
    width = parts.network.model.config.width
    settings = StoreSettings(made_by, "model", "", memory, width, dtype="bfloat16")

    def make(name, count=None):
        pieces = [Document(text=text, id=text) for text in texts[:count]]
        return write_store(folder / name, settings, vectors[:count], pieces, 5)

    return make
