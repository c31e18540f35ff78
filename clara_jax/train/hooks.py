"""What happens beside the steps: logs, evaluation, checkpoints, stopping, profiles.

Evaluation comes before the checkpoint of the same step, so that what is saved has been
evaluated and never is again. Writers are where scalars go: JSON lines, the progress
bar, TensorBoard, Weights & Biases.
"""

import dataclasses
import importlib
import json
import math
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
from tqdm import tqdm

from clara_jax.errors import ClaraError
from clara_jax.evaluate import Evaluator
from clara_jax.files import first_line, write_text, writing
from clara_jax.train.checkpoints import Checkpoints
from clara_jax.train.loop import NotFinite, Run
from clara_jax.train.state import TrainState


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

    A value that is not finite becomes null, so that every line is JSON. The run goes on
    after `step`: later lines (and a torn last one) belong to steps that are about to be
    done again, and are dropped. None begins anew.
    """

    def __init__(self, path: Path, step: int | None = None):
        last = -1 if step is None else step
        with writing(path):
            kept = [line for line in read_lines(path) if line["step"] <= last]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        with writing(self._file.name):
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of ``metrics.jsonl``, if there is one, up to a torn line."""
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
    """Steps with ETA, loss and tokens per second on standard error: hook, writer."""

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
    """Event files that TensorBoard reads, written without TensorFlow.

    Points after `step`, as of `JsonLines`, are hidden.
    """

    def __init__(self, folder: Path, step: int | None = None):
        module = _need("tensorboardX", "hooks.tensorboard", "pip install tensorboardX")
        self._folder = folder
        after = 0 if step is None else step + 1
        with writing(folder):
            self._writer = module.SummaryWriter(str(folder), purge_step=after)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the scalars."""
        with writing(self._folder):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the event file."""
        with writing(self._folder):
            self._writer.close()


class WeightsAndBiases:
    """Scalars to Weights & Biases (the extra ``wandb``), each step once.

    `folder` keeps the run's id, so that a restart goes on with the same run. Steps that
    it has already are not sent again, for it refuses them. Those of the `lines` of
    ``metrics.jsonl`` that it has not are sent first. All values of a step go together
    when the next one begins: a step that a kill cuts off is absent, never half there.

    Args:
      folder: the run's.
      config: shown beside the run.
      project: empty takes ``WANDB_PROJECT``, or ``clara_jax``.
      lines: of the steps that are not done again, as of `read_lines`.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        project: str = "",
        lines: Sequence[Mapping[str, Any]] = (),
    ):
        module = _need("wandb", "hooks.wandb", "pip install 'clara_jax[wandb]'")
        name = folder / "wandb_id"
        if not name.exists():
            write_text(name, secrets.token_hex(8))
        try:
            self._run = module.init(
                project=project or os.environ.get("WANDB_PROJECT") or "clara_jax",
                name=os.environ.get("WANDB_NAME") or folder.name,
                dir=os.environ.get("WANDB_DIR") or str(folder),
                config=dict(config),
                allow_val_change=True,
                resume="allow",
                id=name.read_text(encoding="utf-8").strip(),
            )
        except Exception as error:  # of many kinds, such as without a key or network
            raise ClaraError(
                f"Weights & Biases does not start ({first_line(error)}); run "
                "'wandb login', or set WANDB_MODE=offline or --config.hooks.wandb=False"
            ) from error
        self._next = int(self._run.starting_step)
        self._held: tuple[int, dict[str, float]] | None = None
        for line in lines:
            values = {k: math.nan if v is None else v for k, v in line.items()}
            self.write(int(values.pop("step")), values)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Send the step before; hold these scalars until the next one begins."""
        if self._held is not None and self._held[0] == step:
            self._held[1].update(values)
            return
        self._send()
        self._held = step, dict(values)

    def _send(self) -> None:
        if self._held is not None and self._held[0] >= self._next:
            step, values = self._held
            self._run.log(values, step=step, commit=True)
            self._next = step + 1
        self._held = None

    def close(self) -> None:
        """Send the last step and finish the run."""
        self._send()
        self._run.finish()


