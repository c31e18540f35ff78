"""Write records as a TFDS folder: ``python -m clara_jax.data SOURCE ... FOLDER``.

Every source becomes part of the split ``train``; ``NAME=SOURCE`` puts it into another.
Sources are of any format that training reads. The folder serves as ``data.train``.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from clara_jax.data.sources import open_records, write_tfds
from clara_jax.errors import ClaraError
from clara_jax.files import told


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m clara_jax.data", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("sources", nargs="+", metavar="[SPLIT=]SOURCE")
    parser.add_argument("folder", metavar="FOLDER", help="must not exist yet")
    parser.add_argument("--format", default="auto", help="format of the sources")
    options = parser.parse_args(arguments)
    splits: dict[str, list[str]] = {}
    for source in options.sources:
        name, sign, path = source.partition("=")
        split, path = (
            (name, path) if sign and name.isidentifier() else ("train", source)
        )
        splits.setdefault(split, []).append(path)
    try:
        records = {
            name: open_records(paths, options.format) for name, paths in splits.items()
        }
        folder = write_tfds(records, options.folder)
    except (ClaraError, OSError) as error:
        print(told(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    counts = ", ".join(f"{name} {len(items)}" for name, items in records.items())
    print(f"{folder}: {counts} records")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and tidy up
    sys.exit(main())
