"""Documents of offices as text: PDF, Word, PowerPoint, Excel, HTML and EPUB files.

What pages there are, of PDF files and of presentations, are kept apart. Converted texts
are kept in the user's cache folder, by the checksum of the file, since converting takes
longer than reading all else.

PDF files are read by PDFium, others by Microsoft's MarkItDown: the extra ``documents``.
"""

import contextlib
import importlib.metadata
import json
import re
from pathlib import Path
from typing import IO, Any, NamedTuple

from clara_jax.data.encodings import find_encoding
from clara_jax.errors import ClaraError
from clara_jax.files import cache_folder, first_line, replace_file

OFFICE_SUFFIXES = (
    ".pdf",
    ".docx",
    ".pptx",
    ".xlsx",
    ".html",
    ".htm",
    ".xhtml",
    ".epub",
    ".ipynb",
)

_OLD = {".doc": ".docx", ".ppt": ".pptx", ".xls": ".xlsx", ".rtf": ".docx"}
_OLD |= {".odt": ".docx", ".odp": ".pptx", ".ods": ".xlsx", ".pages": ".docx"}
"""Formats that are not read, and what to save them as."""

_HTML: dict[str, str] = dict.fromkeys((".html", ".htm", ".xhtml"), "HtmlConverter")
_SLIDE = re.compile(r"\n*<!-- Slide number: \d+ -->\n")
_FORM = 1
"""Changes where the same file would be converted otherwise."""


class Converted(NamedTuple):
    """The text of a file.

    Attributes:
      title: of its own; may be empty.
      pages: one text, or those of its pages in order.
      numbered: whether these are pages.
    """

    title: str
    pages: list[str]
    numbered: bool


def refuse_old(path: Path) -> None:
    """Refuse a file in a format that offices have left behind, or that is not read.

    Raises:
      ClaraError: names the format to save it in.
    """
    if new := _OLD.get(path.suffix.lower()):
        raise ClaraError(f"{path}: {path.suffix} is not read; save it as {new} or PDF")


def convert_file(path: Path, digest: str) -> Converted:
    """Return the text of a file that ends as in `OFFICE_SUFFIXES`.

    Args:
      path: the file.
      digest: checksum of its content, by which the text is kept.

    Raises:
      ClaraError: the extra is not installed, or the file is damaged or encrypted.
    """
    kept = cache_folder() / "converted" / f"{digest}{path.suffix.lower()}.json"
    version = f"{_FORM} {_version(path)}"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        values = json.loads(kept.read_text(encoding="utf-8"))
        if values.pop("version") == version:
            return Converted(**values)
    found = _converted(path)
    values = {"version": version, **found._asdict()}
    # Without the cache it takes longer, and no more.
    with contextlib.suppress(ClaraError):
        text = json.dumps(values, ensure_ascii=False)
        replace_file(kept, text.encode("utf-8", "replace"))
    return found


def _version(path: Path) -> str:
    package = "pypdfium2" if path.suffix.lower() == ".pdf" else "markitdown"
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise ClaraError(
            f"{path}: reading {path.suffix.lower()} needs the extra documents; install "
            "it: pip install 'clara_jax[documents]'"
        ) from error


def _converted(path: Path) -> Converted:
    kind = path.suffix.lower()
    try:
        return _pdf(path) if kind == ".pdf" else _marked_down(path, kind)
    except OSError as error:
        raise ClaraError(f"{path}: {error.strerror or first_line(error)}") from error
    except Exception as error:
        raise ClaraError(
            f"{path}: cannot be read as {kind} ({first_line(error)}); open it and save "
            "it again"
        ) from error


def _marked_down(path: Path, kind: str) -> Converted:
    """Read a file as what its name says; MarkItDown by itself takes it for others."""
    from markitdown import StreamInfo, converters

    web = _HTML.get(kind)
    name = web or f"{kind[1:].capitalize()}Converter"
    with path.open("rb") as file:
        charset = _charset(file, str(path)) if web else None
        file.seek(0)
        info = StreamInfo(extension=kind, charset=charset)
        found: Any = getattr(converters, name)().convert(file, info)
    title, text = (found.title or "").strip(), found.markdown.strip()
    if kind != ".pptx":
        return Converted(title, [text], False)
    return Converted(title, _SLIDE.split(f"\n{text}")[1:], True)


def _charset(file: IO[bytes], path: str) -> str:
    """The encoding that a page declares, else the one that is found."""
    from bs4.dammit import EncodingDetector

    declared = EncodingDetector.find_declared_encoding(file.read(4096), is_html=True)
    return declared or find_encoding(file, path)


def _pdf(path: Path) -> Converted:
    import pypdfium2

    with pypdfium2.PdfDocument(path) as pdf:
        title = pdf.get_metadata_dict().get("Title", "").strip()
        pages = []
        for page in pdf:
            with contextlib.closing(page), contextlib.closing(page.get_textpage()) as t:
                pages.append(_plain(t.get_text_bounded()))
    return Converted(title, pages, True)


def _plain(text: str) -> str:
    """Text as PDFium gives it, with words whole that are parted at ends of lines."""
    return re.sub("[\ufffe\x02]\r?\n?", "", text).replace("\r\n", "\n")
