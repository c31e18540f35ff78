"""Programs for real TPUs, compiled without one. Needs libtpu; skipped where it is not.

Each command runs in a process of its own, as a user starts it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clara_jax.errors import ClaraError
from clara_jax.plan.topology import find_libtpu

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ("--config=configs/tiny.py:scp", "--config.optim.accumulate=1")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def libtpu():
    """Where it is, or no tests."""
    try:
        return find_libtpu()
    except ClaraError as error:
        pytest.skip(str(error))


def plan(*arguments, status=0):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "clara_jax.plan", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def test_a_tiny_step_for_four_chips(tmp_path):
    common = (*TINY, "--topology=v5e:2x2", "--mesh=fsdp=4", f"--cache={tmp_path}")
    found = json.loads(plan(*common, "--json"))
    (program,) = found["programs"]
    assert found["versions"]["libtpu"]
    assert not program["refused"] and program["memory"]["temporaries"]
    assert program["traffic"]["sent"] and not program["traffic"]["endless"]
    exact = sum(v for k, v in found["arguments"].items() if "cache" not in k)
    # A TPU keeps arrays in tiles, and small ones fill theirs only in part.
    assert exact <= program["memory"]["arguments"] < exact + 300 * 4096
    text = plan(*common)
    assert "TPU compiler" in text and "fits" in text and "ESTIMATE" in text


def test_a_sweep_for_four_chips(tmp_path):
    arguments = (
        *TINY,
        "--topology=v5e:2x2",
        "--sweep",
        "--sweep-meshes=fsdp=4;fsdp=2,tensor=2",
        "--sweep-remat=none",
        f"--cache={tmp_path / 'cache'}",
        f"--out={tmp_path / 'out'}",
    )
    first = plan(*arguments)
    assert first.count("yes") == 2
    assert plan(*arguments) == first
    assert len((tmp_path / "out" / "sweep.csv").read_text().splitlines()) == 3


def test_two_slices(tmp_path):
    text = plan(
        *TINY,
        "--topology=v5e:2x2",
        "--slices=2",
        "--mesh=slice=2,fsdp=2,tensor=2",
        f"--cache={tmp_path}",
    )
    assert "2 slices of v5e:2x2: 8 devices" in text
    assert "between slices" in text


def test_a_program_that_the_chip_cannot_hold_is_a_result(tmp_path):
    text = plan(
        "--config=configs/mistral_7b_scp.py",
        "--topology=v5e:2x2",
        "--mesh=data=4",
        f"--cache={tmp_path}",
    )
    assert "DOES NOT FIT" in text and "what may fit better" in text
    assert "fsdp=4" in text


def test_layouts_that_libtpu_does_not_know():
    error = plan(*TINY, "--topology=v5e:3x5", status=1)
    (line,) = [x for x in error.splitlines() if x.startswith("error")]
    assert "libtpu" in line and "does not know it" in line
