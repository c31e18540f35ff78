"""The loop and its hooks, on a one-number model and a feed of numbered batches."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clara_jax.clara import Batch, Network
from clara_jax.commands import Interrupt
from clara_jax.errors import ClaraError
from clara_jax.train.checkpoints import Checkpoints
from clara_jax.train.hooks import (
    Checkpoint,
    Evaluate,
    JsonLines,
    Log,
    Profile,
    ProgressBar,
    StopOnNonFinite,
    TensorBoard,
    read_lines,
)
from clara_jax.train.loop import NotFinite, count_tokens, fit
from clara_jax.train.loop import Run as Progress
from clara_jax.train.state import TrainState, init_state
from clara_jax.train.step import make_train_step


def loss(network, batch, rng):
    x = batch.vectors[:, 0, 0, 0]
    noise = jax.random.normal(rng, x.shape)
    out = jnp.sum((network.adapters["memory"] * x - 2 * x + 0.1 * noise) ** 2)
    count = jnp.float32(x.size)
    return {"square": out}, {"square": count}, {"mean": (x.sum(), count)}


class NumberedFeed:
    """Batch i is drawn from seed i; `bad` batches hold NaN, `end` ends the data."""

    def __init__(self, bad=(), end=None):
        self.position = 0
        self.bad = bad
        self.end = end

    def __next__(self):
        if self.position == self.end:
            raise StopIteration
        self.position += 1
        x = np.random.default_rng(self.position).normal(size=(4, 1, 1, 1))
        if self.position in self.bad:
            x[:] = np.nan
        return Batch(vectors=x.astype(np.float32))

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.05))


@pytest.fixture(scope="module")
def step_function():
    step = make_train_step(loss, OPTIMIZER, lambda i: 0.05 + 0 * i)
    step = jax.jit(step, donate_argnums=0)

    def run(state, batch):
        return step(state, Network(None, {}, {}), batch)

    return run


def fresh():
    return init_state({"memory": jnp.zeros(())}, OPTIMIZER, jax.random.key(3))


def newest(checkpoints: Checkpoints) -> int | None:
    steps = [int(path.name) for path in checkpoints.folder.glob("[0-9]*")]
    return max(steps, default=None)


class Run:
    """A small assembly of all parts in a folder."""

    def __init__(self, folder, feed=None, steps=12, save_every=5, extra=()):
        self.feed = feed or NumberedFeed()
        self.checkpoints = Checkpoints(folder / "checkpoints", keep=2)
        state = fresh()
        found = newest(self.checkpoints)
        kept = None
        if found is not None:
            arrays, kept = self.checkpoints.restore(found, state.saved())
            state = TrainState.restored(arrays)
        self.state = state
        self.run = Progress(self.feed, steps, kept=kept)
        self.path = folder / "metrics.jsonl"
        self.lines = JsonLines(self.path, int(state.step))
        self.saver = Checkpoint(save_every, self.checkpoints, self.run.position)
        self.hooks = [
            Log(1, [self.lines], self.run),
            StopOnNonFinite(steps),
            self.saver,
            *extra,
        ]

    def fit(self, step_function, interrupt=None):
        try:
            if interrupt is not None:
                self.run.interrupt = interrupt
            return fit(self.state, step_function, self.run, self.hooks)
        finally:
            self.lines.close()
            self.checkpoints.close()

    @property
    def losses(self):
        return [(line["step"], line["loss"]) for line in read_lines(self.path)]


class StopAt:
    """Sends this process a signal after a step."""

    every = 1
    pauses = False

    def __init__(self, step, number=signal.SIGTERM):
        self.step = step
        self.number = number

    def __call__(self, state, metrics):
        if metrics["step"] == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_resumes_with_the_same_bits(tmp_path, step_function, number):
    whole = Run(tmp_path / "whole")
    final = whole.fit(step_function)
    assert [s for s, _ in whole.losses] == list(range(1, 13))

    first = Run(tmp_path / "parts", extra=[StopAt(7, number)])
    with Interrupt().listen() as interrupt:
        state = first.fit(step_function, interrupt)
    assert interrupt.signal == signal.Signals(number).name
    assert int(state.step) == 7
    # Killed without saving: the newest checkpoint is that of step 5.
    second = Run(tmp_path / "parts")
    assert int(second.state.step) == 5 and second.feed.position == 5
    assert [s for s, _ in second.losses] == [1, 2, 3, 4, 5]
    again = second.fit(step_function)
    assert second.losses == whole.losses
    jax.tree.map(np.testing.assert_array_equal, again.saved(), final.saved())


def test_retention_keeps_the_newest(tmp_path, step_function):
    Run(tmp_path, steps=12, save_every=3).fit(step_function)
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert kept == [9, 12]


@pytest.mark.parametrize("bad", [4, 5, 12])
def test_non_finite_step_stops_and_leaves_the_state_before_it(
    tmp_path, step_function, bad
):
    run = Run(tmp_path, NumberedFeed(bad=[bad]))
    with pytest.raises(NotFinite, match=rf"not finite at step {bad}; lower") as caught:
        run.fit(step_function)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    saved = Checkpoint(1, checkpoints, run.run.position).save(caught.value.state)
    checkpoints.close()
    assert saved == bad - 1
    _, extra = Checkpoints(tmp_path / "checkpoints").restore(saved, fresh().saved())
    assert extra["feed"] == {"position": bad - 1}
    # The line of the bad step says null, and is JSON.
    assert next(loss for step, loss in run.losses if step == bad) is None


def test_data_that_end_early_are_named(tmp_path, step_function):
    with pytest.raises(ClaraError, match="data ends before step 4 of 12"):
        Run(tmp_path, NumberedFeed(end=3)).fit(step_function)


def test_evaluation_is_logged_and_pauses_the_clock(tmp_path, step_function):
    feed = NumberedFeed()
    run = Progress(feed, 7)
    seen = []

    class Evaluator:
        def run(self, state):
            seen.append(int(state.step))
            run._begin -= 100.0  # an evaluation that takes 100 s ...
            run._paused += 100.0  # ... and is paused for them
            yield "accuracy", 0.5

    lines = JsonLines(tmp_path / "metrics.jsonl")
    hooks = [Log(2, [lines], run), Evaluate(3, [Evaluator()], [lines])]
    fit(fresh(), step_function, run, hooks)
    lines.close()
    assert seen == [3, 6, 7]
    read = read_lines(tmp_path / "metrics.jsonl")
    assert [x["step"] for x in read if "eval/accuracy" in x] == [3, 6, 7]
    assert read[-2]["seconds"] < 100


def test_a_full_disk_names_itself_and_keeps_what_is_there(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    state = fresh()
    checkpoints.save(1, state.saved(), {"feed": 1})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(ClaraError, match="disk is full.*earlier checkpoints stay"):
        checkpoints.save(2, state.saved(), {})
    checkpoints.close()
    again = Checkpoints(tmp_path)
    assert newest(again) == 1
    again.save(2, state.saved(), {"feed": 2})
    again.wait()
    assert again.restore(2, state.saved())[1] == {"feed": 2}


def test_a_write_that_fails_halfway_leaves_the_earlier_checkpoint(tmp_path, capfd):
    resource = pytest.importorskip("resource")
    checkpoints = Checkpoints(tmp_path)
    noise = np.random.default_rng(0).normal(size=100_000)
    checkpoints.save(1, {"noise": noise}, {"feed": 1})
    checkpoints.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(ClaraError, match="2: cannot be written.*checkpoints stay"):
            checkpoints.save(2, {"noise": noise}, {})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    arrays, _ = Checkpoints(tmp_path).restore(1, {"noise": noise})
    np.testing.assert_array_equal(arrays["noise"], noise)
    assert "Traceback" not in capfd.readouterr().err


def test_a_damaged_checkpoint_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, fresh().saved(), {})
    checkpoints.wait()
    for path in (tmp_path / "1" / "arrays").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(ClaraError, match=r"1: the checkpoint cannot be read"):
        checkpoints.restore(1, fresh().saved())


def test_metrics_are_cut_at_the_step_and_at_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 4}\n{"step": 2}\n{"st')
    JsonLines(path, step=3).close()
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n{"step": 2}\n'


def test_a_full_disk_under_the_metrics_is_one_line(tmp_path, monkeypatch):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.close()

    class Full:
        name = str(tmp_path / "metrics.jsonl")

        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(lines, "_file", Full())
    with pytest.raises(ClaraError, match=r"metrics.jsonl: the disk is full"):
        lines.write(1, {"loss": 1.0})


def test_profile_writes_a_trace_of_its_steps(tmp_path):
    profile = Profile(tmp_path, start=2, steps=1)
    for step in (1, 2, 3):
        profile(fresh(), {"step": step})
    assert any(path.is_file() for path in tmp_path.rglob("*"))


def test_tokens_are_counted_without_padding():
    from clara_jax.testing import random_batch

    batch = random_batch("end_to_end", rows=2)
    expected = sum(
        int(t.mask.sum()) for t in (batch.prompt, batch.question, batch.candidates)
    )
    assert count_tokens(batch) == expected


def test_progress_bar_shows_loss_and_evaluations(capsys):
    bar = ProgressBar("scp", 3, 10)
    bar(None, {})
    bar.write(4, {"loss": 1.25, "tokens_per_s": 1234.0})
    bar.write(4, {"eval/recall@1": 0.5})
    bar(None, {})
    bar._bar.refresh()
    bar.close()
    shown = capsys.readouterr().err
    assert "step 4: recall@1 0.5000" in shown
    assert "loss 1.2500, 1,234 tokens/s" in shown and "5/10" in shown


def test_tensorboard_writes_event_files(tmp_path):
    pytest.importorskip("tensorboardX")
    writer = TensorBoard(tmp_path)
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_missing_package_is_named_with_its_cure(monkeypatch, tmp_path):
    import sys

    from clara_jax.train.hooks import WeightsAndBiases

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ClaraError, match=r"hooks.wandb.*clara_jax\[wandb\]"):
        WeightsAndBiases(tmp_path, {})
