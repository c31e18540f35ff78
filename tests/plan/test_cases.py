"""What is planned: mesh, microbatches, backbone; what a sweep tries."""

import dataclasses

import pytest

from clara_jax.config import DataConfig, MeshConfig, OptimConfig, RunConfig
from clara_jax.errors import ClaraError
from clara_jax.model import PRESETS
from clara_jax.plan.cases import (
    HUB,
    Case,
    backbone_shape,
    likely_meshes,
    mesh_config,
    mesh_text,
    microbatches,
    settle,
)
from clara_jax.plan.topology import parse_topology
from configs import common


def run_config(rows=32, accumulate=8, mesh=None, **fields):
    fields = {"backbone": "random:tiny", **fields}
    return RunConfig(
        stage="end_to_end",
        workdir="unused",
        data=DataConfig(batch_size=rows),
        optim=OptimConfig(accumulate=accumulate),
        mesh=mesh or MeshConfig(),
        **fields,
    )


@pytest.mark.parametrize(
    ("rows", "count", "slices", "expected"),
    [
        (32, 16, 1, (1, 1, 16, 1)),
        (32, 64, 1, (1, 1, 32, 2)),
        (128, 64, 1, (1, 1, 64, 1)),
        (32, 32, 2, (2, 1, 16, 1)),
        (4, 1, 1, (1, 1, 1, 1)),
    ],
)
def test_a_mesh_is_chosen_where_none_is_given(rows, count, slices, expected):
    config, notes = settle(run_config(rows, 1), count, slices=slices)
    mesh = config.mesh
    assert (mesh.slice, mesh.data, mesh.fsdp, mesh.tensor) == expected
    assert notes


def test_microbatches_are_made_to_fit():
    config, notes = settle(run_config(mesh=mesh_config("fsdp=16")), 16)
    assert config.optim.accumulate == 2
    assert "optim.accumulate 8" in notes[0]
    config, notes = settle(run_config(mesh=mesh_config("fsdp=4")), 16)
    assert (config.mesh.data, config.mesh.fsdp) == (4, 4)
    assert config.optim.accumulate == 2
    config, notes = settle(run_config(mesh=mesh_config("data=1,fsdp=4")), 4)
    assert config.optim.accumulate == 8 and not notes


@pytest.mark.parametrize(
    ("change", "count", "message"),
    [
        ({"mesh": MeshConfig(fsdp=3)}, 16, "fsdp 3 x tensor 1 does not fit 16"),
        ({"rows": 24, "accumulate": 1, "mesh": MeshConfig(fsdp=16)}, 16, "24 rows"),
        ({"mesh": MeshConfig(slice=4)}, 16, "the machine has 2 slices"),
    ],
)
def test_what_does_not_fit_is_refused(change, count, message):
    slices = 2 if "slices" in message else 1
    with pytest.raises(ClaraError, match=message):
        settle(run_config(**change), count, slices=slices)


def test_microbatches_that_the_user_set_are_not_changed():
    with pytest.raises(ClaraError, match="optim.accumulate.*take 2"):
        settle(run_config(mesh=MeshConfig(fsdp=16)), 16, fixed=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model=2", "no axis 'model'; there are slice, data, fsdp, tensor"),
        ("fsdp", "'fsdp' must be fsdp=NUMBER"),
        ("fsdp=two", "must be fsdp=NUMBER"),
        ("fsdp=2,fsdp=4", "names fsdp twice"),
        (",", "names no axis"),
        ("fsdp=0", "mesh.fsdp.*must be above 0"),
    ],
)
def test_bad_meshes(text, message):
    with pytest.raises(ClaraError, match=message):
        mesh_config(text)


def planned(rows=32, accumulate=2, mesh="fsdp=16", slices=1, heads=8):
    shape = dataclasses.replace(
        PRESETS["tiny"], num_heads=2 * heads, num_kv_heads=heads
    )
    topology = parse_topology("v5e:4x4", slices)
    config = run_config(rows, accumulate, mesh_config(mesh), remat="full")
    config, _ = settle(config, 16 * slices, slices=slices)
    return Case("train", config, shape, 153, topology)


def test_meshes_for_sixteen_devices():
    found = [mesh_text(case.sizes) for case in likely_meshes(planned())]
    assert found[0] == "fsdp=16"
    assert len(found) >= 6 and len(set(found)) == len(found)
    assert "fsdp=8,tensor=2" in found and "data=2,fsdp=8" in found
    two = likely_meshes(planned(mesh="slice=2,fsdp=16", slices=2))
    assert mesh_text(next(two).sizes) == "slice=2,fsdp=16"
    # Three heads of keys cannot be halved.
    assert all(case.sizes["tensor"] == 1 for case in likely_meshes(planned(heads=3)))
    few = planned(rows=6, mesh="fsdp=2,tensor=8")
    assert list(likely_meshes(few)) == []


def test_microbatches_that_a_mesh_can_share():
    assert microbatches(32, 16) == [1, 2]
    assert planned().split(8).config.optim.accumulate == 2
    assert planned(mesh="fsdp=4,tensor=4").split(8).config.optim.accumulate == 8
    assert planned(mesh="tensor=16,data=1").split(3).config.optim.accumulate in (2, 4)
    case = planned().split(1, "dots")
    assert str(case) == "mesh fsdp=16, 1 microbatches, remat dots"


def test_hub_names_are_those_of_the_configs():
    assert {name: preset for preset, name in common.BACKBONES.items()} == HUB


def test_backbones_by_every_name(tmp_path):
    mistral = PRESETS["mistral_7b"]
    hub = run_config(backbone="mistralai/Mistral-7B-Instruct-v0.2")
    assert backbone_shape(hub, "") == (mistral, 32000, [])
    later = dataclasses.replace(hub, backbone="", init_from="runs/mistral_7b_scp")
    shape, _, notes = backbone_shape(later, "")
    assert shape == mistral and "mistral_7b, by the names" in notes[0]
    assert backbone_shape(later, "phi4_mini")[1] == 200_029
    unknown = dataclasses.replace(later, init_from="runs/mine")
    with pytest.raises(ClaraError, match="which backbone?.*--backbone"):
        backbone_shape(unknown, "")
    assert backbone_shape(unknown, "", "configs/phi4_mini_scp.py")[1] == 200_029
    with pytest.raises(ClaraError, match="neither here nor one of"):
        backbone_shape(run_config(backbone="someone/unknown"), "")
