"""Say what a run would cost on a machine that is not here.

    python -m clara_jax.plan --config configs/mistral_7b_scp.py --topology v5e:4x4

Compiles the very function that training runs, without any accelerator: for TPUs with
libtpu, for CPUs on simulated devices, for GPUs likewise, as far as that goes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from clara_jax.errors import ClaraError
from clara_jax.files import told, writable_folder
from clara_jax.plan.topology import (
    cache_home,
    default_libtpu,
    parse_topology,
    prepare,
)

WORK = ("train", "compress", "decode")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Parser(argparse.ArgumentParser):
    """Tells mistakes in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; --help lists the arguments\n")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = _Parser(
        prog="python -m clara_jax.plan",
        description="Say what a run would cost on a machine that is not here.",
        epilog="Fields of the config are set as in training: --config.seed=1",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", required=True, help="experiment, such as configs/tiny.py:scp")
    add("--topology", default="", help="v5e:4x4, v5p:4x4x4, h100:8, cpu:8, ...")
    add("--slices", type=int, default=1, help="how many such TPU slices")
    add("--mesh", default="", help="such as fsdp=8,tensor=2; data takes the rest")
    add("--work", default="train", choices=WORK, help="default: %(default)s")
    add("--rows", type=int, default=0, help="documents or prompts at a time")
    add("--documents", type=int, default=0, help="size of the corpus to compress")
    add("--backbone", default="", help="preset, folder or file, if not the config's")
    add("--stage", default="", help="which one of a config with several")
    add(
        "--show-sharding",
        action="store_true",
        help="print every array, and what each device holds of it; compiles nothing",
    )
    add("--sweep", action="store_true", help="try meshes, microbatches and remat")
    add("--sweep-meshes", default="", help="such as 'fsdp=16;fsdp=8,tensor=2'")
    add("--sweep-accumulate", default="", help="such as 1,2,4")
    add("--sweep-remat", default="", help="such as full,dots")
    add("--out", default="", help="folder for the sweep's table and picture")
    add(
        "--libtpu",
        default="",
        help=f"folder with libtpu; default: installed, or {default_libtpu()}",
    )
    add("--cache", default="", help=f"default: {cache_home() / 'plan'}")
    add("--json", action="store_true", help="print all figures as one JSON object")
    add("--markdown", action="store_true", help="print a table of one line")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its result is the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments, overrides = parser().parse_known_args(given)
    try:
        return _run(arguments, overrides, given)
    except KeyboardInterrupt:
        print("stopped; what was compiled is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 130
    except (ClaraError, OSError) as error:
        print(told(error), file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace, overrides: list[str], given: list[str]) -> int:
    if arguments.topology:
        topology = parse_topology(arguments.topology, arguments.slices)
        if arguments.show_sharding:
            os.environ["JAX_PLATFORMS"] = "cpu"
        else:
            prepare(topology, arguments.libtpu)
    elif not arguments.show_sharding:
        raise ClaraError("no --topology given; name a machine, such as v5e:4x4")
    else:
        os.environ["JAX_PLATFORMS"] = "cpu"
        topology = parse_topology("cpu:1")
    # Only now: what follows imports jax, which reads the environment.
    from clara_jax.plan.command import make_case, make_sweep

    case, notes = make_case(arguments, overrides, topology)
    folder = Path(arguments.cache or cache_home() / "plan").expanduser()
    if arguments.show_sharding:
        from clara_jax.plan.arrays import show

        print(f"# python -m clara_jax.plan {' '.join(given)}")
        print(show(case), end="")
        return 0
    if arguments.sweep:
        before = signal.signal(signal.SIGTERM, _terminated)
        try:
            print(make_sweep(arguments, overrides, case, folder, _say), end="")
        finally:
            signal.signal(signal.SIGTERM, before)
        return 0
    from clara_jax.plan.compile import kept, measure
    from clara_jax.plan.report import markdown, report

    result = kept(case, folder)
    if result is None:
        writable_folder(folder)
        with _ended_by_signals():
            result = measure(case, folder, _say)
    if arguments.json:
        print(json.dumps(result))
    elif arguments.markdown:
        print(markdown(result), end="")
    else:
        print(report(result, notes, arguments.documents), end="")
    return 0


def _terminated(number: int, frame: Any) -> NoReturn:
    """End in order, so that no compilation is left behind."""
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let signals end the process as they come.

    A compiler runs for minutes, in which Python hears of none; and libtpu answers
    SIGTERM with a report of its own crash.
    """
    before = {n: signal.getsignal(n) for n in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
