"""Sweeps: what is tried, how it is sorted, and that nothing done is lost."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clara_jax.config import DataConfig, OptimConfig, RunConfig
from clara_jax.errors import ClaraError
from clara_jax.plan.sweep import Point, meshes, points, splits, sweep, table

ROOT = Path(__file__).resolve().parent.parent.parent


def run_config(rows=32, accumulate=2):
    return RunConfig(
        stage="end_to_end",
        workdir="unused",
        backbone="random:tiny",
        remat="full",
        data=DataConfig(batch_size=rows),
        optim=OptimConfig(accumulate=accumulate),
    )


def made_up(point, seconds=1.0, peak=2**30, refused=None):
    """A result as `measure` gives it."""
    sizes = {"slice": 1, "data": 1, "fsdp": 1, "tensor": 1}
    sizes |= {k: int(v) for k, v in (p.split("=") for p in point.mesh.split(","))}
    return {
        "work": "train",
        "stage": "scp",
        "topology": "v5e:4x4",
        "slices": 1,
        "devices": 16,
        "mesh": sizes,
        "accumulate": point.accumulate,
        "remat": point.remat,
        "rows": 32,
        "arguments": {"backbone": 2**20},
        "programs": [
            {
                "tokens": 1000,
                "refused": refused,
                "memory": {
                    "arguments": 2**20,
                    "temporaries": peak,
                    "outputs": 0,
                    "aliased": 0,
                    "code": 0,
                },
                "traffic": {"sent": {}, "far": {}, "memory": 0.0},
                "performed_flops": seconds * 16 * 197e12,
                "useful_flops": {"matrices": seconds * 8 * 197e12},
                "compile_seconds": 1.0,
            }
        ],
    }


def test_meshes_for_sixteen_devices():
    found = meshes(run_config(), 16, 1, 8)
    assert found[0] == "fsdp=16"
    assert len(found) >= 6 and len(set(found)) == len(found)
    assert "fsdp=8,tensor=2" in found and "data=2,fsdp=8" in found
    assert all(splits(run_config(), mesh, 2) for mesh in found)
    assert meshes(run_config(), 32, 2, 8)[0] == "slice=2,fsdp=16"
    # Three heads of keys cannot be halved.
    assert not [mesh for mesh in meshes(run_config(), 16, 1, 3) if "tensor" in mesh]
    assert meshes(run_config(rows=6), 16, 1, 8) == []


def test_microbatches_that_a_mesh_can_share():
    assert splits(run_config(), "fsdp=16", 8) == 2
    assert splits(run_config(), "fsdp=4,tensor=4", 8) == 8
    assert splits(run_config(), "data=1", 3) in (2, 4)


def test_points_go_on_from_the_best_mesh():
    best = Point("fsdp=8,tensor=2", 2, "full")
    config = run_config()
    tried = list(points(config, ["fsdp=16", "fsdp=8,tensor=2"], lambda: best))
    assert [point.mesh for point in tried[:2]] == ["fsdp=16", "fsdp=8,tensor=2"]
    assert {point.remat for point in tried[2:]} == {
        "full",
        "dots",
        "dots_no_batch",
        "none",
    }
    assert {point.accumulate for point in tried[2:]} >= {1, 2, 4}
    given = list(points(config, ["fsdp=16"], lambda: best, [1, 2, 4], ["full", "dots"]))
    assert [(p.accumulate, p.remat) for p in given] == [
        (1, "full"),
        (1, "dots"),
        (2, "full"),
        (2, "dots"),
    ]


FAST, SLOW, BIG = (
    Point("fsdp=16", 1, "full"),
    Point("fsdp=8,tensor=2", 1, "full"),
    Point("data=16", 1, "full"),
)


def test_what_fits_comes_first_then_what_is_fast(tmp_path):
    refused = {"message": "no", "needed": 20 * 2**30, "limit": 15.75 * 2**30}
    found = {
        SLOW: made_up(SLOW, 2.0),
        BIG: made_up(BIG, 0.1, refused=refused),
        FAST: made_up(FAST, 1.0),
    }
    said = []
    text = sweep(lambda best: iter(found), found.get, ["never"], tmp_path, said.append)
    order = [line.split("|")[1].strip() for line in text.splitlines()[2:]]
    assert order == ["fsdp=16", "fsdp=8,tensor=2", "data=16"]
    assert len(said) == 3 and all("(kept)" in line for line in said)
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["mesh"] for row in rows] == order
    assert [row["fits"] for row in rows] == ["True", "True", "False"]
    assert float(rows[0]["seconds_best"]) == pytest.approx(1.0)
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def test_a_case_that_fails_is_told_and_the_others_go_on(tmp_path):
    code = (
        "import sys, json\n"
        "if 'fsdp=16' in sys.argv[1]: sys.exit('error: broken')\n"
        f"print(json.dumps({made_up(SLOW)!r}))"
    )
    said = []
    text = sweep(
        lambda best: iter([FAST, SLOW]),
        lambda point: None,
        [sys.executable, "-c", code],
        tmp_path,
        said.append,
    )
    assert "FAILED (broken)" in said[0] and "fits" not in said[0]
    assert text.splitlines()[-1] == f"failed: {FAST}: broken"
    with pytest.raises(ClaraError, match="nothing could be compiled: broken"):
        sweep(
            lambda best: iter([FAST]),
            lambda point: None,
            [sys.executable, "-c", code],
            tmp_path,
            said.append,
        )


def test_a_table_lines_up():
    from clara_jax.plan.estimate import summary

    text = table([summary(made_up(FAST)), summary(made_up(SLOW))])
    assert len({len(line) for line in text.splitlines()}) == 1


def start(tmp_path, *more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # In the background of a shell SIGINT is ignored, and children would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _start(environment, tmp_path, more)
    finally:
        signal.signal(signal.SIGINT, before)


def _start(environment, tmp_path, more):
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "clara_jax.plan",
            "--config=configs/tiny.py:scp",
            "--topology=cpu:4",
            "--sweep",
            "--sweep-accumulate=1",
            "--sweep-meshes=fsdp=4;fsdp=2,tensor=2;data=2,fsdp=2;data=4",
            f"--cache={tmp_path / 'cache'}",
            f"--out={tmp_path / 'out'}",
            *more,
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_sweep_that_was_stopped_goes_on(tmp_path):
    """Stopped three times, each time after one more case."""
    before = {}
    ways = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
    for done, (how, status) in enumerate(ways, start=1):
        run = start(tmp_path)
        assert run.stderr is not None
        told = []
        for line in run.stderr:
            told += [line] if line.startswith("mesh ") else []
            if len(told) == done:
                break  # the next case has begun
        run.send_signal(how)
        run.communicate()
        assert run.returncode == status
        assert [line.endswith("(kept)\n") for line in told] == [True] * (done - 1) + [
            False
        ]
        now = {path: path.stat().st_mtime_ns for path in kept(tmp_path)}
        assert before.items() <= now.items() and len(now) >= done
        assert (tmp_path / "out" / "sweep.csv").is_file()
        before = now
        time.sleep(0.1)
    out, err = start(tmp_path).communicate()
    lines = [line for line in err.splitlines() if line.startswith("mesh ")]
    assert len(lines) == 4 and all(x.endswith("(kept)") for x in lines[:3]), err
    assert all(path.stat().st_mtime_ns == old for path, old in before.items())
    assert len(out.splitlines()) == 6
    assert all(json.loads(path.read_text())["programs"] for path in kept(tmp_path))


def kept(tmp_path):
    return sorted((tmp_path / "cache").glob("*.json"))
