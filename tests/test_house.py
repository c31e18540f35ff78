"""The guards of `conftest` are up."""

import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest


def test_there_are_eight_cpu_devices():
    assert jax.device_count() == 8
    assert jax.default_backend() == "cpu"


def test_broadcasting_by_rank_raises():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)


def test_a_warning_is_an_error():
    with pytest.raises(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)


def test_oracle_is_a_folder(oracle: Path):
    assert (oracle / "README.md").is_file()
