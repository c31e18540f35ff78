"""`launch/local.py`: what the processes are told, how they end, and who hears of it."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAMS = Path(__file__).resolve().parent / "programs"
STAND_IN = str(PROGRAMS / "stand_in.py")


def local(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / "local.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch" / "local.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], text: str, times: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        times -= text in line
        if not times:
            return
    raise AssertionError(f"ended without {text!r}")


def test_four_simulated_devices_of_two_processes_add_up():
    done = local(
        "--processes=2", "--devices=2", "--", "python", str(PROGRAMS / "global_sum.py")
    )
    assert done.returncode == 0, done.stderr
    found = [line for line in done.stdout.splitlines() if "sum" in line]
    assert sorted(found) == [
        "[0] 2 of 4 devices, sum 10",
        "[1] 2 of 4 devices, sum 10",
    ]


def test_dry_run_prints_what_would_start():
    done = local(
        *("--processes=2", "--devices=3", "--port=4321", "--dry-run", "--"),
        *("python", "-m", "clara_jax.train", "--config.workdir=a b"),
        XLA_FLAGS="--xla_a=1 --xla_force_host_platform_device_count=8 --xla_b=2",
    )
    assert done.returncode == 0
    flags = "'--xla_a=1 --xla_b=2 --xla_force_host_platform_device_count=3'"
    assert done.stdout.splitlines() == [
        *(
            "JAX_COORDINATOR_ADDRESS=127.0.0.1:4321 JAX_NUM_PROCESSES=2 "
            f"JAX_PROCESS_ID={i} JAX_PLATFORMS=cpu XLA_FLAGS={flags} "
            "PYTHONUNBUFFERED=1 python -m clara_jax.train '--config.workdir=a b' &"
            for i in range(2)
        ),
        "wait",
    ]


@pytest.mark.parametrize(
    ("arguments", "told", "status"),
    [
        ([], "no command; give it after --", 2),
        (["--processes=0", "--", "x"], "--processes must be at least 1", 2),
        (["--devices=none", "--", "x"], "argument --devices: invalid int", 2),
        (["--pods=2", "--", "x"], "unrecognized arguments: --pods=2", 2),
        (["--restarts=-1", "--", "x"], "--restarts must not be negative", 2),
        (["--", "no-such-program"], "cannot start no-such-program", 1),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, told, status):
    done = local(*arguments)
    assert done.returncode == status
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_others_have_time_to_stop_and_the_first_status_is_kept():
    done = local(
        *("--processes=3", "--grace=60", "--", "python", STAND_IN),
        *("1:exit=7", "*:say=stopped by itself", "2:exit=9"),
    )
    assert done.returncode in (7, 9)  # whichever came first
    assert "[0] stopped by itself" in done.stdout
    assert "ended with status" in done.stderr


def test_whoever_does_not_stop_is_ended():
    done = local("--grace=0.2", "--", "python", STAND_IN, "0:wait", "1:exit=7")
    assert done.returncode == 7
    assert "process 1 ended with status 7; 1 more have 0.2 s to stop" in done.stderr
    assert "launch: ending process 0" in done.stderr


@pytest.mark.slow
def test_not_even_a_deaf_process_is_left(tmp_path):
    ready = tmp_path / "ready"
    words = (f"0:deaf={ready}", f"1:after={ready}", "1:exit=7")
    done = local("--grace=0.2", "--", "python", STAND_IN, *words)
    assert done.returncode == 7
    assert "[0] ready" in done.stdout


@pytest.mark.slow
def test_deaf_processes_are_ended_after_a_signal():
    process = started("--grace=0.2", "--", "python", STAND_IN, "*:deaf")
    wait_for(process, "ready", 2)
    process.terminate()
    _, err = process.communicate(timeout=600)
    assert process.returncode == 137
    assert "launch: ending process 0, 1" in err


def test_death_by_a_signal_is_128_more():
    done = local("--", "python", STAND_IN, "1:kill", "*:say=fine")
    assert done.returncode == 137
    assert "[0] fine" in done.stdout


def test_75_passes_through():
    assert local("--", "python", STAND_IN, "*:exit=75").returncode == 75


def test_restarts_go_on_after_75_and_only_then(tmp_path):
    seen = tmp_path / "seen"
    again = ("python", STAND_IN, "*:say=start", f"*:once={seen}", "*:exit=75")
    done = local("--restarts=3", "--", *again)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("start") == 4
    assert "launch: stopped and saved; start 2 of 4" in done.stderr

    done = local("--restarts=1", "--", "python", STAND_IN, "*:say=start", "*:exit=75")
    assert (done.returncode, done.stdout.count("start")) == (75, 4)

    done = local("--restarts=3", "--", "python", STAND_IN, "*:say=start", "*:exit=1")
    assert (done.returncode, done.stdout.count("start")) == (1, 2)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)]
)
def test_signals_reach_every_process_once(number, status):
    process = started(
        "--processes=3", "--restarts=5", "--", "python", STAND_IN, "*:wait"
    )
    wait_for(process, "ready", 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == status, err
    assert sorted(out.splitlines()) == [f"[{i}] signal {number:d}" for i in range(3)]


def test_a_progress_bar_is_one_line_in_a_log():
    done = local("--", "python", STAND_IN, "*:bar")
    assert sorted(done.stderr.splitlines()) == ["[0] step 2", "[1] step 2"]


def test_a_progress_bar_moves_on_a_terminal():
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "launch" / "local.py"), "--"),
            *("python", STAND_IN, "0:bar", "1:bar", "0:size"),
        ],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    out, _ = process.communicate(timeout=600)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert process.returncode == 0
    assert out == "[0] wide enough\n"
    assert "[0] step 2\r\n" in shown
    assert "[1] step 1" not in shown
