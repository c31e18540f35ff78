"""Say what a run would cost on a machine that is not here.

    python -m clara_jax.plan --config configs/mistral_7b_scp.py --topology v5e:4x4

Compiles the very function that training runs, without any accelerator: for TPUs with
libtpu, for CPUs on simulated devices, for GPUs likewise, as far as that goes.
"""

import argparse
import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from clara_jax.commands import Parser, run, start
from clara_jax.errors import ClaraError
from clara_jax.files import cache_folder, writable_folder
from clara_jax.plan.topology import parse_topology, prepare


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = Parser(
        prog="python -m clara_jax.plan",
        description="Say what a run would cost on a machine that is not here.",
        epilog="Fields of the config are set as in training: --config.seed=1",
    )
    add = parser.add_argument
    add("--config", required=True, help="experiment, such as configs/tiny.py:scp")
    add("--topology", default="", help="v5e:4x4, v5p:4x4x4, h100:8, cpu:8, ...")
    add("--slices", type=int, default=1, help="how many such TPU slices")
    add("--mesh", default="", help="such as fsdp=8,tensor=2; data takes the rest")
    works = ("train", "compress", "decode")
    add("--work", default="train", choices=works, help="default: %(default)s")
    add("--rows", type=int, default=0, help="documents or prompts at a time")
    add("--documents", type=int, default=0, help="size of the corpus to compress")
    add("--backbone", default="", help="preset, folder or file, if not the config's")
    add("--stage", default="", help="which one of a config with several")
    text = "print every array, and what each device holds of it; compiles nothing"
    add("--show-sharding", action="store_true", help=text)
    add("--sweep", action="store_true", help="try meshes, microbatches and remat")
    add("--sweep-meshes", default="", help="such as 'fsdp=16;fsdp=8,tensor=2'")
    add("--sweep-accumulate", default="", help="such as 1,2,4")
    add("--sweep-remat", default="", help="such as full,dots")
    add("--out", default="", help="folder for the sweep's table and picture")
    text = f"folder with libtpu; default: installed, or {cache_folder() / 'libtpu'}"
    add("--libtpu", default="", help=text)
    add("--cache", default="", help=f"default: {cache_folder() / 'plan'}")
    add("--json", action="store_true", help="print all figures as one JSON object")
    add("--markdown", action="store_true", help="print a table of one line")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments, overrides = parser().parse_known_args(given)
    return run(
        lambda: print(_run(arguments, overrides, given), end="", flush=True),
        "what was compiled is kept",
    )


def _run(arguments: argparse.Namespace, overrides: list[str], given: list[str]) -> str:
    topology = parse_topology("cpu:1")
    if arguments.topology:
        topology = parse_topology(arguments.topology, arguments.slices)
    elif not arguments.show_sharding:
        raise ClaraError("no --topology given; name a machine, such as v5e:4x4")
    if arguments.show_sharding:
        os.environ["JAX_PLATFORMS"] = "cpu"
    else:
        prepare(topology, arguments.libtpu)
    # Only now: what follows imports jax, which reads the environment.
    from clara_jax.plan import advice, cases, programs, summary

    case, notes = cases.make_case(arguments, overrides, topology)
    if arguments.show_sharding:
        return f"# python -m clara_jax.plan {' '.join(given)}\n{programs.show(case)}"
    folder = Path(arguments.cache or cache_folder() / "plan").expanduser()
    measured = functools.partial(programs.measure_apart, folder=folder)
    if arguments.sweep:
        settings = cases.sweep_settings(arguments, case)
        stem = Path(arguments.config.partition(":")[0]).stem
        machine = topology.name.replace(":", "_")
        out = Path(arguments.out or f"plans/{stem}_{machine}")
        writable_folder(out)
        writable_folder(folder)
        return advice.sweep(case, settings, measured, out)
    result = measured(case)
    if arguments.json:
        return json.dumps(result) + "\n"
    if arguments.markdown:
        return summary.markdown(result)
    hints = advice.advice(result)
    return summary.report(result, notes, arguments.documents, hints)


if __name__ == "__main__":
    start(main)
