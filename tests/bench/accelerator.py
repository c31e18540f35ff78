"""What the first accelerator at hand makes of training, compression and decoding.

    python tests/bench/accelerator.py --json accelerator.json
    python tests/bench/accelerator.py --shape phi4_mini          # 16 GB and less
    python tests/bench/accelerator.py --layers 8 --only product scp attention

Nothing is downloaded: weights are random and made on the device, tokens are random.
Each row is printed, and the JSON file written anew, as soon as it is measured. A row
that needs more memory than there is says so, and the next one is tried; rows that do
not begin within ``--seconds`` are left out.

Columns: tokens and documents (or answers) per second at the median run; TFLOP/s by the
count of 4 per weight and token in training and 2 forwards (see `random_runs`), their
share of the data sheet's peak, and of the best matrix product measured here; what must
be moved (weights, in decoding), as a share of the copy at the end of the line; memory
that the program needs, its arguments included; the median run with fastest and slowest;
the time to build and compile. ``attention`` is the first stage again on XLA's
attention, where the other rows may take cuDNN's; which of them a program calls is read
from the compiled program.
"""

import argparse
import dataclasses
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# By default JAX takes three quarters of a GPU's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")

import jax
from device_figures import (
    MARKS,
    Work,
    copy,
    device_memory,
    figures,
    peak_flops,
    peak_memory,
    product,
    times,
)
from random_runs import LARGE, SMALL, STAGES, TOY, Runs

import clara_jax
from clara_jax.config import MemoryConfig, ModelConfig
from clara_jax.errors import ClaraError
from clara_jax.model import PRESETS, Transformer, abstract_variables
from clara_jax.model.attention import ATTENTIONS
from clara_jax.train.state import count_bytes

