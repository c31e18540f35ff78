"""Entries to shards, shards to pieces and rows."""

import numpy as np
import pytest
from toy_folder import toy_parts

from clara_jax.config import MemoryConfig
from clara_jax.data import Corpus
from clara_jax.data.corpus_shards import ShardReader, shard_bounds
from clara_jax.text import ClaraTokenizer

MEMORY = MemoryConfig(doc_max_length=8, compression_rate=4)


@pytest.mark.parametrize(
    ("entries", "characters", "expected"),
    [
        (2, 1000, [0, 2, 4, 5]),
        (9, 1000, [0, 5]),
        (9, 50, [0, 3, 4, 5]),
        (1, 0, [0, 1, 2, 3, 4, 5]),
        (9, 92, [0, 3, 5]),
        (9, 93, [0, 4, 5]),
    ],
)
def test_shards_are_bounded_in_entries_and_in_characters(entries, characters, expected):
    lengths = np.asarray([1, 1, 1, 90, 1])
    assert shard_bounds(lengths, entries, characters).tolist() == expected


@pytest.mark.parametrize("split", [True, False])
def test_pieces_and_rows_of_a_shard(corpus, split):
    tokenizer = ClaraTokenizer(toy_parts()[0], 2)
    found = Corpus([corpus])
    reader = ShardReader(found, tokenizer, MEMORY, entries=6, split=split)
    texts = [reader.read(k) for k in range(len(reader.sizes))]
    assert [t.shard for t in texts] == list(range(len(reader.sizes)))
    assert sum(t.counts["documents"] for t in texts) == found.documents
    assert sum(reader.sizes) == len(found)
    pieces = [piece for t in texts for piece in t.pieces]
    rows = [row for t in texts for row in t.rows]
    assert len(rows) == len(pieces)
    assert all(len(row) <= 8 + 3 + 2 and row[-2:] == rows[0][-2:] for row in rows)
    long = [piece for piece in pieces if piece.id == "more/long.md"]
    if split:
        whole = (corpus / "more" / "long.md").read_text()
        assert [piece.part for piece in long] == list(range(1, len(long) + 1))
        assert all(p.text == whole[p.start : p.stop] for p in long) and len(long) > 7
        assert sum(t.counts["cut"] for t in texts) == 0
    else:
        assert len(long) == 1 and len(pieces) == found.documents
        assert sum(t.counts["cut"] for t in texts) == 4
    first = next(piece for piece in pieces if piece.id == "d0")
    assert (first.source, first.metadata) == ("lines.jsonl:1", {"year": 0})
    assert sum(t.counts["unknown"] for t in texts) == 1
