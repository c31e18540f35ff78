"""Scripts pass shellcheck, Dockerfiles hadolint; images are built from real extras."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCH = ROOT / "launch"
SHELL = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), ROOT / ".ci" / "run"])
DOCKER = sorted((LAUNCH / "docker").glob("*.Dockerfile"))


def checked(tool: str, *arguments: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} comes with the extra dev")
    done = subprocess.run(
        [tool, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SHELL, ids=lambda p: p.name)
def test_shellcheck_has_nothing_to_say(path):
    checked("shellcheck", "--external-sources", "--source-path=SCRIPTDIR/..", str(path))


@pytest.mark.parametrize("path", DOCKER, ids=lambda p: p.name)
def test_hadolint_has_nothing_to_say(path):
    checked("hadolint", "--no-color", str(path))


def test_every_script_can_be_run():
    for path in [*LAUNCH.glob("*.py"), *LAUNCH.glob("*.sh")]:
        assert path.read_text().startswith("#!") == os.access(path, os.X_OK), path.name


@pytest.mark.parametrize("path", DOCKER, ids=lambda p: p.name)
def test_an_image_is_built_from_files_and_extras_that_exist(path):
    text = path.read_text()
    setup = (ROOT / "setup.py").read_text()
    extras = re.findall(r"EXTRA=(\w+)", text)
    assert extras
    for extra in extras:
        assert f'"{extra}": [' in setup
    named = path.with_name(f"{path.name}.dockerignore").read_text().splitlines()
    kept = {line[1:] for line in named if line.startswith("!")}
    for line in re.findall(r"^COPY (.+)$", text, re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert source.split("/")[0] in kept
    # Nothing runs as root, and no file that setup.py reads is left out.
    assert re.findall(r"^USER (.+)$", text, re.M) == ["1000"]
    assert "torch" not in text


XPK = (
    "xpk workload create --cluster=ours --workload=clara --tpu-type=v6e-16 "
    "--num-slices=2 --docker-image=eu.gcr.io/ours/clara --max-restarts=100 "
    "--restart-on-exit-codes=75 --termination-grace-period-seconds=300 "
    "--zone=us-east5-b --project=p --storage=shared "
    "'--command=python -m clara_jax.train '\\''--config=a b'\\'''\n"
)


def xpk(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(LAUNCH / "xpk.sh"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


NEEDED = ("--cluster=ours", "--name=clara", "--image=eu.gcr.io/ours/clara")


def test_xpk_dry_run():
    options = ("--type=v6e-16", "--slices=2", "--zone=us-east5-b", "--project=p")
    command = ("python", "-m", "clara_jax.train", "--config=a b")
    done = xpk(*NEEDED, *options, "--storage=shared", "--dry-run", "--", *command)
    assert (done.stdout, done.stderr) == (XPK, "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (NEEDED, "no command; give it after --"),
        (NEEDED[1:], "--cluster is needed"),
        ((*NEEDED, "--slices=many"), "--slices needs a whole number"),
        ((*NEEDED, "--speed=9"), "no option '--speed'"),
    ],
)
def test_xpk_mistakes_are_told_in_one_line(arguments, told):
    done = xpk(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {told}")
    assert done.stderr.count("\n") == 1
