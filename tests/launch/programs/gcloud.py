"""A gcloud that plays a TPU service in the folder $CLOUD, and writes down every call.

``$CLOUD/lives`` holds one line for each request that will be granted: the states that
it goes through, one a look; the last one stays. When a file ``$CLOUD/preempt`` appears
the present machines die; the request itself shows it two looks later. Workers are
folders; ssh runs the command in each, and fails as often as ``$CLOUD/deaf`` says.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["CLOUD"])
LIFE = CLOUD / "life.json"
WORKERS = 2


def fail(text: str, code: int = 1) -> None:
    print(f"ERROR: (gcloud.compute.tpus) {text}", file=sys.stderr)
    sys.exit(code)


def life() -> dict:
    if not LIFE.exists():
        fail("NOT_FOUND: Resource was not found.")
    return json.loads(LIFE.read_text())


def homes() -> list[Path]:
    return [CLOUD / f"worker{i}" for i in range(WORKERS)]


def end_machines() -> None:
    for home in homes():
        number = home / "clara_run" / "pid"
        if number.exists() and not (home / "clara_run" / "status").exists():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(number.read_text()), signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)


def state() -> str:
    now = life()
    if (CLOUD / "preempt").exists():
        (CLOUD / "preempt").unlink()
        end_machines()
        now["node"] = "PREEMPTED"
        now["states"] = ["ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDED"]
    shown = now["states"][0]
    if len(now["states"]) > 1:
        now["states"].pop(0)
    now["shown"] = shown
    LIFE.write_text(json.dumps(now))
    return shown


def queued(verb: str) -> None:
    if verb == "create":
        if LIFE.exists():
            fail("ALREADY_EXISTS: Resource already exists.")
        lives = (CLOUD / "lives").read_text().splitlines()
        (CLOUD / "lives").write_text("\n".join(lives[1:]))
        made = {"states": lives[0].split(), "shown": "", "node": "READY"}
        LIFE.write_text(json.dumps(made))
    elif verb == "describe":
        print("a warning, on the other stream", file=sys.stderr)
        print("no capacity" if "error.message" in sys.argv[6] else state())
    elif verb == "delete":
        life()
        end_machines()
        LIFE.unlink()


def machines() -> list[Path]:
    now = life()
    dead = (CLOUD / "preempt").exists() or now["node"] != "READY"
    if dead or now["shown"] != "ACTIVE":
        fail("the TPU is not READY")
    deaf = CLOUD / "deaf"
    if deaf.exists() and int(deaf.read_text()):
        deaf.write_text(str(int(deaf.read_text()) - 1))
        fail("ssh: connection timed out", 255)
    for home in homes():
        python = home / "clara_venv" / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        # Nothing is installed: pip is left out.
        python.write_text(
            f'#!/bin/sh\n[ "$2" = pip ] && exit\nexec {sys.executable} "$@"\n'
        )
        python.chmod(0o755)
    return homes()


def node(verb: str, words: list[str]) -> int:
    if verb == "describe":
        print(life()["node"])
        return 0
    flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
    chosen = machines()
    if flags["worker"] != "all":
        chosen = [chosen[int(flags["worker"])]]
    if verb == "scp":
        source, target = (word for word in words if not word.startswith("--"))
        for home in chosen:
            shutil.copy(source, home / target.split(":")[1])
        return 0
    status = 0
    for number, home in enumerate(chosen):
        done = subprocess.run(
            ["bash", "-c", flags["command"]],
            cwd=home,
            env={**os.environ, "HOME": str(home), "WORKER": str(number)},
            check=False,
        )
        status = status or done.returncode
    return status


with (CLOUD / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\n")
assert sys.argv[1:3] == ["compute", "tpus"]
if sys.argv[3] == "queued-resources":
    queued(sys.argv[4])
else:
    sys.exit(node(sys.argv[4], [word for word in sys.argv[5:] if word != "clara"]))
