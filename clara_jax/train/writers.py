"""Where scalars go: JSON lines, the progress bar, TensorBoard, Weights & Biases."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tqdm import tqdm

from clara_jax.errors import ClaraError
from clara_jax.files import write_error


@runtime_checkable
class Writer(Protocol):
    """Takes the scalars of one step."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Keep or show `values`; called from the main process only."""
        ...

    def close(self) -> None:
        """Flush; nothing is written afterwards."""
        ...


class JsonLines:
    """One JSON object a line, in the run's ``metrics.jsonl``.

    A value that is not finite becomes null, so that every line is JSON.
    """

    def __init__(self, path: Path, step: int | None = None):
        """Open `path`, dropping what lies after `step`.

        Args:
          path: made if absent.
          step: the run goes on after it; later lines (and a torn last one) belong to
            steps that are about to be done again. None begins anew.
        """
        last = -1 if step is None else step
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            kept = [line for line in read_lines(path) if line["step"] <= last]
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
            temporary.replace(path)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise write_error(path, error) from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        try:
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            self._file.flush()
        except OSError as error:
            raise write_error(Path(self._file.name), error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read ``metrics.jsonl``; a torn line ends it.

    Returns:
      Its lines, none if the file is absent.
    """
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            break
        lines.append(line)
    return lines


class ProgressBar:
    """Steps with ETA, loss and tokens per second, on standard error.

    A hook (it counts steps) and a writer (it shows scalars).
    """

    every = 1
    pauses = False

    def __init__(self, name: str, start: int, steps: int):
        self._bar = tqdm(
            total=steps,
            initial=start,
            desc=name,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )

    def __call__(self, state: Any, metrics: Mapping[str, Any]) -> None:
        """Count one step."""
        self._bar.update(1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Show loss and speed; print what an evaluation found."""
        if "loss" in values:
            speed = values.get("tokens_per_s", 0.0)
            self._bar.set_postfix_str(
                f"loss {values['loss']:.4f}, {speed:,.0f} tokens/s", refresh=False
            )
        found = {k: v for k, v in values.items() if k.startswith("eval/")}
        if found:
            shown = ", ".join(f"{k[5:]} {v:.4f}" for k, v in found.items())
            self._bar.write(f"step {step}: {shown}", file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


class TensorBoard:
    """Event files that TensorBoard reads, written without TensorFlow."""

    def __init__(self, folder: Path, step: int | None = None):
        """Open `folder`; points after `step`, as of `JsonLines`, are hidden."""
        module = _need("tensorboardX", "hooks.tensorboard", "pip install tensorboardX")
        self._folder = folder
        after = 0 if step is None else step + 1
        with self._told():
            self._writer = module.SummaryWriter(str(folder), purge_step=after)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the scalars."""
        with self._told():
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the event file."""
        with self._told():
            self._writer.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise write_error(self._folder, error) from error


class WeightsAndBiases:
    """Scalars to Weights & Biases (the extra ``wandb``)."""

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        module = _need("wandb", "hooks.wandb", "pip install 'clara_jax[wandb]'")
        self._run = module.init(
            project="clara_jax",
            name=folder.name,
            dir=str(folder),
            config=dict(config),
            resume="allow",
            id=_run_id(folder),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the scalars."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _run_id(folder: Path) -> str:
    """Name the run for life, so that a resumed one is the same one."""
    path = folder / "wandb_id"
    if not path.exists():
        import secrets

        path.write_text(secrets.token_hex(8))
    return path.read_text().strip()


def _need(module: str, field: str, command: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ClaraError(
            f"config field '{field}' is on, but {module} is not installed: "
            f"run {command}, or set --config.{field}=False"
        ) from error