def _need(module: str, field: str, command: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ClaraError(
            f"config field '{field}' is on, but {module} is not installed: "
            f"run {command}, or set --config.{field}=False"
        ) from error


class StopOnNonFinite:
    """Raise `NotFinite` at the first bad step.

    It reads the flag of the step before, for which no device has to wait. A state does
    not change once it is unhealthy, so looking one step late loses nothing.
    """

    every = 1
    pauses = False

    def __init__(self, steps: int):
        self._last = steps
        self._before: tuple[int, Any] | None = None

    def __call__(self, state: TrainState, metrics: Mapping[str, Any]) -> None:
        """Check the step before this one, and the last step itself."""
        now = metrics["step"], metrics["finite"]
        for step, finite in filter(None, (self._before, now)):
            if (step < now[0] or step == self._last) and not bool(finite):
                raise NotFinite(step, state)
        self._before = now


@dataclasses.dataclass
class Log:
    """Hand the scalars of a step to the writers.

    Every value is that of the one step, not a running mean, so that an interrupted and
    an uninterrupted run write the same lines. ``tokens_per_s`` (real tokens, padding
    not counted) covers the steps since the line before, hooks left out.
    """

    every: int
    writers: Sequence[Writer]
    run: Run
    pauses = False

    def __post_init__(self):
        self._mark = (self.run.tokens, self.run.seconds())

    def __call__(self, state: TrainState, metrics: Mapping[str, Any]) -> None:
        """Fetch the scalars and write them."""
        values = {k: float(v) for k, v in jax.device_get(dict(metrics)).items()}
        step = int(values.pop("step"))
        del values["finite"]
        tokens, seconds = self.run.tokens, self.run.seconds()
        passed = max(seconds - self._mark[1], 1e-9)
        values["tokens_per_s"] = (tokens - self._mark[0]) / passed
        values |= {"tokens": tokens, "seconds": seconds}
        self._mark = (tokens, seconds)
        for writer in self.writers:
            writer.write(step, values)


@dataclasses.dataclass
class Evaluate:
    """Run the evaluators and write ``eval/<name>``."""

    every: int
    evaluators: Sequence[Evaluator]
    writers: Sequence[Writer]
    pauses = True

    def __call__(self, state: TrainState, metrics: Mapping[str, Any]) -> None:
        """Evaluate, unless the state is the last good one of a failed run."""
        if not bool(state.healthy):
            return
        values = {
            f"eval/{name}": float(value)
            for evaluator in self.evaluators
            for name, value in evaluator.run(state)
        }
        if values:
            for writer in self.writers:
                writer.write(metrics["step"], values)


@dataclasses.dataclass
class Checkpoint:
    """Save the state with the position in the data."""

    every: int
    checkpoints: Checkpoints
    position: Callable[[int], dict[str, Any]]
    pauses = True

    def __call__(self, state: TrainState, metrics: Mapping[str, Any]) -> None:
        """Save, unless the step was not finite."""
        if bool(state.healthy):
            self.save(state)

    def save(self, state: TrainState) -> int:
        """Save now and return the step saved."""
        step = int(state.step)
        self.checkpoints.save(step, state.saved(), self.position(step))
        return step


@dataclasses.dataclass
class Profile:
    """Write a profiler trace of some steps (open it with XProf or Perfetto)."""

    folder: Path
    start: int
    steps: int
    every = 1
    pauses = False
    _running = False

    def __call__(self, state: TrainState, metrics: Mapping[str, Any]) -> None:
        """Start and stop the trace."""
        if metrics["step"] == self.start:
            jax.block_until_ready(state.step)
            jax.profiler.start_trace(str(self.folder))
            self._running = True
        elif metrics["step"] == self.start + self.steps:
            jax.block_until_ready(state.step)
            self.close()

    def close(self) -> None:
        """Stop a trace that the end of the run cut short."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
