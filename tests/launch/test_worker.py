"""`launch/tpu_worker.sh` for real: start, follow, stop; and installing, on fakes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


class Worker:
    """A home of its own, with a Python where the script expects one."""

    def __init__(self, home: Path):
        self.home = home
        python = home / "clara_venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(ROOT / "launch" / "tpu_worker.sh"), *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "HOME": str(self.home)},
            timeout=600,
            check=False,
        )

    def status(self) -> str:
        return self("status").stdout.strip()

    def log(self) -> str:
        return (self.home / "clara_run" / "log").read_text()

    def until(self, line: str) -> None:
        # The log has the command as well, so the line as a whole.
        for _ in range(1200):
            if line in self.log().splitlines():
                return
            time.sleep(0.05)
        raise AssertionError(self.log())


@pytest.fixture
def worker(tmp_path):
    one = Worker(tmp_path / "home")
    yield one
    one("stop")


WAIT = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep(60)
"""


def test_a_run_is_started_followed_and_its_status_kept(worker):
    assert worker.status() == "absent"
    code = "print('it\\'s', 'a line'); raise SystemExit(3)"
    done = worker("start", "--", "python", "-c", code)
    assert done.returncode == 0, done.stderr
    followed = worker("follow")
    assert followed.returncode == 0
    assert "it's a line\n" in followed.stdout
    assert "python -c" in followed.stdout
    assert worker.status() == "exited 3"


def test_a_run_is_told_to_stop_and_a_second_one_refused(worker):
    worker("start", "--", "python", "-c", WAIT)
    worker.until("ready")
    assert worker.status() == "running"
    again = worker("start", "--", "python", "-c", "print(1)")
    assert again.returncode == 1
    assert again.stderr == "launch: a run is going on here; stop it first\n"
    assert worker("stop").returncode == 0
    assert worker.status() == "exited 75"


def test_a_run_that_was_killed_with_its_machine_died(worker):
    worker("start", "--", "python", "-c", WAIT)
    worker.until("ready")
    number = int((worker.home / "clara_run" / "pid").read_text())
    os.killpg(number, 9)
    for _ in range(1200):
        if worker.status() != "running":
            break
        time.sleep(0.05)
    assert worker.status() == "died"


def fake(folder: Path, name: str, body: str = "") -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f'#!/bin/bash\necho "{name} $*" >>"$CALLS"\n{body}\n')
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--bucket", "ours"],
            "gcsfuse --implicit-dirs --rename-dir-limit=100000 ours",
        ),
        (
            ["--nfs", "10.0.0.2:/vol", "--mount-at", "/data"],
            "mount -t nfs 10.0.0.2:/vol",
        ),
    ],
)
def test_install_mounts_and_brings_its_own_python(tmp_path, options, expected):
    tools, base, calls = tmp_path / "bin", tmp_path / "base", tmp_path / "calls"
    base.mkdir()
    fake(tools, "mountpoint", "exit 1")
    fake(tools, "sudo")
    fake(tools, "gcsfuse")
    fake(tools, "python3", f'[ "$2" = site ] && echo {base}; true')
    made = tmp_path / "home" / "clara_venv" / "bin"
    copy = f"mkdir -p {made} && cp {tools}/python {made}"
    fake(base / "bin", "uv", copy)
    fake(tools, "python")
    done = subprocess.run(
        ["bash", str(ROOT / "launch" / "tpu_worker.sh"), "install", *options],
        capture_output=True,
        text=True,
        env={
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(tmp_path / "home"),
            "CALLS": str(calls),
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = calls.read_text()
    assert expected in told
    lines = told.splitlines()
    at = [i for i, line in enumerate(lines) if "-m pip install" in line]
    assert lines[at[0]] == "python3 -m pip install --quiet --user uv"
    assert f"uv venv --quiet --seed --python 3.12 {tmp_path}/home/clara_venv" in lines
    assert lines[-1] == f"python -m pip install --quiet --editable {ROOT}[tpu]"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["dance"], "no command 'dance'"),
        (["start"], "start needs -- COMMAND"),
        (["follow", "--lines", "few"], "--lines needs a whole number, not 'few'"),
        (["install", "--speed", "1"], "install knows no option '--speed'"),
        (["install", "--bucket"], "--bucket needs a value"),
    ],
)
def test_mistakes_are_told_in_one_line(worker, arguments, told):
    done = worker(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
