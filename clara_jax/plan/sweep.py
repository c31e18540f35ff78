"""Many cases of one run, each compiled in a process of its own, as one sorted table.

A finished case is kept in the cache, so a sweep that was stopped goes on where it was;
the table on disk is written anew after every case.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clara_jax.config import RunConfig
from clara_jax.errors import ClaraError
from clara_jax.files import write_error
from clara_jax.plan.chips import GIB
from clara_jax.plan.estimate import summary
from clara_jax.plan.report import cells_of


@dataclasses.dataclass(frozen=True)
class Point:
    """Settings that a sweep varies."""

    mesh: str
    accumulate: int
    remat: str

    def __str__(self) -> str:
        return f"mesh {self.mesh}, {self.accumulate} microbatches, remat {self.remat}"

    def arguments(self) -> list[str]:
        """As the command takes them."""
        return [
            f"--mesh={self.mesh}",
            f"--config.optim.accumulate={self.accumulate}",
            f"--config.remat={self.remat}",
        ]


def meshes(config: RunConfig, count: int, slices: int, heads: int) -> list[str]:
    """Meshes worth a try: weights cut as far as possible first.

    Args:
      config: whose batch they have to share.
      count: devices.
      slices: TPU slices.
      heads: of keys; tensor parallelism wants to divide them.
    """
    found = []
    for tensor, data in itertools.product((1, 2, 4), (1, 2, 4)):
        fsdp, rest = divmod(count, tensor * data * slices)
        parts = slices * data * fsdp
        if rest or not fsdp or heads % tensor or config.data.batch_size % parts:
            continue
        sizes = {"slice": slices, "data": data, "fsdp": fsdp, "tensor": tensor}
        named = [f"{k}={v}" for k, v in sizes.items() if v > 1]
        found.append(",".join(named) or "data=1")
    return found


def splits(config: RunConfig, mesh: str, wanted: int) -> int:
    """Microbatches nearest to `wanted` whose rows a mesh can share."""
    sizes = dict(part.split("=") for part in mesh.split(","))
    parts = math.prod(int(sizes.get(k, 1)) for k in ("slice", "data", "fsdp"))
    rows = config.data.batch_size
    fits = [n for n in range(1, rows + 1) if rows % n == 0 and rows // n % parts == 0]
    return min(fits, key=lambda n: (abs(n - wanted), n))


def points(
    config: RunConfig,
    found: list[str],
    best: Callable[[], Point | None],
    accumulate: Sequence[int] = (),
    remats: Sequence[str] = (),
) -> Iterator[Point]:
    """What to try, in order.

    With `accumulate` or `remats` given: every combination. Otherwise every mesh as the
    config is, and then more and fewer microbatches and other remat policies on the best
    of them.

    Args:
      config: of the run.
      found: meshes.
      best: asked when the meshes are through.
      accumulate, remats: values to combine; empty takes the config's.
    """
    if accumulate or remats:
        for mesh, count, remat in itertools.product(
            found, accumulate or (config.optim.accumulate,), remats or (config.remat,)
        ):
            if splits(config, mesh, count) == count:
                yield Point(mesh, count, remat)
        return
    for mesh in found:
        yield Point(mesh, splits(config, mesh, config.optim.accumulate), config.remat)
    winner = best()
    if winner is None:
        return
    for factor in (0.25, 0.5, 2, 4):
        count = splits(config, winner.mesh, max(1, int(winner.accumulate * factor)))
        yield dataclasses.replace(winner, accumulate=count)
    winner = best() or winner
    for remat in ("full", "dots_no_batch", "dots", "none"):
        yield dataclasses.replace(winner, remat=remat)


def sweep(
    tried: Callable[[Callable[[], Point | None]], Iterator[Point]],
    find: Callable[[Point], dict[str, Any] | None],
    command: Sequence[str],
    out: Path,
    say: Callable[[str], None],
) -> str:
    """Compile case after case and write the table.

    Args:
      tried: given a function that tells the best point so far, yields points.
      find: what is kept of a point, or None.
      command: compiles one case when a point's arguments are put behind it, and prints
        its result as JSON.
      out: folder for ``sweep.csv`` and ``sweep.png``.
      say: gets a line per finished case.

    Returns:
      The table as text, sorted: what fits first, then by the estimate of time.

    Raises:
      ClaraError: the folder cannot be written, or no case could be compiled.
    """
    lines: dict[Point, dict[str, Any]] = {}
    failures: dict[Point, str] = {}

    def best() -> Point | None:
        fitting = {p: line for p, line in lines.items() if line["fits"] is not False}
        return min(fitting, key=lambda p: _rank(fitting[p]), default=None)

    for point in tried(best):
        if point in lines or point in failures:
            continue
        result, kept = find(point), True
        if result is None:
            try:
                result, kept = _run([*command, *point.arguments()]), False
            except ClaraError as error:
                failures[point] = str(error)
                say(f"{point}: FAILED ({error})")
                continue
        lines[point] = summary(result)
        ordered = sorted(lines.values(), key=_rank)
        _write(out, ordered)
        how = "kept" if kept else f"{lines[point]['compile_seconds']:.0f} s"
        say(f"{point}: {', '.join(cells_of(lines[point])[2:5])} ({how})")
    if not lines:
        reason = next(iter(failures.values()), "the mesh and the batch allow no case")
        raise ClaraError(f"--sweep: nothing could be compiled: {reason}")
    ordered = sorted(lines.values(), key=_rank)
    plot(ordered, out / "sweep.png")
    text = table(ordered)
    for point, reason in failures.items():
        text += f"failed: {point}: {reason}\n"
    return text


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Summaries as a markdown table, in the order given."""
    header = (
        "mesh",
        "microbatches",
        "remat",
        "arguments",
        "temporaries",
        "peak of memory",
        "fits",
        "step, estimate",
        "tokens/s, estimate",
        "MFU, estimate",
        "bound by",
    )
    rows = [
        (line["mesh"], str(line["accumulate"]), line["remat"], *cells_of(line))
        for line in lines
    ]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def text(row: Sequence[str]) -> str:
        cells = [cell.ljust(n) for cell, n in zip(row, widths, strict=True)]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join("-" * (n + 2) for n in widths) + "|"
    return "\n".join([text(header), rule, *map(text, rows)]) + "\n"


