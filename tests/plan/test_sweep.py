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
from clara_jax.model import PRESETS
from clara_jax.plan.advice import sweep
from clara_jax.plan.cases import Case, mesh_config, mesh_text, settle
from clara_jax.plan.topology import parse_topology

ROOT = Path(__file__).resolve().parent.parent.parent


def planned(mesh, accumulate=1, remat="full"):
    config = RunConfig(
        stage="end_to_end",
        workdir="unused",
        backbone="random:tiny",
        remat=remat,
        data=DataConfig(batch_size=32),
        optim=OptimConfig(accumulate=accumulate),
        mesh=mesh_config(mesh),
    )
    topology = parse_topology("v5e:4x4")
    return Case("train", settle(config, 16)[0], PRESETS["tiny"], 153, topology)


def made_up(case, seconds=1.0, peak=2**30, refused=None):
    """A result as `measure` gives it."""
    return {
        "work": "train",
        "stage": "scp",
        "topology": "v5e:4x4",
        "slices": 1,
        "devices": 16,
        "mesh": case.sizes,
        "accumulate": case.config.optim.accumulate,
        "remat": case.config.remat,
        "rows": 32,
        "arguments": {"backbone": 2**20},
        "cached": True,
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
                "traffic": {"sent": {}, "far": {}},
                "performed_flops": seconds * 16 * 197e12,
                "useful_flops": {"matrices": seconds * 8 * 197e12},
                "compile_seconds": 1.0,
            }
        ],
    }


FAST, SLOW, BIG = map(planned, ("fsdp=16", "fsdp=8,tensor=2", "data=16"))


def test_a_sweep_goes_on_from_the_best_mesh(tmp_path):
    tried = []

    def measured(case):
        tried.append(case)
        return made_up(case, 1.0 if case.sizes["tensor"] == 2 else 2.0)

    case = planned("fsdp=16", 2)
    sweep(case, ([FAST, SLOW], [], []), measured, tmp_path)
    assert [mesh_text(case.sizes) for case in tried[:2]] == [
        "fsdp=16",
        "fsdp=8,tensor=2",
    ]
    assert {case.sizes["tensor"] for case in tried[2:]} == {2}
    assert {case.config.remat for case in tried[1:]} == {
        "full",
        "dots",
        "dots_no_batch",
        "none",
    }
    assert {case.config.optim.accumulate for case in tried[1:]} >= {1, 2, 4}


def test_every_combination_that_the_mesh_can_share(tmp_path):
    tried = []

    def measured(case):
        tried.append((case.config.optim.accumulate, case.config.remat))
        return made_up(case)

    sweep(FAST, ([FAST], [1, 2, 4], ["full", "dots"]), measured, tmp_path)
    assert tried == [(1, "full"), (1, "dots"), (2, "full"), (2, "dots")]


def test_what_fits_comes_first_then_what_is_fast(tmp_path, capsys):
    refused = {"message": "no", "needed": 20 * 2**30, "limit": 15.75 * 2**30}
    found = {
        SLOW: made_up(SLOW, 2.0),
        BIG: made_up(BIG, 0.1, refused=refused),
        FAST: made_up(FAST, 1.0),
    }
    settings = (list(found), [1], [])
    text = sweep(FAST, settings, found.__getitem__, tmp_path)
    order = [line.split("|")[1].strip() for line in text.splitlines()[2:]]
    assert order == ["fsdp=16", "fsdp=8,tensor=2", "data=16"]
    assert len({len(line) for line in text.splitlines()}) == 1
    _, *said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and all("(kept)" in line for line in said)
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["mesh"] for row in rows] == order
    assert [row["fits"] for row in rows] == ["True", "True", "False"]
    assert float(rows[0]["seconds_best"]) == pytest.approx(1.0)
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def test_a_case_that_fails_is_told_and_the_others_go_on(tmp_path, capsys):
    def measured(case):
        if case == FAST:
            raise ClaraError("broken")
        return made_up(case)

    text = sweep(FAST, ([FAST, SLOW], [1], []), measured, tmp_path)
    said = capsys.readouterr().err.splitlines()[1]
    assert "FAILED (broken)" in said and "fits" not in said
    assert text.splitlines()[-1] == f"failed: {FAST}: broken"
    with pytest.raises(ClaraError, match="nothing could be compiled: broken"):
        sweep(FAST, ([FAST], [1], []), measured, tmp_path)


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
    ways = [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
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
