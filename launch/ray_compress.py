#!/usr/bin/env python3
"""Compress a corpus on a Ray cluster: each task writes a part, the last one commits.

    launch/ray_compress.py --parts 4 --gpus 1 -- --model DIR --corpus PATH --store PLACE

After ``--`` stand the arguments of ``python -m clara_jax.compress``. All machines must
see the model, the corpus and the store under these names. A task whose machine is lost
starts again elsewhere, and goes on with its part.

Exit status: 0 when the store is finished, else that of a task that failed.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence

import ray

AGAIN = 5
"""Times that a task is started again after its machine was lost."""


def main(argv: Sequence[str] | None = None) -> int:
    """Start all parts, wait for them, and return the worst exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--parts", type=int, required=True, help="tasks that share the corpus")
    add("--cpus", type=float, default=1, help="of a task (default 1)")
    add("--gpus", type=float, default=0, help="of a task (default 0)")
    add("--address", default=None, help="of the cluster; default: as Ray finds it")
    add("command", nargs="+", help="arguments of python -m clara_jax.compress")
    options = parser.parse_args(argv)
    if options.parts < 1:
        parser.error("--parts must be 1 or more")
    ray.init(address=options.address, log_to_driver=True)

    @ray.remote(num_cpus=options.cpus, num_gpus=options.gpus, max_retries=AGAIN)
    def write(part: int) -> int:
        own = ["--part", f"{part}/{options.parts}"]
        line = [sys.executable, "-m", "clara_jax.compress", *options.command, *own]
        return subprocess.run(line, check=False).returncode

    try:
        found = ray.get([write.remote(i + 1) for i in range(options.parts)])
    finally:
        ray.shutdown()
    return max(found)


if __name__ == "__main__":
    sys.exit(main())