ROWS = (
    "product",
    "copy",
    "scp",
    "compress",
    "vectors",
    "text",
    "end_to_end",
    "attention",
    "instruct",
    "rerank",
    "unmerged",
)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 0 if every row has a figure or a good reason."""
    options = parse(arguments)
    try:
        return Benchmark(options).run()
    except ClaraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shape", choices=sorted(PRESETS), help="default: mistral_7b, on a CPU tiny")
    add("--layers", type=_count, help="so many layers instead of the shape's")
    add("--only", nargs="+", choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    add("--batch", type=_count, help="rows of a training batch, in every stage")
    add("--documents", type=_count, help="documents compressed together")
    add("--answers", type=_count, help="answers decoded together, besides one alone")
    add("--prompt", type=_count, help="tokens of a training prompt with its answer")
    add("--dtype", default="", help="default: bfloat16, on a CPU float32")
    add(
        "--remat",
        default="full",
        help="what a layer keeps in training; see docs/training.md",
    )
    add("--attention", choices=ATTENTIONS, default="auto")
    add("--rounds", type=_count, default=5, help="timed runs of each row")
    add("--seconds", type=float, default=420, help="no row begins after so many")
    add("--json", type=Path, help="file for all figures")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be above 0, not {number}")
    return number


class Benchmark:
    """The rows in their order, and what is known so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.begin = time.perf_counter()
        self.options = options
        try:
            self.device = jax.local_devices()[0]
        except RuntimeError as error:
            raise ClaraError(f"no device: {str(error).splitlines()[0]}") from None
        self.cpu = self.device.platform == "cpu"
        self.name = options.shape or ("tiny" if self.cpu else "mistral_7b")
        self.shape = self._shape()
        memory = device_memory(self.device)
        small = self.cpu or (memory is not None and memory < 40e9)
        sizes = TOY if self.name == "tiny" else SMALL if small else LARGE
        rows = {name: options.batch or n for name, n in sizes.rows.items()}
        self.sizes = dataclasses.replace(
            sizes,
            rows=rows,
            documents=options.documents or sizes.documents,
            answers=options.answers or sizes.answers,
            prompt=options.prompt or sizes.prompt,
        )
        least = 5 * (sizes.document // sizes.rate + 1) + 8 + sizes.answer
        if self.sizes.prompt < least:
            raise ClaraError(f"--prompt {self.sizes.prompt}: give {least} or more")
        weights = self._weights()
        if memory is not None and weights > 0.95 * memory:
            raise ClaraError(
                f"the weights of {self.name} take {weights / 1e9:.1f} GB and "
                f"{self.device.device_kind} has {memory / 1e9:.1f} GB; give "
                "--shape phi4_mini or smollm2_135m, or --layers N"
            )
        self.peak = peak_flops(self.device.device_kind)
        self.ceilings: dict[str, float] = {}
        self.runs: Runs | None = None
        self.wrong = False
        self.report: dict[str, Any] = {
            "device": self.device.device_kind,
            "platform": self.device.platform,
            "device_bytes": memory,
            "jax": jax.__version__,
            "clara_jax": clara_jax.__version__,
            "python": platform.python_version(),
            "shape": self.name,
            "layers": self.shape.num_layers,
            "dtype": self.shape.dtype,
            "remat": options.remat,
            "attention": options.attention,
            "sizes": dataclasses.asdict(self.sizes),
            "peak_flops": self.peak,
            "rows": [],
        }

    def _shape(self) -> ModelConfig:
        shape = PRESETS[self.name]
        dtype = self.options.dtype or ("float32" if self.cpu else "bfloat16")
        changes: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype}
        if self.options.layers:
            changes["num_layers"] = self.options.layers
        return dataclasses.replace(shape, **changes)

    def _weights(self) -> int:
        model = Transformer(self.shape, self.shape.vocab_size)
        return count_bytes(abstract_variables(model)["params"])

    def run(self) -> int:
        """Measure all rows."""
        self.write()
        self.head()
        for name, label, build in self.rows():
            self.row(name, label, build)
        self.runs = None
        peak = peak_memory(self.device)
        self.report |= {"peak_bytes": peak, "seconds": self.elapsed()}
        self.write()
        print()
        self.compare()
        if peak is not None:
            print(f"most memory in use at any time: {peak / 1e9:.1f} GB")
        print(f"{self.elapsed():.0f} s in all")
        if self.name in ("mistral_7b", "phi4_mini"):
            print(MARKS)
        return int(self.wrong)

    def compare(self) -> None:
        """Say how the attention of the first stage was checked, and what it gains."""
        found = {row["label"]: row for row in self.report["rows"]}
        ours, xla = (found.get(label, {}) for label in ("scp", "scp, XLA attention"))
        if "note" in ours:
            print(f"compiled train step of scp: {ours['note']}", end="")
            if "note" in xla:
                gain = xla["median_s"] / ours["median_s"]
                print(f"; {gain:.2f} times as fast as with XLA's", end="")
            print()

    def rows(self) -> Iterator[tuple[str, str, Callable[[], Work]]]:
        """Names, labels and makers of all that is asked for."""
        sizes, dtype = self.sizes, self.shape.dtype
        wanted = self.options.only or ROWS
        if self.options.only is None and "NVIDIA" not in self.device.device_kind:
            wanted = [name for name in ROWS if name != "attention"]
        for name in (name for name in ROWS if name in wanted):
            if name == "product":
                # Layers multiply float32 plainly.
                for wide in (False, True) if dtype != "float32" else (False,):
                    label = f"product {sizes.product}^3" + (" as layers" * wide)
                    yield name, label, lambda w=wide: product(sizes.product, dtype, w)
            elif name == "copy":
                label = f"copy {sizes.copied / 1e9:.2f} GB"
                yield name, label, lambda: copy(sizes.copied)
            elif name in STAGES:
                rows = sizes.rows[name]
                yield name, name, lambda n=name, r=rows: self.made().train(n, r)
            elif name == "attention":
                first = sizes.rows["scp"]
                label = "scp, XLA attention"
                yield name, label, lambda r=first: self.made().train("scp", r, "xla")
            elif name == "compress":
                yield name, name, lambda: self.made().compression(sizes.documents)
            else:
                yield from self.decoding(name)

    def decoding(self, name: str) -> Iterator[tuple[str, str, Callable[[], Work]]]:
        """First token and the tokens after it, of one answer and of several."""
        for rows in (1,) if name == "unmerged" else sorted({1, self.sizes.answers}):
            others: list[Callable[[], Work]] = []

            def first(rows=rows, others=others) -> Work:
                text, merged = name == "text", name != "unmerged"
                work, rest = self.made().decoding(rows, text=text, merged=merged)
                others.append(rest)
                return work

            def second(others=others) -> Work:
                return others.pop()()

            yield name, f"{name} x {rows}, first token", first
            yield name, f"{name} x {rows}, the others", second

    def made(self) -> Runs:
        """The weights, made when the first row asks for them."""
        if self.runs is None:
            sizes = self.sizes
            self.runs = Runs(
                shape=self.shape,
                memory=MemoryConfig(sizes.document, sizes.rate),
                prompt=sizes.prompt,
                answer=sizes.answer,
                question=sizes.question,
                new=sizes.new,
                attention=self.options.attention,
                remat=self.options.remat,
            )
            self.report["parameters"] = self.runs.size
        return self.runs

    def row(self, name: str, label: str, build: Callable[[], Work]) -> None:
        """Build, time and print one row, or say why there is none."""
        left = self.options.seconds - self.elapsed()
        if left <= 0:
            reason = f"left out: {self.options.seconds:.0f} s are over"
            self.keep(name, label, {"left_out": reason}, reason)
            return
        try:
            begin = time.perf_counter()
            work = build()
            compiled = time.perf_counter() - begin
            found = figures(work, times(work, self.options.rounds, min(left, 15)))
        except ClaraError:
            raise
        except Exception as error:  # whatever a device throws, other rows may do
            said = str(error).strip().splitlines() or [type(error).__name__]
            reason = said[0][:200]
            if "RESOURCE_EXHAUSTED" in str(error) or "ut of memory" in str(error):
                reason = "out of memory"
            elif label.endswith("the others") and isinstance(error, IndexError):
                reason = "no first token to go on from"
            else:
                self.wrong = True
        else:
            found["build_s"] = compiled
            if name == "product":
                best = max(found["flops_per_s"], self.ceilings.get("flops", 0.0))
                self.ceilings["flops"] = best
            elif name == "copy":
                self.ceilings["bytes"] = found["bytes_per_s"]
            self.keep(name, label, found, self.line(found))
            return
        # Out of the except block, whose traceback would keep the row's arrays alive.
        gc.collect()
        self.keep(name, label, {"failed": reason}, reason)

    def keep(self, name: str, label: str, found: dict[str, Any], line: str) -> None:
        """Print a row and write all of them."""
        print(f"{label:<28}{line}", flush=True)
        self.report["rows"].append({"row": name, "label": label, **found})
        self.write()

    def write(self) -> None:
        """Write the JSON file anew."""
        path = self.options.json
        if path is None:
            return
        try:
            path.write_text(json.dumps(self.report, indent=1) + "\n")
        except OSError as error:
            raise ClaraError(f"--json {path}: {error.strerror}") from None

    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self.begin

    def head(self) -> None:
        """Print what is measured on what."""
        known = f"{self.peak / 1e12:.0f} TFLOP/s" if self.peak else "not known here"
        memory = self.report["device_bytes"]
        room = "" if memory is None else f", {memory / 1e9:.0f} GB"
        own = PRESETS[self.name].num_layers
        cut = f" of {own}" * (own != self.shape.num_layers)
        sizes = self.sizes
        print(
            f"{self.device.device_kind}{room}; peak by data sheet {known}; "
            f"jax {jax.__version__}, clara_jax {clara_jax.__version__}\n"
            f"{self.name}, {self.shape.num_layers}{cut} layers, {self.shape.dtype}, "
            f"remat {self.options.remat}; documents of {sizes.document} tokens as "
            f"{sizes.document // sizes.rate} vectors, training prompts of "
            f"{sizes.prompt}, {sizes.new} tokens decoded\n\n"
            f"{'':<28}{'tokens/s':>10}{'docs/s':>9}{'TFLOP/s':>9}{'of peak':>8}"
            f"{'of prod.':>9}{'GB/s':>7}{'GB':>7}  ms: median (spread); build s"
        )

    def line(self, found: dict[str, Any]) -> str:
        """A row's figures."""
        flops, moved = found.get("flops_per_s"), found.get("bytes_per_s")
        documents = found.get("documents_per_s", found.get("answers_per_s"))
        best, peak = self.ceilings.get("flops"), self.peak
        memory = found["program_bytes"]
        cells = (
            (10, found.get("tokens_per_s"), "{:,.0f}"),
            (9, documents, "{:,.1f}"),
            (9, flops and flops / 1e12, "{:,.3g}"),
            (8, flops and peak and 100 * flops / peak, "{:.1f}%"),
            (9, flops and best and 100 * flops / best, "{:.1f}%"),
            (7, moved and moved / 1e9, "{:,.0f}"),
            (7, memory and memory / 1e9, "{:.2f}"),
        )
        shown = "".join(
            f"{'-' if value is None else form.format(value):>{width}}"
            for width, value, form in cells
        )
        median, low, high = (
            1e3 * found[key] for key in ("median_s", "fastest_s", "slowest_s")
        )
        note = f"; {found['note']}" if found["note"] else ""
        if moved and self.ceilings.get("bytes") and "tokens_per_s" in found:
            note += f"; {100 * moved / self.ceilings['bytes']:.0f}% of the copy"
        return (
            f"{shown}  {median:.3g} ({low:.3g} to {high:.3g}); "
            f"{found['build_s']:.1f}{note}"
        )


if __name__ == "__main__":
    sys.exit(main())
