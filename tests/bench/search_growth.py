"""What grows with a store: time to open, to search and to index, memory, bytes.

    python tests/bench/search_growth.py --output DIR

Made-up documents (``made_up.topical`` says how) of M = 4 vectors of width 64 in
bfloat16. Each step runs in a process of its own, whose peak memory is measured; that of
a process which only imports the package and opens the store is given as well. Writes
``growth.csv`` and ``growth.png`` into DIR and prints a table. Times of single
questions; files lie in the page cache.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import made_up
import numpy as np

from clara_jax.compress.stores import size_of
from clara_jax.evaluate.index_report import made_up_queries, single_times
from clara_jax.search import Store
from clara_jax.search.exact import ExactSearcher
from clara_jax.search.scann_index import NAME, ScannSearcher, build_index, read_index

ROOT = Path(__file__).resolve().parents[2]
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
SHAPE = (4, 64)
K = 5


def main(argv: list[str] | None = None) -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", required=True, help="folder for the table and the picture")
    add("--sizes", type=int, nargs="+", default=SIZES)
    add("--shape", type=int, nargs=2, default=SHAPE, metavar=("M", "D"))
    add("--count", type=int, default=200, help="questions (default 200)")
    text = "times that each search is measured, of which the best counts (default 5)"
    add("--repeat", type=int, default=5, help=text)
    text = "checkout to compare with, measured in turns with this one"
    add("--against", metavar="DIR", help=text)
    add("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.step:
        print(json.dumps(STEPS[options.step](Path(options.output), options)))
        return
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    found, others = [], []
    for size in sorted(options.sizes):
        with tempfile.TemporaryDirectory() as scratch:
            row, other = {"documents": size}, {"documents": size}
            for step in STEPS:
                own, theirs = [], []
                # In turns, so that what else the machine does hits both.
                for _ in range(1 if step in ("write", "build") else options.repeat):
                    own.append(run(step, f"{scratch}/own", size, options, ROOT))
                    if options.against:
                        root = Path(options.against).resolve()
                        theirs.append(
                            run(step, f"{scratch}/other", size, options, root)
                        )
                row |= best(own)
                other |= best(theirs)
            found.append(row)
            others.append(other)
            print(f"{size:,} documents measured", file=sys.stderr, flush=True)
    with (output / "growth.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    print("\n".join(made_up.table([shown(row) for row in found])))
    if options.against:
        print(f"\n{options.against}:\n")
        print("\n".join(made_up.table([shown(row) for row in others])))
    draw(found, output / "growth.png")


def best(runs: list[dict]) -> dict:
    """The shortest time, and the most memory, of some runs."""
    return {
        name: (max if name.endswith("_mb") else min)(run[name] for run in runs)
        for name in (runs[0] if runs else ())
    }


def run(step: str, scratch: str, size: int, options, root: Path) -> dict:
    """Take a step in a process of its own, with the code of a checkout."""
    Path(scratch).mkdir(exist_ok=True)
    arguments = {"--output": [scratch], "--step": [step], "--sizes": [str(size)]}
    arguments |= {"--count": [str(options.count)], "--shape": map(str, options.shape)}
    given = [word for name, values in arguments.items() for word in (name, *values)]
    done = subprocess.run(
        [sys.executable, str(root / "tests/bench/search_growth.py"), *given],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def write_step(folder: Path, options) -> dict:
    """Write the store."""
    (size,) = options.sizes
    vectors = made_up.topical(size, *options.shape)
    begin = time.perf_counter()
    store = made_up.write(
        folder / "store", made_up.settings_of(*options.shape), size, vectors
    )
    seconds = time.perf_counter() - begin
    return {"write_s": seconds, "store_bytes": size_of(store)}


def open_step(folder: Path, options) -> dict:
    """Open the store."""
    begin = time.perf_counter()
    store = Store.open(folder / "store")
    seconds = time.perf_counter() - begin
    assert len(store) == options.sizes[0]
    return {"open_s": seconds, "open_peak_mb": peak()}


def build_step(folder: Path, options) -> dict:
    """Build the index."""
    store = Store.open(folder / "store")
    begin = time.perf_counter()
    note = build_index(store)
    return {
        "build_s": time.perf_counter() - begin,
        "build_peak_mb": peak(),
        "index_bytes": Path(store.place, NAME).stat().st_size,
        "method": note["settings"]["method"],
    }


def exact_step(folder: Path, options) -> dict:
    """Search exactly."""
    store = Store.open(folder / "store")
    begin = time.perf_counter()
    search = ExactSearcher(store)
    loaded = time.perf_counter() - begin
    questions = asked(store, options)
    np.save(folder / "truth.npy", search(questions, K)[0])
    half, most = np.quantile(single_times(search, questions, K), [0.5, 0.99])
    return {
        "exact_load_s": loaded,
        "exact_p50_ms": 1e3 * half,
        "exact_p99_ms": 1e3 * most,
        "exact_peak_mb": peak(),
    }


def scann_step(folder: Path, options) -> dict:
    """Search through the index."""
    store = Store.open(folder / "store")
    begin = time.perf_counter()
    search = ScannSearcher(store)
    loaded = time.perf_counter() - begin
    questions = asked(store, options)
    found = search(questions, K)[0]
    recall = np.mean(found >= np.load(folder / "truth.npy")[:, -1:] - 1e-6)
    half, most = np.quantile(single_times(search, questions, K), [0.5, 0.99])
    return {
        "scann_load_s": loaded,
        "scann_p50_ms": 1e3 * half,
        "scann_p99_ms": 1e3 * most,
        "scann_peak_mb": peak(),
        "recall": float(recall),
    }


STEPS = {
    "write": write_step,
    "open": open_step,
    "build": build_step,
    "exact": exact_step,
    "scann": scann_step,
}


def asked(store: Store, options) -> np.ndarray:
    """The questions: made up of documents that keys were not learnt from."""
    held_out = read_index(store).note["held_out"]
    return made_up_queries(store, np.array(held_out[: options.count], np.int64))


def peak() -> float:
    """Peak memory of this process in MB."""
    try:
        # What getrusage gives may be the parent's, from before the program started.
        status = Path("/proc/self/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    except (OSError, ValueError):  # no Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def shown(row: dict) -> dict[str, str]:
    """A row as people read it."""
    size = row["documents"]
    return {
        "documents": f"{size:,}",
        "open, ms": f"{1e3 * row['open_s']:.1f}",
        "peak, MB": f"{row['open_peak_mb']:.0f}",
        "exact: load, s": f"{row['exact_load_s']:.1f}",
        "exact p50, ms": f"{row['exact_p50_ms']:.2f}",
        "exact p99, ms": f"{row['exact_p99_ms']:.2f}",
        "exact peak, MB": f"{row['exact_peak_mb']:.0f}",
        "index": row["method"].replace("_", " "),
        "build, s": f"{row['build_s']:.1f}",
        "build peak, MB": f"{row['build_peak_mb']:.0f}",
        "scann: load, s": f"{row['scann_load_s']:.1f}",
        "scann p50, ms": f"{row['scann_p50_ms']:.2f}",
        "scann p99, ms": f"{row['scann_p99_ms']:.2f}",
        "scann peak, MB": f"{row['scann_peak_mb']:.0f}",
        f"recall@{K}": f"{row['recall']:.3f}",
        "store, bytes a document": f"{row['store_bytes'] / size:.0f}",
        "index, bytes a document": f"{row['index_bytes'] / size:.0f}",
    }


def draw(rows: list[dict], path: Path) -> None:
    """Draw times, memory and bytes against the number of documents."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {
        "ms a question": {
            "exact p50": "exact_p50_ms",
            "exact p99": "exact_p99_ms",
            "scann p50": "scann_p50_ms",
            "scann p99": "scann_p99_ms",
        },
        "seconds": {
            "open": "open_s",
            "build the index": "build_s",
            "load for exact": "exact_load_s",
            "load the index": "scann_load_s",
        },
        "peak memory, MB": {
            "opened only": "open_peak_mb",
            "exact": "exact_peak_mb",
            "scann": "scann_peak_mb",
            "build the index": "build_peak_mb",
        },
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(13, 4))
    sizes = [row["documents"] for row in rows]
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for label, name in lines.items():
            axis.plot(sizes, [row[name] for row in rows], marker="o", label=label)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("documents")
        axis.set_title(title)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
