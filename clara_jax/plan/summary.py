"""Results in words and tables: memory against the chip's, and a floor of the time.

The floor is what the maker's figures of the chip allow: operations, arguments that are
each read once (of an embedding table less may do), and collectives, all at the same
time. It knows no activations, no latency, no kernel's efficiency, no input pipeline.
"""

from collections.abc import Sequence
from typing import Any

from clara_jax.plan.cases import mesh_text
from clara_jax.plan.topology import CHIPS, GIB, GPUS, TPUS


def memory_of(result: dict[str, Any]) -> dict[str, Any]:
    """Return the bytes that the hungriest program of a result needs on one device.

    ``arguments``, used or not, ``temporaries``, ``outputs`` (those that do not take the
    place of arguments) and ``code`` add up to ``peak``, as far as known. ``fits`` is
    None where no ``limit`` is known; ``refused`` is what the compiler said instead.
    """
    limit, found = CHIPS[_kind(result)].memory, []
    exact = sum(v for k, v in result["arguments"].items() if not k.startswith("cache"))
    # Arrays that a train step does not read lie there all the same.
    least = exact if result["work"] == "train" else 0
    for program in result["programs"]:
        if refused := program["refused"]:
            limit = refused.get("limit", limit)
            peak = refused.get("needed", limit) + refused.get("alone", False) * exact
            known = {"arguments": exact, "temporaries": None, "peak": peak}
            said = refused["message"]
            return known | {"limit": limit, "fits": False, "refused": said}
        memory = program["memory"]
        values = {
            "arguments": max(memory["arguments"], least),
            "temporaries": memory["temporaries"],
            "outputs": max(memory["outputs"] - memory["aliased"], 0),
            "code": memory["code"],
        }
        peak = sum(values.values())
        values |= {"peak": peak, "limit": limit, "refused": ""}
        found.append(values | {"fits": peak <= limit if limit else None})
    return max(found, key=lambda memory: memory["peak"])


def floor_of(result: dict[str, Any], program: dict[str, Any]) -> dict[str, Any]:
    """Return the least seconds that one run of a program takes, by what they go to.

    ``seconds_best`` is the largest of them, if all goes on at once; None, and nothing
    else, where chip or program are not known.
    """
    chip = CHIPS[_kind(result)]
    if not chip.flops or program["refused"]:
        return {"seconds_best": None}
    sent, far = (sum(program["traffic"][name].values()) for name in ("sent", "far"))
    each = chip.flops * result["devices"]
    parts = {
        "compute": program["performed_flops"] / each,
        "memory": program["memory"]["arguments"] / chip.hbm,
        "links": (sent - far) / chip.links,
        "network": far / chip.network,
    }
    seconds = max(parts.values())
    return {
        "seconds_best": seconds,
        **{f"seconds_{name}": value for name, value in parts.items()},
        "bound": max(parts, key=parts.__getitem__),
        "tokens_per_s_best": program["tokens"] / seconds,
        "mfu_best": sum(program["useful_flops"].values()) / each / seconds,
    }


