"""A result in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clara_jax.config import REMAT_POLICIES
from clara_jax.plan.chips import GIB, GPUS
from clara_jax.plan.estimate import Memory, chip_of, memory_of, mfu, summary, time_of


def report(
    result: dict[str, Any], notes: Sequence[str] = (), documents: int = 0
) -> str:
    """All that is known about a case, for reading.

    Args:
      result: of `compile.measure`.
      notes: remarks on how the case came about.
      documents: size of a corpus to compress; 0 leaves it out.
    """
    mesh = ", ".join(f"{k} {v}" for k, v in result["mesh"].items() if v > 1) or "1"
    where = result["topology"]
    if result["slices"] > 1:
        where = f"{result['slices']} slices of {where}"
    lines = [
        f"{result['work']}, stage {result['stage']}, on {where}: {result['devices']} "
        f"devices, mesh {mesh}",
        f"  {result['rows']} rows in {result['accumulate']} microbatches, remat "
        f"{result['remat']}"
        if result["work"] == "train"
        else f"  {result['rows']} rows at a time",
        *(f"  note: {note}" for note in notes),
        "  "
        + ", ".join(f"{k} {v}" for k, v in result["versions"].items())
        + (" (kept from an earlier compilation)" if result["cached"] else ""),
        "",
        *_memory_lines(result, memory_of(result)),
    ]
    for program in result["programs"]:
        if not program["refused"]:
            lines += ["", *_program_lines(result, program)]
    if not result["programs"][-1]["refused"]:
        lines += _work_lines(result, documents)
    hints = advice(result)
    if hints:
        lines += ["", "what may fit better (guesses; --sweep compiles them)"]
        lines += [f"  {hint}" for hint in hints]
    return "\n".join(lines) + "\n"


def advice(result: dict[str, Any]) -> list[str]:
    """Settings worth a try, the most promising first, as command-line arguments."""
    memory = memory_of(result)
    if result["work"] != "train" or not memory.limit:
        return []
    mesh, accumulate = result["mesh"], result["accumulate"]
    parts = mesh["slice"] * mesh["data"] * mesh["fsdp"]
    each = result["rows"] // accumulate // parts
    hints = []
    fill = _rows_that_fill(memory, result["rows"] // accumulate, parts)
    if not memory.fits:
        if mesh["data"] > 1 and memory.arguments > memory.limit / 4:
            fsdp = mesh["fsdp"] * mesh["data"]
            hints.append(
                f"--mesh {_mesh(mesh, data=1, fsdp=fsdp)}: weights cut {fsdp} ways "
                f"instead of {mesh['fsdp']}"
            )
        if result["remat"] != "full":
            hints.append("--config.remat=full: keep only each layer's input")
        if each > 1:
            known = f"; about {fill} rows at a time would fit" if fill else ""
            hints.append(
                f"--config.optim.accumulate={accumulate * 2}: half the rows at a time, "
                f"about half the temporaries{known}"
            )
        if mesh["fsdp"] % 2 == 0:
            tensor = mesh["tensor"] * 2
            hints.append(
                f"--mesh {_mesh(mesh, fsdp=mesh['fsdp'] // 2, tensor=tensor)}: each "
                "device holds a part of every activation inside a layer"
            )
        return hints or ["a larger machine: nothing is left to split"]
    if memory.fits and memory.peak < memory.limit / 2:
        smaller = next(
            (n for n in range(accumulate - 1, 0, -1) if _shares(result, n, parts)), 0
        )
        if smaller:
            hints.append(
                f"--config.optim.accumulate={smaller}: fewer, larger microbatches; "
                "weights are gathered less often"
            )
        elif fill > result["rows"]:
            hints.append(
                f"--config.data.batch_size={2 * result['rows']}: about {fill} rows at "
                "a time would fill the memory"
            )
        if result["remat"] == "full":
            hints.append(
                "--config.remat=dots: keep matrix products instead of computing them "
                "again (" + ", ".join(REMAT_POLICIES) + ")"
            )
        if mesh["tensor"] > 1 and result["rows"] % (parts * mesh["tensor"]) == 0:
            fsdp = mesh["fsdp"] * mesh["tensor"]
            hints.append(
                f"--mesh {_mesh(mesh, tensor=1, fsdp=fsdp)}: no sums inside layers"
            )
    return hints


def markdown(result: dict[str, Any], label: str = "") -> str:
    """A table of one line, with its header."""
    line = summary(result)
    header = (
        "| run | mesh | microbatches | arguments | temporaries | peak of memory | "
        "fits | step, estimate | tokens/s, estimate | MFU, estimate | bound by |"
    )
    label = label or f"{result['stage']}, {result['topology']}"
    cells = [label, line["mesh"], str(line["accumulate"]), *cells_of(line)]
    rule = "|---" * len(cells) + "|"
    return "\n".join([header, rule, "| " + " | ".join(cells) + " |"]) + "\n"


def cells_of(line: dict[str, Any]) -> list[str]:
    """Memory and estimates of a `summary`, as text."""
    temporaries = line["temporaries_gib"]
    cells = [
        f"{line['arguments_gib']:.2f}",
        "?" if temporaries is None else f"{temporaries:.2f}",
        f"{line['peak_gib']:.2f} of {line['limit_gib']:.2f} GiB"
        if line["limit_gib"]
        else f"{line['peak_gib']:.2f} GiB",
        {True: "yes", False: "no", None: "-"}[line["fits"]],
    ]
    if line["seconds_best"] is None:
        return [*cells, "-", "-", "-", "-"]
    return [
        *cells,
        f"{line['seconds_best']:.2f}-{line['seconds_worst']:.2f} s",
        f"{line['tokens_per_s_worst']:,.0f}-{line['tokens_per_s_best']:,.0f}",
        f"{line['mfu_worst']:.0%}-{line['mfu_best']:.0%}",
        line["bound"],
    ]


def _memory_lines(result: dict[str, Any], memory: Memory) -> list[str]:
    kind = result["topology"].split(":")[0]
    compiler = "TPU compiler"
    if kind in GPUS:
        compiler = "XLA's compiler for CPUs, NOT for this GPU: a rough guide"
    elif kind == "cpu":
        compiler = "XLA's compiler for CPUs"
    lines = [f"memory of one device ({chip_of(result).source})"]
    if memory.refused is not None:
        lines.append(f"  refused: {memory.refused['message']}")
    if result["work"] == "train":
        parts = [
            f"{name} {_gib(size)}"
            for name, size in result["arguments"].items()
            if size and not name.startswith(("cache", "rest"))
        ]
        lines += [
            f"  arguments    {_gib(memory.arguments):>12}  exact: {'; '.join(parts)}"
        ]
    else:
        lines.append(f"  arguments    {_gib(memory.arguments):>12}")
    if memory.refused is None:
        lines += [
            f"  temporaries  {_gib(memory.temporaries):>12}  {compiler}",
            f"  new outputs  {_gib(memory.outputs):>12}",
            f"  program      {_gib(memory.code):>12}",
        ]
    text = f"  peak         {_gib(memory.peak):>12}"
    if memory.limit:
        room = memory.limit - memory.peak
        verdict = "fits" if memory.fits else "DOES NOT FIT"
        beside = "to spare" if room >= 0 else "too much"
        text += (
            f"  of {_gib(memory.limit)}: {verdict}, {_gib(abs(room))} {beside} "
            f"({abs(room) / memory.limit:.0%})"
        )
    return [*lines, text]


def _program_lines(result: dict[str, Any], program: dict[str, Any]) -> list[str]:
    useful, done = program["useful_flops"], program["performed_flops"]
    total = sum(useful.values())
    parts = ", ".join(f"{name} {value:.3g}" for name, value in useful.items() if value)
    moved = program["traffic"]
    lines = [
        f"{program['name']}: {program['tokens']:,} tokens with padding",
        f"  operations, useful      {total:.4g}  ours, by formula: {parts}",
        f"  operations, performed   {done:.4g}  ours, of the traced program: "
        "recomputation too",
        f"  operations, compiler's  {program['compiler_flops']:.4g}  of one device, "
        "each loop's body once: not used",
        "  collectives, bytes that one device sends, loops counted:",
    ]
    for kind, size in sorted(moved["sent"].items(), key=lambda item: -item[1]):
        far = moved["far"].get(kind, 0)
        between = f", {_gib(far)} of it between slices" if far else ""
        count = moved["count"][kind]
        lines.append(f"    {kind:<20} {_gib(size):>12}  in {count:,.0f}{between}")
    if not moved["sent"]:
        lines.append("    none")
    if moved["endless"]:
        lines.append(f"    {moved['endless']} loops of unknown length counted once")
    lines.append(f"  memory read and written {_gib(moved['memory'])}")
    time = time_of(result, program)
    if time is None:
        return [*lines, "  no estimate of time: nothing is known of this machine"]
    network = f", between slices {time.network:.3g} s" if time.network else ""
    return [
        *lines,
        f"  ESTIMATE of time, by roofline: compute {time.compute:.3g} s, memory "
        f"{time.memory:.3g} s, links {time.links:.3g} s{network}",
        f"    {time.best:.3g} s if all overlap, {time.worst:.3g} s if nothing does; "
        f"bound by {time.bound}",
        f"    {program['tokens'] / time.worst:,.0f} to "
        f"{program['tokens'] / time.best:,.0f} tokens/s, MFU "
        f"{mfu(result, program, time.worst):.1%} to "
        f"{mfu(result, program, time.best):.1%}",
    ]


def _work_lines(result: dict[str, Any], documents: int) -> list[str]:
    """What the figures mean for a corpus, or for answers."""
    times = [time_of(result, program) for program in result["programs"]]
    lines = [""]
    if result["work"] == "compress" and documents:
        size = result["vector_bytes"] * documents
        lines.append(f"a corpus of {documents:,} documents: {_gib(size)} of vectors")
        if times[0] is not None:
            rate = result["rows"] / times[0].worst, result["rows"] / times[0].best
            hours = [documents / r / 3600 for r in rate]
            lines.append(
                f"  ESTIMATE: {rate[0]:,.0f} to {rate[1]:,.0f} documents/s, "
                f"{hours[1]:.2g} to {hours[0]:.2g} hours"
            )
    if result["work"] == "decode":
        new = result["programs"][-1]["repeats"] + 1
        cache = next(v for k, v in result["arguments"].items() if k.startswith("cache"))
        lines.append(f"cache of keys and values: {_gib(cache)} per device")
        if None not in times:
            best, worst = (
                getattr(times[0], end) + (new - 1) * getattr(times[1], end)
                for end in ("best", "worst")
            )
            lines.append(
                f"  ESTIMATE: {result['rows']} answers of {new} tokens in "
                f"{best:.3g} to {worst:.3g} s"
            )
    return lines if len(lines) > 1 else []


def _rows_that_fill(memory: Memory, rows: int, parts: int) -> int:
    """Rows of a microbatch that the memory would hold, were temporaries their sum."""
    temporaries = memory.temporaries
    if memory.refused is not None:
        temporaries = memory.peak - memory.arguments
    room = memory.limit - (memory.peak - temporaries)
    if temporaries <= 0 or room <= 0:
        return 0
    return int(room / temporaries * rows) // parts * parts


def _shares(result: dict[str, Any], accumulate: int, parts: int) -> bool:
    rows = result["rows"]
    return rows % accumulate == 0 and rows // accumulate % parts == 0


def _mesh(mesh: dict[str, int], **changed: int) -> str:
    return ",".join(f"{k}={v}" for k, v in {**mesh, **changed}.items() if v > 1)


def _gib(size: int | float) -> str:
    if size < 2**20:
        return f"{size / 2**10:,.1f} KiB"
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:,.1f} MiB"
