"""Real processes, each with simulated devices: one run, its loss, its resumption."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from fast_compiles import FAST_COMPILES

from clara_jax.train import read_lines

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / "launch" / "local.py"
STEPS = 16


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Processes:
    """The training command, once per process; or once through ``launch/local.py``.

    `own` holds more overrides of single processes, by number.
    """

    def __init__(
        self,
        folder,
        workdir,
        count,
        devices,
        *overrides,
        stage="scp",
        local=False,
        own=MappingProxyType({}),
    ):
        port = free_port()
        train = [sys.executable, "-m", "clara_jax.train"]
        train += [f"--config=configs/tiny.py:{stage}", f"--config.workdir={workdir}"]
        train += overrides
        count_flag = f"--xla_force_host_platform_device_count={devices}"
        if local:
            sizes = [f"--processes={count}", f"--devices={devices}"]
            commands = [[sys.executable, str(LOCAL), *sizes, "--grace=300", "--"]]
            commands[0] += train
        elif count == 1:
            commands = [train]
        else:
            train += [f"--coordinator=127.0.0.1:{port}", f"--processes={count}"]
            commands = [
                [*train, f"--process={i}", *own.get(i, ())] for i in range(count)
            ]
        environment = {
            **os.environ,
            "XLA_FLAGS": " ".join((count_flag, *FAST_COMPILES)),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "jit"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.logs, self.running = [], []
        for i, command in enumerate(commands):
            self.logs.append(folder / f"{workdir.name}.{port}.{i}")
            with self.logs[-1].open("w") as stream:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdout=stream,
                    stderr=stream,
                )
            self.running.append(process)

    def wait(self, limit=400):
        """Exit statuses; whoever takes longer than `limit` is ended."""
        end = time.monotonic() + limit
        statuses = []
        for process in self.running:
            try:
                statuses.append(process.wait(max(end - time.monotonic(), 0)))
            except subprocess.TimeoutExpired:
                process.kill()
                statuses.append("hangs")
        return statuses

    def text(self, index):
        return self.logs[index].read_text(errors="replace")

    def finish(self):
        statuses = self.wait()
        assert statuses == [0] * len(statuses), self.text(0)[-3000:]

    def until(self, workdir, steps, limit=300):
        """Wait for a number of logged steps."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if any(process.poll() is not None for process in self.running):
                break
            path = workdir / "metrics.jsonl"
            if path.exists() and len(read_lines(path)) >= steps:
                return
            time.sleep(0.05)
        pytest.fail(f"too few steps: {self.text(0)[-3000:]}")


def numbers(workdir):
    names = ("step", "loss", "grad_norm", "tokens")
    lines = read_lines(workdir / "metrics.jsonl")
    return np.array([[line[n] for n in names] for line in lines if "loss" in line])


