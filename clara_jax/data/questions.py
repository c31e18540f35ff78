"""Questions out of files."""

from pathlib import Path
from typing import Any

from clara_jax.data.document_files import DocumentFile, fault_of
from clara_jax.data.encodings import read_text
from clara_jax.data.row_files import open_rows
from clara_jax.errors import ClaraError, listed


def read_questions(path: str | Path, encoding: str = "") -> list[tuple[str, str]]:
    """Read a file of questions, each with where it stands, ``file:line``.

    Text files hold one a line; other files rows with ``question`` (or ``query``, or
    ``text``, as BEIR has it), or texts.

    Raises:
      ClaraError: the file cannot be read, or holds none; a row has no question.
    """
    if fault := fault_of(Path(path)):
        raise ClaraError(f"{path}: {fault}")
    kind = DocumentFile(Path(path), str(path), True).kind
    if kind == "office":
        raise ClaraError(f"{path}: is not a file of questions; save them as text")
    found, problems = [], []
    if kind == "text":
        # Not splitlines: a question may hold other line breaks.
        lines = enumerate(read_text(path, encoding)[0].split("\n"), 1)
        found = [(line.strip(), f"{path}:{i}") for i, line in lines if line.strip()]
    else:
        rows = open_rows(path, encoding)
        for i in range(len(rows)):
            try:
                found.append(_question(*rows[i]))
            except ClaraError as error:
                problems.append(str(error))
    if problems:
        raise ClaraError(listed(problems))
    if not found:
        raise ClaraError(f"{path}: holds no questions")
    return found


def _question(values: Any, place: str) -> tuple[str, str]:
    if isinstance(values, dict):
        values = {str(name).lower(): value for name, value in values.items()}
        known = (values.get(name) for name in ("question", "query", "text"))
        values = next((value for value in known if value is not None), None)
    if isinstance(values, int | float) and not isinstance(values, bool):
        values = str(values)
    if not isinstance(values, str) or not values.strip():
        raise ClaraError(f"{place}: has no 'question' that is one text")
    return values, place
