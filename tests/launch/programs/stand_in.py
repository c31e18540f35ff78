"""Stands for a training command: what it is told decides how each process ends.

Arguments are PROCESS:ACTION, done in turn by the process of that number (``*``: all):
``exit=N``, ``kill`` (by signal 9), ``wait`` (for a signal, then exit 75 or 130),
``deaf`` (goes on after signals), ``after=PATH`` (waits for a file there, which
``deaf=PATH`` writes), ``bar`` (a progress bar in two steps), ``say=TEXT``,
``size`` (is there a terminal to draw on),
``once=PATH`` (only the first time: skips the rest when the file is there).
"""

import os
import signal
import sys
import time
from pathlib import Path

number = os.environ["JAX_PROCESS_ID"]


def stop(signum: int, _frame: object) -> None:
    print(f"signal {signum}", flush=True)
    sys.exit(130 if signum == signal.SIGINT else 75)


def act(action: str) -> None:
    name, _, value = action.partition("=")
    if name == "exit":
        sys.exit(int(value))
    elif name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "wait":
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, stop)
        print("ready", flush=True)
        time.sleep(120)
    elif name == "deaf":
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_IGN)
        print("ready", flush=True)
        if value:
            Path(value).touch()
        time.sleep(120)
    elif name == "after":
        while not Path(value).exists():
            time.sleep(0.05)
    elif name == "bar":
        print("\rstep 1", end="", file=sys.stderr)
        print("\rstep 2", file=sys.stderr)
    elif name == "size":
        size = os.get_terminal_size(2)
        print("wide enough" if min(size.lines, size.columns) >= 24 else size)
    elif name == "say":
        print(value)
    elif name == "once":
        path = Path(f"{value}.{number}")
        if path.exists():
            sys.exit(0)
        path.touch()


for word in sys.argv[1:]:
    whose, _, action = word.partition(":")
    if whose in ("*", number):
        act(action)
