"""How long work shows that it goes on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

Progress = Callable[..., Any]
"""Makes a progress bar out of `desc`, `total`, `initial`, `unit` and `unit_scale`, as
tqdm does."""

silent = functools.partial(tqdm, disable=True)
"""A progress that shows nothing."""
