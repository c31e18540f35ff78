"""What int8 and int4 stores cost: the best five found, and the answers from them.

    python tests/bench/codecs.py --store STORE --model DIR --data RECORDS [--count 100]

The store holds bfloat16. It is written again in each form; every question then looks
for its best five documents by exact search and is answered from the best of them, read
from that store. Recall of the gold documents, where the records name them and the store
holds them, and the share of bfloat16's own best five that a form finds again.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from clara_jax.data import open_records
from clara_jax.documents import fields_of
from clara_jax.evaluate.evaluators import questions_of
from clara_jax.evaluate.metrics import score_answers
from clara_jax.loading import load
from clara_jax.search import CODECS, Job, Store, StoreSettings
from clara_jax.search.codecs import center_of
from clara_jax.search.exact import ExactSearcher

K = 5
SHARD = 4096
SAMPLE = 64
"""Documents that tell the center, as when a corpus is compressed."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True, help="of bfloat16 vectors")
    parser.add_argument("--model", required=True, help="that made it")
    parser.add_argument("--data", required=True, help="records with questions")
    parser.add_argument("--count", type=int, default=100, help="questions")
    parser.add_argument("--dtype", default="", help="compute type")
    parser.add_argument("--no-answers", action="store_true", help="search only")
    options = parser.parse_args()

    store = Store.open(options.store)
    if store.dtype != "bfloat16":
        parser.error(f"{options.store} holds {store.dtype}; give one of bfloat16")
    clara = load(options.model, dtype=options.dtype)
    records = open_records([options.data])
    questions = questions_of((records[i] for i in range(len(records))), options.count)
    asked = [question.question for question in questions]
    queries = clara.reason(asked).reshape(len(asked), -1).astype(np.float32)
    gold = [
        {int(row) for row in store.find(q.gold_documents) if row >= 0}
        if q.positives
        else set()
        for q in questions
    ]
    known = [i for i, rows in enumerate(gold) if rows]
    print(
        f"{len(store):,} documents of [{store.num_memory}, {store.width}], "
        f"{len(asked)} questions, {len(known)} of them with gold documents in the store"
    )
    print(
        f"| store | bytes a document | bfloat16's best {K} found again | "
        f"recall@{K} of gold | F1 | exact match |"
    )
    print("|---|---|---|---|---|---|")
    first: list[set[int]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for codec in CODECS:
            written = (
                store if codec == store.dtype else rewrite(store, codec, Path(scratch))
            )
            _, rows = ExactSearcher(written)(queries, K)
            found = [set(row) for row in rows.tolist()]
            first = first or found
            same = np.mean([len(a & b) / K for a, b in zip(found, first, strict=True)])
            hits = [len(found[i] & gold[i]) / len(gold[i]) for i in known]
            recall = f"{np.mean(hits):.3f}" if hits else "-"
            scores = "- | -"
            if not options.no_answers:
                chosen = rows[:, : min(K, clara.selection.top_k)]
                vectors = written.vectors(chosen.reshape(-1))
                vectors = vectors.reshape(*chosen.shape, *vectors.shape[1:])
                answers = clara.answer_from_vectors(
                    asked, vectors.astype(clara.network.model.config.dtype)
                )
                said = score_answers(answers, [q.gold for q in questions])
                scores = f"{said['f1']:.3f} | {said['exact_match']:.3f}"
            print(
                f"| {codec} | {size(written) / len(written):,.0f} | {same:.3f} | "
                f"{recall} | {scores} |",
                flush=True,
            )


def rewrite(store: Store, codec: str, scratch: Path) -> Store:
    """The same documents, with vectors in another form."""
    fields = dataclasses.fields(StoreSettings)
    kept = {field.name: getattr(store.settings, field.name) for field in fields}
    some = store.ids[np.linspace(0, len(store) - 1, SAMPLE, dtype=int)]
    center = center_of(store.vectors(np.unique(some)), codec)
    settings = StoreSettings(**{**kept, "dtype": codec, "center": center})
    starts = range(0, len(store), SHARD)
    fields = fields_of(store.pieces(store.ids))
    given = settings, len(starts), {"from": "a store"}, "new", fields
    job = Job.begin(scratch / codec, *given)
    for number, start in enumerate(tqdm(starts, codec, leave=False)):
        rows = store.ids[start : start + SHARD]
        job.write(number, store.vectors(rows), store.pieces(rows))
    done = job.commit()
    assert done is not None
    return done


def size(store: Store) -> int:
    """Bytes of a store's vectors, scales and norms."""
    return sum(array.nbytes for array in store.arrays(store.ids).values())


if __name__ == "__main__":
    main()
