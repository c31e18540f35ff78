#!/usr/bin/env python3
"""Rehearse a pod launch on this machine: N processes, each with M simulated devices.

    launch/local.py --processes 4 --devices 2 -- COMMAND ...

Each process is told by environment what a pod tells its hosts: where process 0 listens,
how many there are, and which one it is. Every line they print gets their number. Needs
nothing but Python's own library, on Linux or macOS.

Exit status: 0 when all ended well, else that of the first process that did not, 128 + n
where signal n ended it; 75 means stopped and saved: start the same command again, as
`--restarts` does. 2: wrong arguments.
"""

import argparse
import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn

PREEMPTED = 75
"""Exit status of a process that was told to stop and saved its state (EX_TEMPFAIL)."""

FLAG = "--xla_force_host_platform_device_count"
END = 5.0
"""Seconds between asking a process to end and ending it."""
BAR_EVERY = 10.0
"""Seconds between copies of process 0's progress bar where nobody watches it move."""

_CURSOR = re.compile(r"\x1b\[[0-9;]*[A-HJKSTfsu]")


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Print `message` and exit with status 2."""
        self.exit(2, f"error: {message}; launch/local.py --help explains\n")


class Screen:
    """Where the lines of all processes meet, and one progress bar below them."""

    def __init__(self, out: IO[str], err: IO[str]):
        """Write to `out` and `err`; the bar goes to `err` if it is a terminal."""
        self._streams = {"out": out, "err": err}
        self._live = err.isatty()
        self._lock = threading.Lock()
        self._bar = ""
        self._copied = time.monotonic()

    def line(self, stream: str, text: str) -> None:
        """Print a whole line to ``out`` or ``err``."""
        with self._lock:
            self._wipe()
            self._write(stream, f"{text}\n")
            if self._bar:
                self._write("err", self._bar)

    def bar(self, text: str) -> None:
        """Show `text` as the bar; without a terminal, now and then as a line."""
        with self._lock:
            if self._live:
                self._wipe()
                self._bar = text
                self._write("err", text)
            elif time.monotonic() - self._copied > BAR_EVERY:
                self._copied = time.monotonic()
                self._write("err", f"{text}\n")

    def no_bar(self) -> None:
        """Take the bar away: what follows is a line that may repeat it."""
        with self._lock:
            self._wipe()
            self._bar = ""

    def _wipe(self) -> None:
        if self._bar:
            self._write("err", "\r\x1b[K")

    def _write(self, stream: str, text: str) -> None:
        try:
            self._streams[stream].write(text)
            self._streams[stream].flush()
        except (BrokenPipeError, ValueError):
            pass  # nobody reads any more; the processes go on


class Reader(threading.Thread):
    """Copies what one process writes to one stream onto the screen, numbered."""

    def __init__(self, number: int, fd: int, stream: str, screen: Screen):
        super().__init__(daemon=True)
        self._number = number
        self._fd = fd
        self._stream = stream
        self._screen = screen

    def run(self) -> None:
        """Read until the process closes its end."""
        pending = ""
        while True:
            try:
                chunk = os.read(self._fd, 65536)
            except OSError:  # how a terminal says that nobody is left
                break
            if not chunk:
                break
            text = pending + chunk.decode("utf-8", errors="replace")
            *lines, pending = text.replace("\r\n", "\n").split("\n")
            for line in lines:
                self._line(line)
            if "\r" in pending and self._number == 0:
                shown = last_written(pending)
                if shown:
                    self._screen.bar(f"[0] {shown}")
        if pending:
            self._line(pending)
        os.close(self._fd)

    def _line(self, text: str) -> None:
        shown = last_written(text)
        if "\r" in text:
            if self._number == 0:
                self._screen.no_bar()
            if not shown:
                return
        self._screen.line(self._stream, f"[{self._number}] {shown}")


def last_written(text: str) -> str:
    """What a terminal shows of a line that was written over with carriage returns."""
    parts = [part.rstrip() for part in _CURSOR.sub("", text).split("\r")]
    return next((part for part in reversed(parts) if part), "")


class Group:
    """All processes of one start."""

    def __init__(self, screen: Screen):
        self._screen = screen
        self._readers: list[Reader] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start one more process; it gets no input and a session of its own.

        A session of its own, so that Ctrl-C reaches it once, through `send`.
        """
        number = len(self.processes)
        out, out_end = os.pipe()
        err, err_end = os.pipe()
        if number == 0 and sys.stderr.isatty():
            # Progress bars move for a terminal only.
            os.close(err)
            os.close(err_end)
            err, err_end = terminal()
        try:
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out_end,
                stderr=err_end,
                start_new_session=True,
            )
        finally:
            os.close(out_end)
            os.close(err_end)
        self.processes.append(process)
        for fd, stream in ((out, "out"), (err, "err")):
            reader = Reader(number, fd, stream, self._screen)
            reader.start()
            self._readers.append(reader)

    def send(self, number: int, alive: bool = True) -> None:
        """Send signal `number` to all and their children; `alive`: if still running."""
        for process in self.processes:
            if not alive or process.poll() is None:
                # It may end in between.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, number)

    def running(self) -> list[int]:
        """Numbers of processes that have not ended."""
        return [i for i, one in enumerate(self.processes) if one.poll() is None]

    def close(self) -> None:
        """End whatever is left, and print the last lines."""
        self.send(signal.SIGKILL, alive=False)
        for process in self.processes:
            process.wait()
        for reader in self._readers:
            reader.join(END)
        self._screen.no_bar()


