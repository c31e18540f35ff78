"""Points that reach Weights & Biases, with a stand-in for its service."""

import contextlib
import sys
import types

import pytest

from clara_jax.config import HooksConfig, RunConfig
from clara_jax.errors import ClaraError
from clara_jax.train import hooks
from clara_jax.train.run_folder import RunFolder
from clara_jax.train.runner import _writers as make_writers


class Service(types.ModuleType):
    """What wandb keeps: rows by project and id; a step can only be appended."""

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.calls = {}, []

    def init(self, **settings):
        self.calls.append(settings)
        rows = self.runs.setdefault((settings["project"], settings["id"]), {})
        return Connection(rows)


class Connection:
    """One process's: a row waits until it is committed; lower steps are refused."""

    def __init__(self, rows):
        self.rows, self.waits = rows, {}
        self.step = self.starting_step = max(rows, default=-1) + 1

    def log(self, values, step, commit=None):
        assert step >= self.step, "wandb would drop it, with a warning"
        if step > self.step:
            self.commit()
        self.step = step
        self.waits |= values
        if commit:
            self.commit()

    def commit(self):
        if self.waits:
            self.rows[self.step] = dict(self.waits)
        self.waits = {}
        self.step += 1

    def finish(self):
        self.commit()


@pytest.fixture
def service(monkeypatch):
    for name in ("PROJECT", "NAME", "DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    made = Service()
    monkeypatch.setitem(sys.modules, "wandb", made)
    return made


@pytest.fixture
def start(tmp_path):
    """Return a function that begins or goes on, as the runner does."""
    with contextlib.ExitStack() as stack:

        def start(newest=None, project=""):
            settings = HooksConfig(tensorboard=False, wandb=True, wandb_project=project)
            config = RunConfig("scp", str(tmp_path), "b", hooks=settings)
            made = []
            for writer in make_writers(config, RunFolder(tmp_path), newest, 8):
                if not isinstance(writer, hooks.WeightsAndBiases):
                    stack.callback(writer.close)
                made.append(writer)
            return made[1:]

        yield start


def steps(writers, first, last):
    """Write steps, each followed by an evaluation."""
    for step in range(first, last + 1):
        for writer in writers:
            writer.write(step, {"loss": 1 / step})
        for writer in writers:
            writer.write(step, {"eval/loss": 2 / step})


WHOLE = {step: {"loss": 1 / step, "eval/loss": 2 / step} for step in range(1, 9)}


@pytest.mark.parametrize("saved", [None, 2, 5])
def test_killed_and_started_again(service, start, tmp_path, saved):
    """The newest checkpoint is that of no step, an earlier one, the last written."""
    steps(start(), 1, 5)
    writers = start(saved)
    steps(writers, (saved or 0) + 1, 8)
    for writer in writers:
        writer.close()
    ((key, rows),) = service.runs.items()
    assert rows == WHOLE
    assert key == ("clara_jax", (tmp_path / "wandb_id").read_text())


def test_a_step_is_whole_or_absent(service, start):
    writers = start()
    steps(writers, 1, 2)
    writers[1].write(3, {"loss": 1 / 3})
    (rows,) = service.runs.values()
    assert rows == {1: WHOLE[1], 2: WHOLE[2]}


def test_what_the_service_has_lost_is_sent_again(service, start):
    """So it is offline, where a restart begins with an empty folder."""
    steps(start(), 1, 5)
    service.runs.clear()
    steps(start(4), 5, 6)
    (rows,) = service.runs.values()
    assert rows == {step: WHOLE[step] for step in range(1, 6)}


def test_values_that_are_not_finite_are_sent_again(service, start):
    writers = start()
    for writer in writers:
        writer.write(1, {"loss": float("inf"), "rate": 0.5})
    start(1)[1].close()
    (rows,) = service.runs.values()
    assert rows[1]["rate"] == 0.5 and rows[1]["loss"] != rows[1]["loss"]


def test_config_before_environment_before_default(
    service, start, tmp_path, monkeypatch
):
    def call(project=""):
        start(project=project)
        last = service.calls[-1]
        return last["project"], last["name"], last["dir"]

    assert call() == ("clara_jax", tmp_path.name, str(tmp_path))
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_NAME", "third try")
    monkeypatch.setenv("WANDB_DIR", "/scratch")
    assert call() == ("theirs", "third try", "/scratch")
    assert call("ours")[0] == "ours"
    assert not {"mode", "entity"} & set(service.calls[-1])


def test_without_a_key_is_one_line(service, start, monkeypatch):
    def refuse(**_):
        raise RuntimeError("api_key not configured (no-tty).\nCall wandb.login")

    monkeypatch.setattr(service, "init", refuse)
    with pytest.raises(ClaraError, match=r"api_key not.*'wandb login'") as caught:
        start()
    assert "\n" not in str(caught.value)
