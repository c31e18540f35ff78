"""Where a compiled program spends its time on a CPU, by part of the model."""

import collections
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

_PARTS = (
    ("mlp/(gate|up|down)/dot_general", "products of the feed-forward layers"),
    (r"(_project.*|output)/dot_general", "products around attention"),
    ("layers/attention", "attention: scores, softmax, sum, rotation, copies"),
    ("layers/", "norms, SiLU, residual sums"),
    ("dynamic_slice|while", "one layer's weights out of all"),
)
"""Pattern of a source operation, and the part that the first match belongs to."""


def print_shares(program: str, run: Callable[[], object]) -> None:
    """Print the share of each part of the model, and of waiting.

    Args:
      program: the compiled program's text.
      run: runs it once and waits for its end.
    """
    source = dict(re.findall(r"%([\w.-]+) = .*?op_name=\"([^\"]*)\"", program))
    run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    events = [
        (event.start_ns, event.start_ns + event.duration_ns, _part(source[event.name]))
        for plane in data.planes
        for line in plane.lines
        for event in line.events
        if event.name in source
    ]
    taken = _wall(events)
    total = sum(taken.values())
    for part, spent in taken.most_common():
        print(f"  {100 * spent / total:5.1f} %  {part}")


def _wall(events: list[tuple[float, float, str]]) -> collections.Counter[str]:
    """Wall time of each part; parts at work at the same time share it."""
    changes = sorted(
        [(begin, 1, part) for begin, _, part in events]
        + [(end, -1, part) for _, end, part in events]
    )
    taken: collections.Counter[str] = collections.Counter()
    active: collections.Counter[str] = collections.Counter()
    before = changes[0][0]
    for now, change, part in changes:
        shares = +active or collections.Counter(
            ["conversions and waits between operations"]
        )
        for name, count in shares.items():
            taken[name] += (now - before) * count / shares.total()
        active[part] += change
        before = now
    return taken


def _part(operation: str) -> str:
    for pattern, part in _PARTS:
        if re.search(pattern, operation):
            return part
    return "everything else"
