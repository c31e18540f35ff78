"""The one error that users see as a single line."""

from collections.abc import Sequence

LISTED = 1000
"""Problems that are listed; of more, their number is given."""


class ClaraError(Exception):
    """Bad input, named so that the reader can mend it.

    The message is one line: what is wrong, where (file and line, or config field) and
    what to do. Commands print it as ``error: ...`` and exit with status 1; library code
    lets it pass. Anything else that escapes a command is a bug.
    """


def listed(problems: Sequence[str], remedy: str = "") -> str:
    """Say each of several problems on a line of its own.

    Args:
      problems: one at least; one alone is a single line.
      remedy: what to do about ``{}``, them all or the one.
    """
    if len(problems) == 1:
        return problems[0] + remedy.format("it")
    more = len(problems) - LISTED
    rest = [f"  and {more:,} more"] if more > 0 else []
    lines = [f"  {problem}" for problem in problems[:LISTED]]
    head = f"{len(problems):,} problems{remedy.format('them')}:"
    return "\n".join([head, *lines, *rest])


class RecordError(ClaraError):
    """What is wrong with one record, of which there may be many that are alike.

    Attributes:
      place: where it stands, ``file:line`` or ``file: record N``.
      fault: what is wrong, and what to do.
    """

    def __init__(self, place: str, fault: str):
        super().__init__(place, fault)
        self.place, self.fault = place, fault

    def __str__(self) -> str:
        return f"{self.place}: {self.fault}"