def plot(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw memory and estimated time of every case.

    Raises:
      ClaraError: the picture cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = [f"{x['mesh']}  x{x['accumulate']}  {x['remat']}" for x in lines]
    places = list(range(len(lines)))[::-1]
    height = 1.5 + 0.3 * len(lines)
    figure, (left, right) = plt.subplots(1, 2, sharey=True, figsize=(12, height))
    colors = ["tab:green" if x["fits"] is not False else "tab:red" for x in lines]
    left.barh(places, [x["peak_gib"] for x in lines], color=colors)
    left.barh(places, [x["arguments_gib"] for x in lines], color="black", alpha=0.35)
    if lines[0]["limit_gib"]:
        left.axvline(lines[0]["limit_gib"], color="black", linestyle="--")
    left.set_yticks(places, labels)
    left.set_xlabel("GiB per device (dark: arguments; dashed: what there is)")
    begin = [0.0] * len(lines)
    for part in ("compute", "memory", "links", "network"):
        values = [x.get(f"seconds_{part}") or 0.0 for x in lines]
        if any(values):
            right.barh(places, values, left=begin, label=part)
        begin = [a + b for a, b in zip(begin, values, strict=True)]
    right.set_xlabel("seconds of a step, by roofline: an estimate")
    if any(begin):
        right.legend()
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        plt.close(figure)


def _rank(line: dict[str, Any]) -> tuple[Any, ...]:
    return (
        line["fits"] is False,
        line["seconds_worst"] if line["seconds_worst"] is not None else math.inf,
        line["peak_gib"] * GIB,
    )


def _run(command: Sequence[str]) -> dict[str, Any]:
    """Compile one case; the child is not left behind."""
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, err = child.communicate()
    except BaseException:
        child.kill()
        with contextlib.suppress(BaseException):
            child.wait()
        raise
    if child.returncode:
        said = [line for line in err.strip().splitlines() if "error: " in line]
        reason = said[-1].removeprefix("error: ") if said else f"{err.strip()[-200:]}"
        raise ClaraError(reason or f"it ended with status {child.returncode}")
    return json.loads(out.strip().splitlines()[-1])


def _write(out: Path, lines: Sequence[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    path = out / "sweep.csv"
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".tmp").write_text(text.getvalue(), encoding="utf-8")
        path.with_suffix(".tmp").replace(path)
    except OSError as error:
        raise write_error(path, error) from error


def interpreter() -> list[str]:
    """How this command was started."""
    return [sys.executable, "-m", "clara_jax.plan"]
