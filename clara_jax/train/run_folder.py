"""The folder of a run: config, metrics, checkpoints, summary.

config.json     the resolved config; a folder belongs to one config
metrics.jsonl   one line per logged step and evaluation
checkpoints/    full states, newest few
summary.json    written last: the run is finished
model.json ...  the result as a model folder, for ``init_from`` and all commands
"""

import importlib.metadata
import json
import platform
import statistics
from pathlib import Path
from typing import IO, Any

import jax

from clara_jax import __version__
from clara_jax.config import RunConfig, require, to_dict
from clara_jax.config.parsing import flatten
from clara_jax.errors import ClaraError
from clara_jax.files import lock_file, read_json, writable_folder, write_json
from clara_jax.train.hooks import read_lines

FREE = ("workdir", "minutes", "store", "hooks.", "mesh.")
FREE += ("data.workers", "data.eval", "data.too_long")
"""Fields (or their beginnings) in which a resumed run may differ: none of them changes
a step. A store may lie elsewhere; that it is the same one, `feeds.Pinned` sees to."""

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class RunFolder:
    """Paths of one run, and the files that are not checkpoints."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.summary = self.path / "summary.json"
        self._held: IO[bytes] | None = None

    def check(self, config: RunConfig) -> None:
        """Refuse a folder with another config's run, unless that never logged or saved.

        Refuse one without a run that holds something else, too.
        """
        fits = self.path.is_dir() or not self.path.exists()
        require(fits, "workdir", f"{self.path} is a file; give a folder")
        if not self.config.exists():
            if any(self.path.glob("[!.]*")):
                raise ClaraError(
                    f"{self.path} holds other files and no config.json; give an empty "
                    "folder with --config.workdir=DIR"
                )
            return
        begun = self.summary.exists() or bool(read_lines(self.metrics))
        if not begun and not any(self.checkpoints.glob("[0-9]*")):
            return
        now = _fields(config)
        # Fields that are newer than the run had their default values in it.
        defaults = _fields(RunConfig(config.stage, config.workdir, "-"))
        before = {**defaults, **flatten(read_json(self.config))}
        changed = [
            f"{name} (was {json.dumps(before.get(name))}, now {json.dumps(value)})"
            for name, value in now.items()
            if before.get(name) != value and not name.startswith(FREE)
        ]
        if changed:
            raise ClaraError(
                f"{self.path} holds a run with another config: {', '.join(changed)}; "
                "give another --config.workdir, or the same config to resume"
            )

    def claim(self, config: RunConfig) -> None:
        """Make the folder and write its config, after `check`.

        Other processes are kept out until `close`, or until this one ends.
        """
        self.check(config)
        if self._held is None:
            writable_folder(self.path)
            self._held = lock_file(
                self.path / ".lock",
                f"{self.path}: another process is training here; wait for it, or give "
                "another --config.workdir",
            )
        write_json(self.config, to_dict(config))

    def close(self) -> None:
        """Let other processes in again."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def finished(self, config: RunConfig) -> bool:
        """Return whether the run is done, after `check`."""
        self.check(config)
        return self.summary.exists()

    def write_summary(self, config: RunConfig, **facts: Any) -> dict[str, Any]:
        """Write ``summary.json``, with `facts` as further entries, and return it."""
        lines = read_lines(self.metrics)
        final: dict[str, Any] = {}
        for line in lines:
            final.update(line)
        speeds = [x["tokens_per_s"] for x in lines if x.get("tokens_per_s")]
        kind, count = jax.devices()[0].device_kind, jax.device_count()
        versions = {"clara_jax": __version__, "python": platform.python_version()}
        versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
        # The first interval holds compilation; the median leaves it out.
        summary = {
            "stage": config.stage,
            "steps": final.pop("step", 0),
            "seconds": final.pop("seconds", 0.0),
            "tokens": final.pop("tokens", 0),
            "tokens_per_s": statistics.median(speeds) if speeds else 0.0,
            "final": {k: v for k, v in final.items() if k != "tokens_per_s"},
            **facts,
            "device": {"kind": kind, "count": count},
            "versions": versions,
        }
        write_json(self.summary, summary)
        return summary


def _fields(config: RunConfig) -> dict[str, Any]:
    """Return fields as JSON gives them back, so that tuples compare with lists."""
    return flatten(json.loads(json.dumps(to_dict(config))))
