"""What is imported when: the package alone is light, and every command explains itself.

Run in processes of their own, without the guards of `conftest`.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import clara_jax

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = sorted(
    path.parent.name for path in (ROOT / "clara_jax").glob("*/__main__.py")
)
# Not dependencies, or only needed where something is drawn, indexed or written.
HEAVY = {"torch", "tensorflow", "tensorflow_datasets", "matplotlib", "scann", "wandb"}

LOADED = "import sys; print('loaded:', *sorted({m.split('.')[0] for m in sys.modules}))"
HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as stopped:
    assert not stopped.code, stopped.code
"""


def run(code: str, *arguments: str) -> tuple[str, set[str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{LOADED}", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text, _, loaded = done.stdout.rpartition("loaded:")
    return text, set(loaded.split())


def test_importing_the_package_imports_nothing_else():
    _, loaded = run("import clara_jax; clara_jax.__version__; dir(clara_jax)")
    assert not loaded & (HEAVY | {"jax", "flax", "numpy", "transformers"})


def test_everything_at_once_needs_no_torch_and_no_tensorflow():
    code = "import clara_jax\nfor name in dir(clara_jax): getattr(clara_jax, name)"
    _, loaded = run(code)
    assert "jax" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    text, loaded = run(HELP, f"clara_jax.{command}")
    assert text.startswith("usage: python -m clara_jax." + command)
    assert not loaded & HEAVY


def test_the_table_of_contents_is_right():
    # Names that a room's own table lists, so that neither is out of date.
    for name, room in clara_jax._HOMES.items():
        assert getattr(clara_jax, name) is getattr(getattr(clara_jax, room), name)
        assert f"`{name}`" in (clara_jax.__doc__ or "")
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        _ = clara_jax.Missing


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)]
)
# The planner reads its arguments before it imports anything.
@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"plan"}))
def test_a_signal_during_the_imports_ends_a_command_in_silence(
    command, number, status, tmp_path
):
    # What every command imports first waits for the signal.
    (tmp_path / "numpy.py").write_text("print('importing', flush=True)\ninput()")
    (tmp_path / "jax.py").write_text("import numpy")
    paths = f"{tmp_path}{os.pathsep}{ROOT}"
    with subprocess.Popen(
        [sys.executable, "-m", f"clara_jax.{command}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        assert process.wait() == status
        assert process.stderr.read() == ""
