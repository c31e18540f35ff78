"""Data: records out of files, examples out of records, batches out of examples."""

from clara_jax.data.collate import Layout, collate, measure
from clara_jax.data.corpus import Corpus
from clara_jax.data.documents import (
    Document,
    find_files,
    read_documents,
    read_questions,
)
from clara_jax.data.examples import (
    Dialogue,
    Example,
    ExampleMaker,
    check_records,
    supervise,
)
from clara_jax.data.mix import find_inputs, is_mixed, mix
from clara_jax.data.mix_manifest import table
from clara_jax.data.pieces import split_documents
from clara_jax.data.pipeline import count_candidates, make_batches
from clara_jax.data.recipe import Recipe, Source, read_recipe
from clara_jax.data.records import (
    FORMATS,
    Record,
    RecordSource,
    is_unicode,
    passage,
)
from clara_jax.data.sources import Records, open_records, write_tfds
from clara_jax.data.unique import UniqueDocuments, unique_documents
from clara_jax.data.windows import Part, Windows

__all__ = [
    "FORMATS",
    "Corpus",
    "Dialogue",
    "Document",
    "Example",
    "ExampleMaker",
    "Layout",
    "Part",
    "Recipe",
    "Record",
    "RecordSource",
    "Records",
    "Source",
    "UniqueDocuments",
    "Windows",
    "check_records",
    "collate",
    "count_candidates",
    "find_files",
    "find_inputs",
    "is_mixed",
    "is_unicode",
    "make_batches",
    "measure",
    "mix",
    "open_records",
    "passage",
    "read_documents",
    "read_questions",
    "read_recipe",
    "split_documents",
    "supervise",
    "table",
    "unique_documents",
    "write_tfds",
]
