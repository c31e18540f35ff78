"""From how many documents on the ScaNN index is faster than the exact search.

    python tests/bench/search.py --store STORE [--model DIR --questions FILE]
    python tests/bench/search.py --synthetic 6000 --shape 16 576

A corpus of each size is made of the documents of STORE and of perturbed copies of them
(``made_up.perturbed`` says exactly how), and written as a store of the same codec into
a temporary folder, which takes as much room as its vectors. Questions are those of FILE
(a question a line, or JSONL), read by the model; without them they are made up from
documents that keys were not learnt from (``index_report.made_up_queries`` says how).

Times are of questions asked one at a time, rescoring included; the exact search has its
codes in memory, the documents that ScaNN's are rescored from are in the page cache.
Recall: of the five nearest documents, after rescoring.
"""

import argparse
import dataclasses
import math
import shutil
import tempfile
import time
from pathlib import Path

import made_up
import numpy as np

from clara_jax.evaluate.index_report import made_up_queries, single_times
from clara_jax.search import Store, StoreSettings
from clara_jax.search.exact import ExactSearcher
from clara_jax.search.scann_index import NAME, ScannSearcher, build_index

K = 5
SIZES = (10_000, 20_000, 50_000, 100_000)


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--store", help="of real documents")
    add("--synthetic", type=int, metavar="N", help="make up N documents instead")
    add("--shape", type=int, nargs=2, default=(16, 576), metavar=("M", "D"))
    add("--model", help="that made the store")
    add("--questions", help="file for the model to read")
    add("--sizes", type=int, nargs="+", default=SIZES)
    add("--noise", type=float, default=0.25, help="of copies, see above (default 0.25)")
    add("--count", type=int, default=100, help="questions (default 100)")
    add("--exact-count", type=int, default=20, help="of them timed exactly")
    options = parser.parse_args(argv)
    if (options.store is None) == (options.synthetic is None):
        parser.error("give --store or --synthetic")
    if (options.model is None) != (options.questions is None):
        parser.error("--model and --questions go together")

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if options.store:
            store = Store.open(options.store)
        else:
            settings = made_up.settings_of(*options.shape)
            vectors = made_up.topical(options.synthetic, *options.shape)
            store = made_up.write(
                scratch / "base", settings, options.synthetic, vectors
            )
        print(
            f"{len(store):,} documents of [{store.num_memory}, {store.width}], "
            f"{store.dtype}, and perturbed copies of them (noise {options.noise:g})\n"
        )
        queries = None
        if options.questions:
            queries = read(options.model, options.questions, options.count)
        found = [
            measure(store, scratch / str(size), size, queries, options)
            for size in sorted(options.sizes)
        ]
    print("\n".join(made_up.table([row["shown"] for row in found])))
    sizes, ratios = ([row[name] for row in found] for name in ("documents", "ratio"))
    print(f"\n{crossover(sizes, ratios)}")


def read(model: str, path: str, count: int) -> np.ndarray:
    """Vectors of some questions."""
    from clara_jax.data import read_questions
    from clara_jax.loading import load

    questions = [question for question, _ in read_questions(path)][:count]
    return load(model).reason(questions).astype(np.float32).reshape(len(questions), -1)


def measure(base: Store, path: Path, size: int, queries, options) -> dict:
    """One row of the table."""
    names = [field.name for field in dataclasses.fields(StoreSettings)]
    kept = {name: getattr(base.settings, name) for name in names}
    settings = StoreSettings(**kept)
    store = made_up.write(path, settings, size, made_up.perturbed(base, options.noise))
    begin = time.perf_counter()
    note = build_index(store)
    built = time.perf_counter() - begin
    if queries is None:
        rows = np.array(note["held_out"], np.int64)[: options.count]
        queries = made_up_queries(store, rows)
    exact = ExactSearcher(store, memory_limit=1 << 60)
    truth = exact(queries, K)[0]
    exact_times = single_times(exact, queries[: options.exact_count], K)
    del exact
    scann = ScannSearcher(store)
    recall = np.mean(scann(queries, K)[0] >= truth[:, -1:] - 1e-6)
    scann_times = single_times(scann, queries, K)
    half, most = np.quantile(scann_times, [0.5, 0.99])
    ratio = np.median(exact_times) / half
    indexed = Path(store.place, NAME).stat().st_size
    shutil.rmtree(path)  # room for the next
    shown = {
        "documents": f"{size:,}",
        "method": note["settings"]["method"].replace("_", " "),
        "exact, ms p50": f"{1e3 * np.median(exact_times):.1f}",
        "scann, ms p50": f"{1e3 * half:.1f}",
        "p99": f"{1e3 * most:.1f}",
        "times as fast": f"{ratio:.1f}",
        f"recall@{K}": f"{recall:.3f}",
        "build, s": f"{built:.0f}",
        "vectors, MB": f"{store.row_bytes * size / 1e6:.0f}",
        "index, MB": f"{indexed / 1e6:.0f}",
    }
    return {"documents": size, "ratio": float(ratio), "shown": shown}


def crossover(sizes: list[int], ratios: list[float]) -> str:
    """Where scann becomes the faster one, between sizes taken as a power law."""
    if ratios[0] >= 1:
        return f"scann is the faster one from the smallest size on ({sizes[0]:,})"
    for i in range(1, len(sizes)):
        if ratios[i] >= 1:
            low, high = math.log(ratios[i - 1]), math.log(ratios[i])
            share = -low / (high - low)
            where = math.exp(
                math.log(sizes[i - 1])
                + share * (math.log(sizes[i]) - math.log(sizes[i - 1]))
            )
            return f"scann is the faster one from about {where:,.0f} documents on"
    return f"the exact search is the faster one up to the largest size ({sizes[-1]:,})"


if __name__ == "__main__":
    main()
