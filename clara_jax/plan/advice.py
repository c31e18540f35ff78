"""Settings worth a try: guesses from one result, and a sweep that compiles many."""

import csv
import functools
import io
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clara_jax.config import REMAT_POLICIES
from clara_jax.errors import ClaraError
from clara_jax.files import write_text, writing
from clara_jax.plan.cases import Case, mesh_text, microbatches
from clara_jax.plan.summary import cells, memory_of, summary, table


def advice(result: dict[str, Any]) -> list[str]:
    """Return settings worth a try, the most promising first, as arguments."""
    memory = memory_of(result)
    peak, limit = memory["peak"], memory["limit"]
    if result["work"] != "train" or not limit:
        return []
    mesh, accumulate, rows = result["mesh"], result["accumulate"], result["rows"]
    data, fsdp, tensor = mesh["data"], mesh["fsdp"], mesh["tensor"]
    parts, full = mesh["slice"] * data * fsdp, result["remat"] == "full"
    # Rows of a microbatch that the memory would hold, were temporaries their sum.
    temporaries = memory["temporaries"]
    if memory["refused"]:
        temporaries = peak - memory["arguments"]
    room, fill = limit - (peak - temporaries), 0
    if temporaries > 0 and room > 0:
        fill = int(room / temporaries * (rows // accumulate)) // parts * parts

    def hint(setting: str, why: str, **sizes: int) -> None:
        named = mesh_text({**mesh, **sizes}) if sizes else ""
        hints.append(f"--{setting}{named}: {why}")

    hints: list[str] = []
    if not memory["fits"]:
        if data > 1 and memory["arguments"] > limit / 4:
            why = f"weights cut {fsdp * data} ways instead of {fsdp}"
            hint("mesh ", why, data=1, fsdp=fsdp * data)
        if not full:
            hint("config.remat=full", "keep only each layer's input")
        if rows // accumulate // parts > 1:
            why = "half the rows at a time, about half the temporaries"
            why += f"; about {fill} rows at a time would fit" if fill else ""
            hint(f"config.optim.accumulate={accumulate * 2}", why)
        if fsdp % 2 == 0:
            why = "each device holds a part of every activation inside a layer"
            hint("mesh ", why, fsdp=fsdp // 2, tensor=tensor * 2)
        return hints or ["a larger machine: nothing is left to split"]
    if peak < limit / 2:
        fewer = [n for n in microbatches(rows, parts) if n < accumulate]
        if fewer:
            why = "fewer, larger microbatches; weights are gathered less often"
            hint(f"config.optim.accumulate={fewer[-1]}", why)
        elif fill > rows:
            why = f"about {fill} rows at a time would fill the memory"
            hint(f"config.data.batch_size={2 * rows}", why)
        if full:
            why = "keep matrix products instead of computing them again"
            hint("config.remat=dots", f"{why} ({', '.join(REMAT_POLICIES)})")
        if tensor > 1 and rows % (parts * tensor) == 0:
            hint("mesh ", "no sums inside layers", tensor=1, fsdp=fsdp * tensor)
    return hints


def sweep(
    case: Case,
    settings: tuple[list[Case], list[int], list[str]],
    measured: Callable[[Case], dict[str, Any]],
    out: Path,
) -> str:
    """Measure many cases; return their table, what fits first, then what is fast.

    With microbatches or remat policies among the `settings`, see
    `cases.sweep_settings`, every combination is tried; otherwise every mesh, and then
    other microbatches and remat policies on the best of them. ``sweep.csv`` in `out` is
    written after every case, ``sweep.png`` at last.

    Raises:
      ClaraError: the folder cannot be written, or no case could be compiled.
    """
    say = functools.partial(print, file=sys.stderr, flush=True)
    say(f"table and picture go to {out}; stopped, the same command goes on")
    lines: dict[Case, dict[str, Any]] = {}
    failures: dict[Case, str] = {}

    def run(case: Case) -> None:
        if case in lines or case in failures:
            return
        try:
            result = measured(case)
        except ClaraError as error:
            failures[case] = str(error)
            say(f"{case}: FAILED ({error})")
            return
        line = lines[case] = summary(result)
        text = io.StringIO()
        names = dict.fromkeys(name for line in lines.values() for name in line)
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(lines.values(), key=_rank))
        write_text(out / "sweep.csv", text.getvalue())
        how = "kept" if result["cached"] else f"{line['compile_seconds']:.0f} s"
        shown = cells(line)
        found = (shown[name] for name in ("peak of memory", "fits", "step, at least"))
        say(f"{case}: {', '.join(found)} ({how})")

    def best() -> Case | None:
        fitting = [case for case, line in lines.items() if line["fits"] is not False]
        return min(fitting, key=lambda case: _rank(lines[case]), default=None)

    meshes, counts, remats = settings
    accumulate, rows = case.config.optim.accumulate, case.config.data.batch_size
    if counts or remats:
        every = itertools.product(meshes, counts or [accumulate], remats or [""])
        for mesh, count, remat in every:
            if count in microbatches(rows, mesh.parts):
                run(mesh.split(count, remat))
    else:
        for mesh in meshes:
            run(mesh.split(accumulate))
        if winner := best():
            for factor in (0.25, 0.5, 2, 4):
                run(winner.split(winner.config.optim.accumulate * factor))
            winner = best() or winner
            for remat in ("full", "dots_no_batch", "dots", "none"):
                run(winner.split(winner.config.optim.accumulate, remat))
    if not lines:
        reason = next(iter(failures.values()), "the mesh and the batch allow no case")
        raise ClaraError(f"--sweep: nothing could be compiled: {reason}")
    ordered = sorted(lines.values(), key=_rank)
    _plot(ordered, out / "sweep.png")
    failed = [f"failed: {case}: {reason}\n" for case, reason in failures.items()]
    return table([cells(line) for line in ordered]) + "".join(failed)


def _rank(line: dict[str, Any]) -> tuple[bool, float, float]:
    seconds = line["seconds_best"]
    unknown = math.inf if seconds is None else seconds
    return line["fits"] is False, unknown, line["peak_gib"]


def _plot(lines: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = [f"{x['mesh']}  x{x['accumulate']}  {x['remat']}" for x in lines]
    places, size = range(len(lines))[::-1], (12, 1.5 + 0.3 * len(lines))
    figure, (left, right) = plt.subplots(1, 2, sharey=True, figsize=size)
    colors = ["tab:green" if x["fits"] is not False else "tab:red" for x in lines]
    left.barh(places, [x["peak_gib"] for x in lines], color=colors)
    left.barh(places, [x["arguments_gib"] for x in lines], color="black", alpha=0.35)
    if lines[0]["limit_gib"]:
        left.axvline(lines[0]["limit_gib"], color="black", linestyle="--")
    left.set_yticks(places, labels)
    left.set_xlabel("GiB per device (dark: arguments; dashed: what there is)")
    right.barh(places, [x["seconds_best"] or 0.0 for x in lines])
    right.set_xlabel("seconds of a step at least: an estimate")
    figure.tight_layout()
    with writing(path):
        figure.savefig(path, dpi=120)
    plt.close(figure)
