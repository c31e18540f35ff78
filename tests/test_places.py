"""Small files in folders; what Lance says, in one line."""

import errno
import os

import pytest
from lance.commit import CommitConflictError

from clara_jax.errors import ClaraError
from clara_jax.places import Conflict, Folder, Gone, is_remote, lance_at_work


def test_files_of_a_folder(tmp_path):
    folder = Folder(tmp_path / "a")
    assert (folder.names(), folder.read("x")) == ([], None)
    folder.write("b/x", b"1")
    folder.write("y", b"2")
    folder.write("y", b"3")
    assert (folder.names(), folder.read("y")) == (["b/x", "y"], b"3")
    assert folder.read("y/z") is None
    other = Folder(tmp_path / "other")
    other.copy(folder, "b/x")
    assert other.read("b/x") == b"1" == other.child("b").read("x")
    folder.remove("y")
    folder.remove("never")
    assert folder.names() == ["b/x"]
    folder.remove()
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("place", "remote"),
    [("s3://bucket/a", True), ("gs://b", True), ("a/b", False), ("/c:/d", False)],
)
def test_places_in_object_stores(place, remote):
    assert is_remote(place) == remote


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
