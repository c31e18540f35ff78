"""`launch/slurm.sh` and its job, with an srun and a scontrol that note their calls."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SUBMIT = str(ROOT / "launch" / "slurm.sh")
JOB = str(ROOT / "launch" / "slurm.sbatch")
TRAIN = ("python", "-m", "clara_jax.train", "--config=a b")


def sh(script: str, *arguments: str, **environment: str):
    return subprocess.run(
        ["bash", script, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=600,
        check=False,
    )


@pytest.fixture
def cluster(tmp_path):
    """Run a script where srun runs ``$STEP`` and every command is written down."""
    body = {
        "srun": 'bash -c "$STEP"',
        "scontrol": 'exit "${REQUEUE:-0}"',
        "sbatch": 'echo "restarts $CLARA_RESTARTS" >>"$CALLS"',
    }
    for name, what in body.items():
        path = tmp_path / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>"$CALLS"\n{what}\n')
        path.chmod(0o755)

    def run(script: str, *arguments: str, **environment: str):
        calls = tmp_path / "calls"
        calls.write_text("")
        path = f"{tmp_path}:{os.environ['PATH']}"
        told = {"SLURM_JOB_ID": "7", "CALLS": str(calls), "PATH": path, **environment}
        return sh(script, *arguments, **told), calls.read_text().splitlines()

    return run


def test_dry_run_prints_both_commands():
    options = (
        "--nodes=2",
        "--gpus-per-node",
        "4",
        "--time=12:00:00",
        "--partition=gpu",
    )
    more = ("--account=ours", "--cpus-per-gpu=8", "--sbatch-flag=--qos=low")
    done = sh(SUBMIT, *options, *more, "--restarts=3", "--dry-run", "--", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "export CLARA_RESTARTS=3",
        "sbatch --job-name=clara --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 "
        "--cpus-per-gpu=8 --time=12:00:00 --partition=gpu --account=ours --qos=low "
        f"{JOB} python -m clara_jax.train '--config=a b'",
        "# and in the job:",
        "srun --label --kill-on-bad-exit=0 --gpu-bind=none "
        "python -m clara_jax.train '--config=a b'",
    ]


def test_the_job_is_submitted(cluster):
    done, calls = cluster(SUBMIT, "--name=mine", "--", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert calls == [
        "sbatch --job-name=mine --nodes=1 --ntasks-per-node=8 --gpus-per-node=8 "
        f"{JOB} {' '.join(TRAIN)}",
        "restarts 100",
    ]


@pytest.mark.parametrize("status", [0, 1, 130])
def test_the_job_ends_as_training_did(cluster, status):
    done, calls = cluster(JOB, *TRAIN, STEP=f"exit {status}")
    assert done.returncode == status
    assert calls == [
        f"srun --label --kill-on-bad-exit=0 --gpu-bind=none {' '.join(TRAIN)}"
    ]


@pytest.mark.parametrize("status", [75, 134])
def test_a_stopped_run_goes_back_into_the_queue(cluster, status):
    step = f"exit {status}"
    done, calls = cluster(JOB, *TRAIN, STEP=step, SLURM_RESTART_COUNT="4")
    assert done.returncode == 0
    assert calls[1:] == ["scontrol requeue 7"]
    assert f"status {status}; restart 5" in done.stderr


def test_75_has_an_end(cluster):
    told = {"STEP": "exit 75", "SLURM_RESTART_COUNT": "4", "CLARA_RESTARTS": "4"}
    done, calls = cluster(JOB, *TRAIN, **told)
    assert (done.returncode, len(calls)) == (75, 1)


def test_a_job_that_may_not_be_requeued_says_75(cluster):
    done, _ = cluster(JOB, *TRAIN, STEP="exit 75", REQUEUE="1")
    assert done.returncode == 75


def test_the_job_outlives_the_signal_that_the_processes_get(cluster):
    step = "kill -TERM $(ps -o ppid= -p $PPID); sleep 0.3; exit 75"
    done, calls = cluster(JOB, *TRAIN, STEP=step)
    assert done.returncode == 0
    assert calls[1:] == ["scontrol requeue 7"]


@pytest.mark.parametrize(
    ("script", "arguments", "told"),
    [
        (SUBMIT, ["--nodes=2"], "no command; give it after --"),
        (SUBMIT, ["--nodes=two", "--", "x"], "--nodes needs a whole number, not 'two'"),
        (SUBMIT, ["--gpus", "2", "--", "x"], "no option '--gpus'"),
        (SUBMIT, ["--time"], "--time needs a value"),
        (JOB, [], "no command"),
    ],
)
def test_mistakes_are_told_in_one_line(script, arguments, told):
    done = sh(script, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
