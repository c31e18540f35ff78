"""What a condition costs a search: recall and time of ScaNN against the exact search.

    python tests/bench/conditions.py [--documents 100000] [--shape 4 64]

Made-up documents (``made_up.topical`` says how) in a temporary folder, with conditions
that a part of them meets, whatever their topic. Questions are made up, too
(``index_report.made_up_queries`` says how). Recall: of the five nearest documents that
meet the condition. Times: medians of questions asked one at a time, the condition's
evaluation included. `--few 0` keeps ScaNN from comparing one by one what is left of
few documents.
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import made_up
import numpy as np

from clara_jax.evaluate.index_report import made_up_queries
from clara_jax.search import exact
from clara_jax.search.exact import ExactSearcher, Searcher
from clara_jax.search.scann_index import ScannSearcher, build_index

K = 5
SHARES = (1, 2, 10, 100, 1000)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = functools.partial(parser.add_argument, type=int)
    add("--documents", default=100_000, help="(default 100000)")
    add("--shape", nargs=2, default=(4, 64), metavar=("M", "D"))
    add("--count", default=100, help="questions (default 100)")
    add("--few", help="up to so many documents are compared one by one")
    options = parser.parse_args(argv)
    if options.few is not None:
        exact._FEW = exact._FEW_BYTES = options.few
    size = options.documents
    with tempfile.TemporaryDirectory() as folder:
        settings = made_up.settings_of(*options.shape)
        vectors = made_up.topical(size, *options.shape)
        store = made_up.write(Path(folder, "store"), settings, size, vectors, True)
        note = build_index(store)
        held_out = np.array(note["held_out"][: options.count], np.int64)
        queries = made_up_queries(store, held_out)
        searches = ExactSearcher(store), ScannSearcher(store)
        rows = [measure(searches, queries, share) for share in SHARES]
    num, width = options.shape
    method = note["settings"]["method"].replace("_", " ")
    print(f"{size:,} documents of [{num}, {width}], {len(queries)} questions, {method}")
    print()
    print("\n".join(made_up.table(rows)))


def measure(searches, queries: np.ndarray, share: int) -> dict[str, str]:
    """One row of the table, for a condition that one in so many documents meets."""
    where = f"number % {share} = 0" if share > 1 else None
    found = [search(queries, K, where=where)[0] for search in searches]
    times = [typical(search, queries, where) for search in searches]
    recall = np.mean(found[1] >= found[0][:, -1:] - 1e-6)
    return {
        "documents that count": "all" if where is None else f"1 in {share:,}",
        f"recall@{K}": f"{recall:.3f}",
        "exact, ms": f"{times[0]:.2f}",
        "scann, ms": f"{times[1]:.2f}",
    }


def typical(search: Searcher, queries: np.ndarray, where: str | None) -> float:
    """Median of milliseconds that a question takes, after one that compiles."""
    search(queries[:1], K, where=where)
    found = []
    for query in queries:
        begin = time.perf_counter()
        search(query[None], K, where=where)
        found.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(found))


if __name__ == "__main__":
    main()
