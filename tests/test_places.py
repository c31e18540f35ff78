"""Small files in folders."""

import pytest

from clara_jax.files import is_remote
from clara_jax.places import Folder


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
    assert other.read("b/x") == b"1" == Folder(tmp_path / "other" / "b").read("x")
    assert other.has("b/x") and not other.has("b") and not other.has("x")
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
