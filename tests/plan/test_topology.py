"""Names of machines, and the library that compiles for TPUs."""

import sys

import pytest

from clara_jax.errors import ClaraError
from clara_jax.plan import topology
from clara_jax.plan.topology import (
    CHIPS,
    GPUS,
    TPUS,
    devices,
    find_libtpu,
    parse_topology,
    prepare,
    wanted_libtpu,
)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "must be KIND:LAYOUT"),
        ("v9:2x2", "kinds are v2, v3"),
        ("v5e:4", "'4' is not a layout of v5e; write v5e:4x4"),
        ("v5e:4xx4", "not a layout"),
        ("v5e:0x4", "not a layout"),
        ("h100:2x4", "'2x4' is not a layout of h100; write h100:8"),
        ("cpu:", "not a layout"),
        ("", "must be KIND:LAYOUT"),
    ],
)
def test_names_that_are_none(name, message):
    with pytest.raises(ClaraError, match=message):
        parse_topology(name)


def test_slices_must_be_some():
    with pytest.raises(ClaraError, match="--slices must be above 0"):
        parse_topology("v5e:4x4", 0)


def test_machines():
    assert parse_topology("v5p:4x4x4").is_tpu
    assert parse_topology("h100:8").simulated == 8
    assert parse_topology("cpu:2", 3).simulated == 6
    assert {*TPUS, *GPUS, "cpu"} == set(CHIPS)


def test_simulated_devices():
    assert len(devices(parse_topology("cpu:4"))) == 4
    with pytest.raises(ClaraError, match="simulates 8 devices only"):
        devices(parse_topology("h100:16"))


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A machine without libtpu."""
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "libtpu", None)
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    return tmp_path


def library(folder, version):
    (folder / "libtpu").mkdir(parents=True)
    (folder / "libtpu" / "libtpu.so").touch()
    (folder / f"libtpu-{version}.dist-info").mkdir()
    return folder


def test_without_libtpu_the_command_says_what_to_install(nowhere):
    wanted = wanted_libtpu()
    assert wanted.startswith("==0.0.")
    expected = (
        rf"pip install --no-deps --target {nowhere}/clara_jax/libtpu 'libtpu{wanted}'"
    )
    with pytest.raises(ClaraError) as error:
        prepare(parse_topology("v5e:4x4"))
    assert str(error.value).endswith(expected)
    with pytest.raises(ClaraError, match="no libtpu in /nowhere; pip install"):
        find_libtpu("/nowhere")


@pytest.mark.parametrize("version", ["0.0.2", "0.1.0", "0.0.420.1"])
def test_a_libtpu_too_old_or_too_new_is_refused(nowhere, version):
    folder = library(nowhere / "mine", version)
    with pytest.raises(
        ClaraError, match=f"libtpu {version} in .* does not go with jax"
    ):
        find_libtpu(str(folder))


def test_libtpu_is_found_where_it_was_put(nowhere, monkeypatch):
    good = wanted_libtpu().removeprefix("==").replace("*", "1")
    place = library(nowhere / "clara_jax" / "libtpu", good) / "libtpu" / "libtpu.so"
    assert find_libtpu() == place
    other = library(nowhere / "other", good) / "libtpu" / "libtpu.so"
    monkeypatch.setenv("TPU_LIBRARY_PATH", str(other))
    assert find_libtpu() == other
    assert find_libtpu(str(nowhere / "clara_jax" / "libtpu")) == place


def test_a_library_that_cannot_be_loaded_is_no_unknown_layout(nowhere, monkeypatch):
    from jax.experimental import topologies

    def refuse(*_, **__):
        raise RuntimeError("INTERNAL: Failed to open libtpu.so: file too short")

    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    with pytest.raises(ClaraError, match="cannot be loaded .*too short.*pip install"):
        devices(parse_topology("v5e:4x4"))
