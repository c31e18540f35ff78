"""Processes that watch over each other, so that none waits for one that is gone."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from jax._src import distributed as _jax_distributed

BEAT = 2.0
"""Seconds between two signs of life."""

SILENCE = 30.0
"""Seconds without one after which a process counts as lost."""

TRY_AGAIN = 75
"""Exit status that asks for the same command once more: EX_TEMPFAIL of sysexits.h, a
reason to try again for job systems."""

_FOLDER = "clara_jax/alive/"

# Runs beside every process but the first. Without the first, JAX ends a process at
# once, so that somebody else has to tell.
_SECOND = """
import socket, sys
host, port, message = sys.argv[1:]
if not sys.stdin.read():  # the process ended without saying why
    try:
        socket.create_connection((host, int(port)), 5).close()
    except OSError:
        print(message, file=sys.stderr, flush=True)
"""


class Watch:
    """Tells the others that this process lives, and ends it when another does not.

    Signs of life are numbers in the key-value store of JAX's coordination service, by
    its client (which has no public name; Orbax uses it too).
    """

    def __init__(self, index: int, count: int):
        """Start to watch.

        Args:
          index: of this process.
          count: of all processes.
        """
        self._index, self._count = index, count
        self._client: Any = _jax_distributed.global_state.client
        self._name = f"process {index} (host {socket.gethostname()}, pid {os.getpid()})"
        self._heard: dict[int, tuple[str, float]] = {}
        self._names: dict[int, str] = {}
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._second: subprocess.Popen | None = None
        self._say(0, "")
        if index:
            address = _jax_distributed.global_state.coordinator_address or ":"
            host, _, port = address.rpartition(":")
            message = f"process 0 (at {address}) is gone; {_ADVICE}"
            self._second = subprocess.Popen(
                [sys.executable, "-c", _SECOND, host.strip("[]"), port, message],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
        thread = threading.Thread(target=self._run, name="watch", daemon=True)
        thread.start()

    def leave(self, reason: str) -> None:
        """Stop to watch, and be missed by nobody.

        Args:
          reason: why this process stops early; empty if its work is done.
        """
        with self._lock:
            self._over.set()
            with contextlib.suppress(Exception):  # the store may be gone already
                self._say(-1, reason or "done")
                if reason and not self._index:
                    # With the first process its store goes: let the others read it.
                    time.sleep(2 * BEAT + 1)
        if self._second is not None and self._second.stdin is not None:
            with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
                self._second.communicate(b"told", timeout=10)

    def lost(self, wait: bool = False) -> str:
        """One line on a process that is gone, or an empty string.

        Args:
          wait: look for as long as it takes a silent process to count as lost.
        """
        end = time.monotonic() + (SILENCE + 2 * BEAT if wait else 0)
        while True:
            found = self._look()
            if found or time.monotonic() >= end:
                return found
            time.sleep(BEAT / 4)

    def _run(self) -> None:
        beat = 0
        while not self._over.wait(BEAT):
            beat += 1
            try:
                with self._lock:
                    if self._over.is_set():
                        return
                    self._say(beat, "")
                found = self._look()
            except Exception:
                # Without process 0 there is no store. JAX ends the process then.
                continue
            if found and not self._over.is_set():
                print(found, file=sys.stderr, flush=True)
                self.leave(found)
                os._exit(TRY_AGAIN if _ADVICE in found else 1)

    def _say(self, beat: int, reason: str) -> None:
        text = f"{beat}\n{self._name}\n{reason}"
        key = f"{_FOLDER}{self._index}"
        self._client.key_value_set(key, text, allow_overwrite=True)

    def _look(self) -> str:
        now = time.monotonic()
        for key, text in self._client.key_value_dir_get(_FOLDER):
            index = int(key.rsplit("/", 1)[1])
            beat, name, reason = text.split("\n", 2)
            self._names[index] = name
            if index == self._index or reason == "done":
                self._heard[index] = text, float("inf")
            elif beat == "-1":
                return f"{name} stopped: {reason}" if _is_own(reason) else reason
            elif self._heard.get(index, ("", 0.0))[0] != text:
                self._heard[index] = text, now
        for index, (_, heard) in self._heard.items():
            if now - heard > SILENCE:
                return (
                    f"{self._names[index]} has given no sign of life for "
                    f"{SILENCE:.0f} s; {_ADVICE}"
                )
        return ""


_ADVICE = (
    "this process stops as well; start the same command again on all hosts to go on "
    "from the newest checkpoint"
)


def _is_own(reason: str) -> bool:
    """Whether a reason is the process's own, and not the loss of yet another."""
    return _ADVICE not in reason and "stopped: " not in reason