def terminal() -> tuple[int, int]:
    """Both ends of a new terminal, as wide as this one without the number."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
        rows, columns = max(24, size.lines), max(40, size.columns - 5)
        packed = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, packed)
    except OSError:
        pass
    return ours, theirs


def environments(
    processes: int, devices: int, port: int, flags: str
) -> list[dict[str, str]]:
    """What each process is told.

    Args:
      processes: how many. devices: simulated ones of each. port: of process 0.
      flags: the present ``XLA_FLAGS``; a number of devices in it is replaced.

    Returns:
      Variables of each process.
    """
    kept = [word for word in flags.split() if word.split("=")[0] != FLAG]
    return [
        {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(number),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": " ".join([*kept, f"{FLAG}={devices}"]),
            "PYTHONUNBUFFERED": "1",
        }
        for number in range(processes)
    ]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run_once(
    command: Sequence[str],
    told: Sequence[Mapping[str, str]],
    grace: float,
    stopped: list[int],
) -> int:
    """Start all processes and wait for them.

    Args:
      command, told: what each one runs, and with which environment.
      grace: seconds to stop in after a signal, or once one has ended badly.
      stopped: signals that came from outside are added, and passed on.

    Returns:
      The exit status of the first that ended badly, or 0.
    """
    screen = Screen(sys.stdout, sys.stderr)
    group = Group(screen)

    def forward(number: int, _frame: object) -> None:
        stopped.append(number)
        group.send(number)

    before = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}
    status = 0
    deadline = None
    ended: set[int] = set()
    try:
        for environment in told:
            if not stopped:  # a signal may come before all have started
                group.start(command, environment)
        while True:
            running = group.running()
            for number in sorted(set(range(len(group.processes))) - {*running, *ended}):
                ended.add(number)
                code = group.processes[number].returncode
                code = 128 - code if code < 0 else code
                if not code or status:
                    continue
                status, deadline = code, time.monotonic() + grace
                more = f"; {len(running)} more have {grace:g} s to stop"
                what = f"launch: process {number} ended with status {code}"
                screen.line("err", what + (more if running else ""))
            if not running:
                return status
            if stopped and deadline is None:
                deadline = time.monotonic() + grace
            if deadline is not None and time.monotonic() > deadline:
                names = ", ".join(map(str, running))
                screen.line("err", f"launch: ending process {names}")
                group.send(signal.SIGTERM)
                last = time.monotonic() + END
                while group.running() and time.monotonic() < last:
                    time.sleep(0.05)
                return status or 128 + signal.SIGKILL
            time.sleep(0.05)
    finally:
        group.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line: options, and the command after ``--``."""
    parser = Parser(
        prog="launch/local.py",
        description="Start a command as N processes with M simulated devices each.",
        usage="%(prog)s [options] -- COMMAND ...",
    )
    add = parser.add_argument
    add("--processes", type=int, default=2, metavar="N")
    add("--devices", type=int, default=1, metavar="M", help="simulated ones of each")
    wait = "seconds to stop in after a signal, or when another ended badly (60)"
    add("--grace", type=float, default=60.0, metavar="S", help=wait)
    again = f"start all again, up to K times, after exit status {PREEMPTED}"
    add("--restarts", type=int, default=0, metavar="K", help=again)
    add("--port", type=int, default=0, help="of process 0; a free one by default")
    add("--dry-run", action="store_true", help="print the commands, start nothing")
    given = list(arguments)
    cut = given.index("--") if "--" in given else len(given)
    own, command = given[:cut], given[cut + 1 :]
    options = parser.parse_args(own)
    for name, least in (("processes", 1), ("devices", 1), ("grace", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}")
    if options.restarts < 0 or not 0 <= options.port < 65536:
        parser.error("--restarts must not be negative, --port be below 65536")
    if not command:
        parser.error("no command; give it after --")
    return options, command


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    options, command = parse(arguments)
    for start in range(options.restarts + 1):
        told = environments(
            options.processes,
            options.devices,
            options.port or free_port(),
            os.environ.get("XLA_FLAGS", ""),
        )
        if options.dry_run:
            for one in told:
                words = [f"{name}={shlex.quote(value)}" for name, value in one.items()]
                print(*words, shlex.join(command), "&")
            print("wait")
            return 0
        # The Python that runs this, also outside an activated environment.
        program = sys.executable if command[0] in ("python", "python3") else command[0]
        stopped: list[int] = []
        try:
            status = run_once([program, *command[1:]], told, options.grace, stopped)
        except OSError as error:
            where = Path(command[0])
            print(f"error: cannot start {where}: {error.strerror}", file=sys.stderr)
            return 1
        if status != PREEMPTED or stopped or start == options.restarts:
            return status
        print(
            f"launch: stopped and saved; start {start + 2} of {options.restarts + 1}",
            file=sys.stderr,
        )
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
