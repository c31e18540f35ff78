"""Write files of the invented encyclopedia.

    python -m clara_jax.synthesize DIR [--records stages|pretraining] [--seed N] ...

DIR/data then holds JSONL files in the stages' formats, which any experiment can name as
``data.train`` and ``data.eval``.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from clara_jax.errors import ClaraError
from clara_jax.synthesize.files import Settings, prepare


def parser() -> argparse.ArgumentParser:
    """The command's arguments: the folder, and every field of `Settings`."""
    parser = argparse.ArgumentParser(
        prog="python -m clara_jax.synthesize",
        description="Write files of an invented encyclopedia.",
    )
    parser.add_argument("workdir", metavar="DIR", help="files go to DIR/data")
    for field in dataclasses.fields(Settings):
        default = field.default
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(default),
            default=default,
            help=f"see clara_jax.synthesize.Settings; default: {default}",
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its result is the exit status."""
    arguments = vars(parser().parse_args(argv))
    try:
        folder = prepare(arguments.pop("workdir"), Settings(**arguments))
    except ClaraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            print(f"{path}: {sum(1 for _ in file)} records")
    return 0


if __name__ == "__main__":
    sys.exit(main())