def settings(steps=STEPS):
    return (f"--config.optim.steps={steps}", "--config.hooks.checkpoint_every=2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of all runs, and the numbers of one process."""
    folder = tmp_path_factory.mktemp("processes")
    Processes(folder, folder / "whole", 1, 1, *settings()).finish()
    return folder, numbers(folder / "whole")


def adapters(workdir):
    from clara_jax.convert import load_model

    return load_model(workdir).adapters


@pytest.mark.slow
def test_two_processes_compute_what_one_computes(whole):
    folder, expected = whole
    workdir = folder / "of_2"
    Processes(folder, workdir, 2, 2, *settings(), "--config.mesh.fsdp=2").finish()
    np.testing.assert_allclose(numbers(workdir), expected, rtol=1e-5)
    assert (
        adapters(workdir)["memory"].shape == adapters(folder / "whole")["memory"].shape
    )


@pytest.mark.slow
def test_four_preempted_processes_go_on_as_two(whole):
    """4 of 2 devices, told to stop; 2 of 1, one of which is; 2 of 1 to the end."""
    folder, expected = whole
    workdir = folder / "preempted"
    mesh = "--config.mesh.tensor=2"
    first = Processes(folder, workdir, 4, 2, *settings(), mesh, local=True)
    first.until(workdir, 5)
    first.running[0].send_signal(signal.SIGTERM)
    done = stopped(first, workdir, [75])

    second = Processes(folder, workdir, 2, 1, *settings())
    second.until(workdir, done + 2)
    second.running[1].send_signal(signal.SIGTERM)
    assert f"going on after step {done} of {STEPS}" in second.text(0)
    done = stopped(second, workdir, [75, 75])

    third = Processes(folder, workdir, 2, 1, *settings(), local=True)
    third.finish()
    assert f"going on after step {done} of {STEPS}" in third.text(0)
    np.testing.assert_allclose(numbers(workdir), expected, rtol=1e-5)


def stopped(run, workdir, expected):
    """Steps that a run has done when all its processes have stopped."""
    statuses = run.wait()
    assert statuses != [0] * len(statuses), "it was over before the signal came"
    assert statuses == expected, run.text(0)[-3000:]
    done = len(numbers(workdir))
    assert done < STEPS
    return done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "number", "message"),
    [
        (0, signal.SIGKILL, "leader task was preempted/died"),
        (1, signal.SIGKILL, r"Task 1 heartbeat timeout|unhealthy .*:\n1\n"),
        (1, signal.SIGSTOP, r"Task 1 heartbeat timeout|unhealthy .*:\n1\n"),
    ],
)
def test_a_lost_process_is_named_within_a_minute(whole, victim, number, message):
    folder, _ = whole
    workdir = folder / f"lost_{victim}_{number}"
    run = Processes(folder, workdir, 2, 2, *settings(steps=100_000))
    run.until(workdir, 3)
    run.running[victim].send_signal(number)
    other = 1 - victim
    try:
        assert run.running[other].wait(60) == -signal.SIGABRT
        assert re.search(message, run.text(other)), run.text(other)[-3000:]
    finally:
        for process in run.running:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_bad_input_of_all_processes_ends_them_together(whole):
    folder, _ = whole
    workdir = folder / "refused"
    bad = "--config.data.train=/nowhere.jsonl"
    run = Processes(folder, workdir, 2, 2, *settings(), bad)
    statuses = run.wait()
    assert statuses == [1, 1], run.text(0)[-3000:]
    for index in range(2):
        assert "/nowhere.jsonl" in run.text(index)
        assert "Traceback" not in run.text(index)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_bad_input_of_one_process_ends_all(whole, index):
    folder, _ = whole
    workdir = folder / f"refused_{index}"
    bad = "--config.data.train=/nowhere.jsonl"
    run = Processes(folder, workdir, 2, 2, *settings(), own={index: [bad]})
    statuses = run.wait()
    assert statuses[index] == 1, run.text(index)[-3000:]
    assert statuses[1 - index] in (1, -signal.SIGABRT), run.text(1 - index)[-3000:]
    assert "error: /nowhere.jsonl" in run.text(index)
    assert "Traceback" not in run.text(index)


@pytest.mark.slow
def test_stage_3_with_cached_vectors_and_evaluation(whole):
    folder, _ = whole
    for name, count in (("alone", 1), ("both", 2)):
        run = Processes(
            folder,
            folder / name,
            count,
            2,
            f"--config.init_from={folder / 'whole'}",
            "--config.backbone=",
            "--config.tokenizer=",
            "--config.data.cache_vectors=True",
            stage="end_to_end",
        )
        run.finish()
    expected = numbers(folder / "alone")
    np.testing.assert_allclose(numbers(folder / "both"), expected, rtol=1e-5)
    last = [read_lines(folder / n / "metrics.jsonl")[-1] for n in ("alone", "both")]
    assert last[0].keys() == last[1].keys()
    for key in last[0]:
        if key.startswith("eval/"):
            assert last[1][key] == pytest.approx(last[0][key], rel=1e-4), key


@pytest.mark.slow
def test_a_quantized_backbone_of_two_processes_is_that_of_one(tmp_path):
    """Made on the devices in stage 1, read through the host in stage 3."""
    both = [(1, "alone", ()), (2, "both", ("--config.mesh.fsdp=2",))]
    for count, name, mesh in both:
        given = (*settings(4), "--config.quantize=nf4", *mesh)
        Processes(tmp_path, tmp_path / f"{name}_scp", count, 2, *given).finish()
        Processes(
            tmp_path,
            tmp_path / name,
            count,
            2,
            *given,
            f"--config.init_from={tmp_path / 'alone_scp'}",
            "--config.backbone=",
            "--config.tokenizer=",
            "--config.data.cache_vectors=True",
            "--config.data.eval=",
            stage="end_to_end",
        ).finish()
    for stage in ("_scp", ""):
        alone, shared = (numbers(tmp_path / f"{n}{stage}") for _, n, _ in both)
        np.testing.assert_allclose(shared, alone, rtol=1e-5)
