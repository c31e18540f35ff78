"""What Lance raises, and what native code prints."""

import errno
import os

import pytest
from lance.commit import CommitConflictError

from clara_jax.errors import ClaraError
from clara_jax.native import Conflict, Gone, lance_at_work, quiet


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (
            ValueError("Dataset at path x was not found: Not found: x"),
            Gone,
            "not there",
        ),
        (OSError("LanceError(IO): No such file, /a/b.rs:3"), Gone, r"\(No such file\)"),
        (OSError(errno.ENOSPC, "No space left on device"), ClaraError, "disk is full"),
        (OSError("LanceError(IO): No space left on device"), ClaraError, "is full"),
        (OSError("LanceError(IO): Disk quota exceeded"), ClaraError, "is full"),
        (CommitConflictError("x"), Conflict, "another process has changed"),
        (
            RuntimeError("odd\nthing"),
            ClaraError,
            r"cannot be read \(odd\); .*--check",
        ),
    ],
)
def test_what_goes_wrong_is_one_line(error, kind, says):
    with pytest.raises(kind, match=f"^at: .*{says}") as caught, lance_at_work("at"):
        raise error
    assert "\n" not in str(caught.value)


def test_what_is_clear_already_passes():
    for error in (KeyboardInterrupt(), ClaraError("clear")):
        with pytest.raises(type(error)) as caught, lance_at_work("at"):
            raise error
        assert caught.value is error
    assert os.environ["LANCE_LOG"] == "error"


def test_chatter_is_left_out(capfd):
    said = (
        "I0000 00:00:1.0 1 a.cc:1] chatter\nE0000 an error\n"
        "\nthread 'lance-cpu' (7) panicked at /a/b.rs:1:2:\nout of range\n"
        "note: run with `RUST_BACKTRACE=1` environment variable\nother\n"
    )
    with quiet():
        os.write(2, said.encode())
    assert capfd.readouterr().err == "E0000 an error\nother\n"
