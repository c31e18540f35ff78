"""Data: records out of files, examples out of records, batches out of examples."""

from clara_jax.data.batching import Part, UniqueDocuments, make_batches
from clara_jax.data.chunking import split_documents
from clara_jax.data.corpus_shards import ShardReader
from clara_jax.data.document_corpus import Corpus
from clara_jax.data.examples import (
    Dialogue,
    Draw,
    Example,
    ExampleMaker,
    Reads,
    check_records,
    pick,
)
from clara_jax.data.hub_sets import is_hub
from clara_jax.data.mix import is_mixed, mix
from clara_jax.data.questions import read_questions
from clara_jax.data.reading import Reading, add_reading_options, reading_of
from clara_jax.data.recipe import read_recipe
from clara_jax.data.records import Record, each, require_documents
from clara_jax.data.sources import Records, open_records, write_tfds
from clara_jax.documents import Document

__all__ = [
    "Corpus",
    "Dialogue",
    "Document",
    "Draw",
    "Example",
    "ExampleMaker",
    "Part",
    "Reading",
    "Reads",
    "Record",
    "Records",
    "ShardReader",
    "UniqueDocuments",
    "add_reading_options",
    "check_records",
    "each",
    "is_hub",
    "is_mixed",
    "make_batches",
    "mix",
    "open_records",
    "pick",
    "read_questions",
    "read_recipe",
    "reading_of",
    "require_documents",
    "split_documents",
    "write_tfds",
]
