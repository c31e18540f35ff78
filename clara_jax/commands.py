"""What all commands share: arguments, one-line errors, signals and exit statuses.

| status | meaning |
|---|---|
| 0 | done |
| 1 | bad input, or findings of a check |
| 2 | a wrong argument |
| 75 | SIGTERM: start the same command again, it goes on |
| 130 | Ctrl-C: likewise |
"""

import argparse
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from clara_jax.config import DTYPES, QUANTIZATIONS
from clara_jax.errors import ClaraError
from clara_jax.files import first_line, told

TRY_AGAIN = 75
"""Exit status that asks job systems for the same command once more (EX_TEMPFAIL)."""

CTRL_C = 130

MODEL = "run folder, model folder, checkpoint of the original or its hub name, or the "
MODEL += "name of a model that comes with the package"


class Parser(argparse.ArgumentParser):
    """A parser that reports mistakes in one line and takes no abbreviations."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"error: {message}; --help lists the arguments\n")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--base``, ``--rate`` and so on; see `model_options`."""
    add = parser.add_argument
    add("--base", default="", help="base model in place of the one the folder names")
    add_rate(parser)
    add("--dtype", default="", choices=DTYPES, help="compute type; see clara_jax.load")
    add(
        "--quantize",
        default="none",
        choices=QUANTIZATIONS,
        help="keep the frozen layers' matrices in int8 or nf4 (4 bits)",
    )
    text = "let texts that spell control tokens, such as </s>, mean them"
    add("--control-tokens", action="store_true", help=text)


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_model_options` added, as arguments of `clara_jax.load`."""
    names = ("base", "rate", "dtype", "quantize")
    return {name: getattr(arguments, name) for name in names}


def add_rate(parser: argparse.ArgumentParser) -> None:
    """Add ``--rate``, the compression rate of the model."""
    text = "compression rate, where a folder or hub name has models of several"
    parser.add_argument("--rate", type=count, default=0, metavar="N", help=text)


def add_record_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--format``, ``--fields`` and ``--encoding``; see `record_options`."""
    add = parser.add_argument
    add("--format", default="auto", help="format of the records; see docs/formats.md")
    text = "what fields are called in the files, as question=query,answers=golden"
    add("--fields", default="", metavar="OURS=THEIRS,...", help=text)
    text = "of text files, such as cp1252; found by itself if not given"
    add("--encoding", default="", metavar="NAME", help=text)


def record_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_record_options` added, as arguments of ``open_records``."""
    fields = [text for text in arguments.fields.split(",") if text]
    return {
        "format": arguments.format,
        "fields": fields,
        "encoding": arguments.encoding,
    }


def count(text: str) -> int:
    """Read an argument that must be a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return int(text)


def parse_mesh(text: str, axes: Sequence[str]) -> dict[str, int]:
    """Read the sizes of ``--mesh``, such as ``fsdp=2,tensor=2``.

    Raises:
      ClaraError: an axis is not one of `axes`, or is named twice; a size is not a
        number above 0 (or -1, for the devices left).
    """

    def refuse(why: str) -> NoReturn:
        example = "write for example fsdp=4 or fsdp=2,tensor=2"
        raise ClaraError(f"--mesh is '{text}': {why}; {example}")

    sizes: dict[str, int] = {}
    for part in filter(None, text.replace(" ", ",").split(",")):
        name, _, size = part.partition("=")
        if name not in axes:
            refuse(f"no axis '{name}'; there are {', '.join(axes)}")
        if not size.removeprefix("-").isdecimal():
            refuse(f"'{part}' must be {name}=NUMBER")
        if int(size) < 1 and int(size) != -1:
            refuse(f"mesh.{name} must be above 0, or -1 for the devices left")
        if name in sizes:
            refuse(f"names {name} twice")
        sizes[name] = int(size)
    if text and not sizes:
        refuse("names no axis")
    return sizes


def note(text: str) -> None:
    """Print a note on the standard error, beside the results."""
    print(f"note: {text}", file=sys.stderr, flush=True)


class Interrupted(Exception):
    """A signal ended the work early, and in order; its text is printed, if any.

    Attributes:
      signal: name of the signal.
    """

    def __init__(self, signal: str, message: str):
        super().__init__(message)
        self.signal = signal


class Terminated(KeyboardInterrupt):
    """SIGTERM where nothing listens to it: ends a command as Ctrl-C does."""


class Interrupt:
    """Note SIGINT and SIGTERM, so that work can stop where it is in order.

    Attributes:
      signal: name of the signal that arrived, or None.
    """

    def __init__(self) -> None:
        self.signal: str | None = None

    @property
    def flags(self) -> tuple[int, int]:
        """Whether SIGINT, and SIGTERM, arrived here."""
        return int(self.signal == "SIGINT"), int(self.signal == "SIGTERM")

    def agree(self, flags: Sequence[int]) -> bool:
        """Take over what any process has noted, and return whether to stop.

        What this process has noted since it was asked, the others do not know.

        Args:
          flags: sums of `flags` over all processes.
        """
        if any(flags):
            self.signal = "SIGTERM" if flags[1] else "SIGINT"
        return any(flags)

    def check(self, kept: str) -> None:
        """Raise `Interrupted` if a signal was noted; print nothing if `kept` is empty.

        Args:
          kept: what is done so far, and where.
        """
        if self.signal is not None:
            text = f"{self.signal}: {kept}; start the same command again to go on"
            raise Interrupted(self.signal, text if kept else "")

    @contextlib.contextmanager
    def listen(self) -> Iterator["Interrupt"]:
        """Take both signals over inside; a second one acts at once, as always."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

        def note(number: int, _: Any) -> None:
            self.signal = signal.Signals(number).name
            signal.signal(number, before[signal.Signals(number)])

        for number in before:
            signal.signal(number, note)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run(
    work: Callable[[], int | None], goes_on: str = "the same command goes on from here"
) -> int:
    """Do a command's work, and return its exit status.

    Args:
      work: returns a status, or None for 0.
      goes_on: printed after Ctrl-C and SIGTERM; what is kept, and what to do.
    """
    try:
        return work() or 0
    except Interrupted as stopped:
        if str(stopped):
            print(stopped, file=sys.stderr)
        return TRY_AGAIN if stopped.signal == "SIGTERM" else CTRL_C
    except KeyboardInterrupt as stopped:
        print(f"interrupted; {goes_on}", file=sys.stderr)
        return TRY_AGAIN if isinstance(stopped, Terminated) else CTRL_C
    except BrokenPipeError:
        return CTRL_C
    except (ClaraError, OSError) as error:
        print(told(error), file=sys.stderr)
        return 1
    except RuntimeError as error:  # of JAX
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(
            f"error: the devices' memory is full ({first_line(error)}); lower the "
            "batch size, or see --mesh and --quantize where there are such options",
            file=sys.stderr,
        )
        return 1


def start(main: Callable[[], int]) -> NoReturn:
    """Run a command's `main` as the program, and end with its status."""
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.freeze()  # what is imported stays, and need not be looked through for garbage
    status = main()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    if status in (TRY_AGAIN, CTRL_C):
        sys.stderr.flush()
        os._exit(status)  # threads at work would crash an orderly end
    sys.exit(status)


def _terminate(*_: object) -> NoReturn:
    raise Terminated
