"""What holds in every test: eight CPU devices, checked shapes, no broadcasting by rank.

To reuse compiled programs between runs while developing, set
``JAX_COMPILATION_CACHE_DIR``; it is off otherwise.
"""

import gc
import os
import signal
import sys
from pathlib import Path

from fast_compiles import FAST_COMPILES

# Before the first import of jax, and inherited by the commands that tests start.
os.environ["JAX_PLATFORMS"] = "cpu"
FLAGS = ("--xla_force_host_platform_device_count=8", *FAST_COMPILES)
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *FLAGS)).strip()
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
WITHOUT_TORCH = str(Path(__file__).with_name("without_torch"))
os.environ["PYTHONPATH"] = os.pathsep.join(
    [WITHOUT_TORCH, *filter(None, [os.environ.get("PYTHONPATH")])]
)
if "torch" in sys.modules and sys.modules["torch"] is None:
    del sys.modules["torch"]  # workers of pytest are such commands, but compare
# A job in the background of a script ignores Ctrl-C, and so would all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jaxtyping  # noqa: E402

assert "clara_jax" not in sys.modules, "imported before its shapes could be checked"
jaxtyping.install_import_hook("clara_jax", "checked_shapes.check")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# What is imported stays: the collector need not look through it (a tenth of the time).
gc.freeze()

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_ORACLE = ROOT.parent / "shared" / "oracle"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--oracle",
        metavar="DIR",
        default=None,
        help="folder of reference numbers (default: ../shared/oracle beside the clone)",
    )
    parser.addoption(
        "--kills",
        type=int,
        default=6,
        help="how often tests/train/test_kill.py kills a run (default: 6)",
    )


def oracle_folder(config: pytest.Config) -> Path | None:
    """The folder of reference numbers, or None where this machine has none."""
    given = config.getoption("--oracle")
    if given is None:
        return DEFAULT_ORACLE if DEFAULT_ORACLE.is_dir() else None
    folder = Path(given).resolve()
    if not folder.is_dir():
        raise pytest.UsageError(f"--oracle: no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def oracle(pytestconfig: pytest.Config) -> Path:
    """The folder of reference numbers; skips where there is none."""
    folder = oracle_folder(pytestconfig)
    if folder is None:
        pytest.skip("no reference numbers here: give their folder with --oracle DIR")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the clone."""
    return ROOT