def _kind(result: dict[str, Any]) -> str:
    return result["topology"].split(":")[0]


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Return one line of a table, as plain values; times are of the first program."""
    memory = memory_of(result)
    gib = {
        f"{name}_gib": None if memory[name] is None else memory[name] / GIB
        for name in ("arguments", "temporaries", "peak", "limit")
    }
    return {
        "mesh": mesh_text(result["mesh"]),
        "accumulate": result["accumulate"],
        "remat": result["remat"],
        "fits": memory["fits"],
        **gib,
        **floor_of(result, result["programs"][0]),
        "compile_seconds": sum(p["compile_seconds"] for p in result["programs"]),
    }


def cells(line: dict[str, Any]) -> dict[str, str]:
    """Return a `summary` as text, by column."""
    temporaries, limit = line["temporaries_gib"], line["limit_gib"]
    known = line["seconds_best"] is not None
    of = f" of {limit:.2f}" if limit else ""
    return {
        "mesh": line["mesh"],
        "microbatches": str(line["accumulate"]),
        "remat": line["remat"],
        "arguments": f"{line['arguments_gib']:.2f}",
        "temporaries": "?" if temporaries is None else f"{temporaries:.2f}",
        "peak of memory": f"{line['peak_gib']:.2f}{of} GiB",
        "fits": {True: "yes", False: "no", None: "-"}[line["fits"]],
        "step, at least": f"{line['seconds_best']:.2f} s" if known else "-",
        "tokens/s, at most": f"{line['tokens_per_s_best']:,.0f}" if known else "-",
        "MFU, at most": f"{line['mfu_best']:.0%}" if known else "-",
        "bound by": line["bound"] if known else "-",
    }


def markdown(result: dict[str, Any]) -> str:
    """Return a table of one line."""
    row = {"run": f"{result['stage']}, {result['topology']}", **cells(summary(result))}
    del row["remat"]
    return table([row])


def table(rows: Sequence[dict[str, str]]) -> str:
    """Return a markdown table whose columns line up."""
    header = {name: name for name in rows[0]}
    widths = {name: max(len(row[name]) for row in (header, *rows)) for name in header}
    rule = {name: "-" * width for name, width in widths.items()}
    text = ""
    for row in (header, rule, *rows):
        text += f"| {' | '.join(row[k].ljust(n) for k, n in widths.items())} |\n"
    return text


def report(
    result: dict[str, Any],
    notes: Sequence[str] = (),
    documents: int = 0,
    hints: Sequence[str] = (),
) -> str:
    """Return all that is known about a case.

    That includes `notes` on how it came about, what it means for a corpus of so many
    `documents`, and `hints` of what else to try.
    """
    mesh = ", ".join(f"{k} {v}" for k, v in result["mesh"].items() if v > 1) or "1"
    where, rows = result["topology"], f"{result['rows']} rows at a time"
    if result["slices"] > 1:
        where = f"{result['slices']} slices of {where}"
    if result["work"] == "train":
        rows = f"{result['rows']} rows in {result['accumulate']} microbatches"
        rows += f", remat {result['remat']}"
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    cached = " (kept from an earlier compilation)" if result["cached"] else ""
    lines = [
        f"{result['work']}, stage {result['stage']}, on {where}: {result['devices']} "
        f"devices, mesh {mesh}",
        f"  {rows}",
        *(f"  note: {note}" for note in notes),
        f"  {versions}{cached}",
        "",
        *_memory_lines(result),
    ]
    for program in result["programs"]:
        if not program["refused"]:
            lines += ["", *_program_lines(result, program)]
    if not result["programs"][-1]["refused"]:
        lines += _work_lines(result, documents)
    if hints:
        lines += ["", "what may fit better (guesses; --sweep compiles them)"]
        lines += [f"  {hint}" for hint in hints]
    return "\n".join(lines) + "\n"


def _memory_lines(result: dict[str, Any]) -> list[str]:
    memory, kind = memory_of(result), _kind(result)
    compiler = "TPU compiler" if kind in TPUS else "XLA's compiler for CPUs"
    if kind in GPUS:
        compiler += ", NOT for this GPU: a rough guide"
    arrays, verdict = "", ""
    if result["work"] == "train":
        arrays = "exact: " + "; ".join(
            f"{name} {_gib(size)}"
            for name, size in result["arguments"].items()
            if size and not name.startswith(("cache", "rest"))
        )
    if limit := memory["limit"]:
        room = limit - memory["peak"]
        verdict = (
            f"of {_gib(limit)}: {'fits' if memory['fits'] else 'DOES NOT FIT'}, "
            f"{_gib(abs(room))} {'to spare' if room >= 0 else 'too much'} "
            f"({abs(room) / limit:.0%})"
        )
    lines = [f"memory of one device ({CHIPS[kind].source})"]
    if memory["refused"]:
        lines.append(f"  refused: {memory['refused']}")
    for name, label, text in (
        ("arguments", "arguments", arrays),
        ("temporaries", "temporaries", compiler),
        ("outputs", "new outputs", ""),
        ("code", "program", ""),
        ("peak", "peak", verdict),
    ):
        if memory.get(name) is not None:
            lines.append(f"  {label:<12} {_gib(memory[name]):>12}  {text}".rstrip())
    return lines


_PROGRAM = """\
{name}: {tokens:,} tokens with padding
  operations, useful      {useful:.4g}  ours, by formula: {parts}
  operations, performed   {performed_flops:.4g}  ours, of the traced program: \
recomputation too
  operations, compiler's  {compiler_flops:.4g}  of one device, each loop's body once: \
not used
  collectives, bytes that one device sends, loops counted:"""

_FLOOR = """\
  ESTIMATE of time, a floor: at least {seconds_best:.3g} s, bound by {bound}; a real \
run takes longer
    compute {seconds_compute:.3g} s, memory {seconds_memory:.3g} s to read the \
arguments once, links {seconds_links:.3g} s{network}
    at most {tokens_per_s_best:,.0f} tokens/s, MFU {mfu_best:.1%}"""


def _program_lines(result: dict[str, Any], program: dict[str, Any]) -> list[str]:
    needed, traffic = program["useful_flops"], program["traffic"]
    parts = ", ".join(f"{name} {value:.3g}" for name, value in needed.items() if value)
    lines = [_PROGRAM.format(**program, useful=sum(needed.values()), parts=parts)]
    for kind, size in sorted(traffic["sent"].items(), key=lambda item: -item[1]):
        far = traffic["far"].get(kind, 0)
        between = f", {_gib(far)} of it between slices" if far else ""
        count = traffic["count"][kind]
        lines.append(f"    {kind:<20} {_gib(size):>12}  in {count:,.0f}{between}")
    if not traffic["sent"]:
        lines.append("    none")
    if traffic["endless"]:
        lines.append(f"    {traffic['endless']} loops of unknown length counted once")
    floor = floor_of(result, program)
    if floor["seconds_best"] is None:
        return [*lines, "  no estimate of time: nothing is known of this machine"]
    far = floor["seconds_network"]
    network = f", between slices {far:.3g} s" if far else ""
    return [*lines, _FLOOR.format(**floor, network=network)]


def _work_lines(result: dict[str, Any], documents: int) -> list[str]:
    """What the figures mean for a corpus, or for answers."""
    seconds = [floor_of(result, one)["seconds_best"] for one in result["programs"]]
    rows, estimate = result["rows"], ""
    if result["work"] == "compress" and documents:
        size = _gib(result["vector_bytes"] * documents)
        what = f"a corpus of {documents:,} documents: {size} of vectors"
        if None not in seconds:
            rate = rows / seconds[0]
            hours = documents / rate / 3600
            estimate = f"at most {rate:,.0f} documents/s, at least {hours:.2g} hours"
    elif result["work"] == "decode":
        more, held = result["programs"][-1]["repeats"], result["arguments"]
        cache = next(size for name, size in held.items() if name.startswith("cache"))
        what = f"cache of keys and values: {_gib(cache)} per device"
        if None not in seconds:
            least = seconds[0] + more * seconds[1]
            estimate = f"{rows} answers of {more + 1} tokens in at least {least:.3g} s"
    else:
        return []
    return ["", what] + ([f"  ESTIMATE: {estimate}"] if estimate else [])


def _gib(size: int | float) -> str:
    if size < 2**20:
        return f"{size / 2**10:,.1f} KiB"
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:,.1f} MiB"
