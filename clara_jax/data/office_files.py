"""Documents of offices as text: PDF, Word, PowerPoint, Excel, HTML and EPUB files.

What pages there are, of PDF files and of presentations, are kept apart. Converted texts
are kept in the user's cache folder, by the checksum of the file, since converting takes
longer than reading all else.

PDF files are read by PDFium, others by Microsoft's MarkItDown: the extra ``documents``.
"""

import contextlib
import importlib.metadata
import json
import logging
import re
import warnings
from pathlib import Path
from typing import IO, Any, NamedTuple

from clara_jax.data.encodings import find_encoding
from clara_jax.data.plain_files import COMPRESSED
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
_OLD |= {".docm": ".docx", ".xlsm": ".xlsx", ".pptm": ".pptx", ".ppsx": ".pptx"}
_OLD |= {".odt": ".docx", ".odp": ".pptx", ".ods": ".xlsx", ".pages": ".docx"}
"""Formats that are not read, and what to save them as."""

_HTML: dict[str, str] = dict.fromkeys((".html", ".htm", ".xhtml"), "HtmlConverter")
_NO_CELL = re.compile(r"(?<=\| )(?:NaN|NaT|Unnamed: \d+) (?=\|)")
"""What pandas, by which workbooks are read, writes for cells that are empty."""

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


def old_format(path: Path) -> str:
    """Return the problem with a file whose format is not read any more, or empty."""
    if new := _OLD.get(path.suffix.lower()):
        return f"{path}: {path.suffix} is not read; save it as {new} or PDF"
    return ""


def convert_file(path: Path, digest: str) -> Converted:
    """Return the text of a file that ends as in `OFFICE_SUFFIXES`.

    Args:
      path: the file.
      digest: checksum of its content, by which the text is kept.

    Raises:
      ClaraError: the extra is not installed, or the file is damaged or encrypted.
    """
    if path.suffix.lower() in COMPRESSED:
        raise ClaraError(f"{path}: compressed files of offices are not read; unpack it")
    kept = cache_folder() / "converted" / f"{digest}{path.suffix.lower()}.json"
    version = f"{_FORM} {_version(path)}"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        values = json.loads(kept.read_text(encoding="utf-8"))
        if values.pop("version") == version:
            return Converted(**values)
    found = _converted(path)
    # What is not text is so now, and not only when it is read again.
    pages = [page.encode("utf-8", "replace").decode() for page in found.pages]
    found = found._replace(pages=pages)
    values = {"version": version, **found._asdict()}
    # Without the cache it takes longer, and no more.
    with contextlib.suppress(ClaraError):
        text = json.dumps(values, ensure_ascii=False)
        replace_file(kept, text.encode())
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
        line = first_line(error)
        remedy = "open it and save it again"
        if "password" in line.lower() or "encrypt" in line.lower():
            remedy = "save it without a password"
        raise ClaraError(
            f"{path}: cannot be read as {kind} ({line}); {remedy}"
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
        # It says which letters it replaced, and not in which file.
        logging.getLogger("bs4.dammit").setLevel(logging.ERROR)
        with warnings.catch_warnings(action="ignore"):
            found: Any = getattr(converters, name)().convert(file, info)
    title, text = " ".join((found.title or "").split()), found.markdown.strip()
    if kind == ".xlsx":
        text = _NO_CELL.sub("", text)
    if kind != ".pptx":
        return Converted(title, [text], False)
    return Converted(title, _SLIDE.split(f"\n{text}")[1:], True)


def _charset(file: IO[bytes], path: str) -> str:
    """The encoding that a page declares, else the one that is found."""
    from bs4.dammit import EncodingDetector

    declared = EncodingDetector.find_declared_encoding(file.read(4096), is_html=True)
    # A page in UTF-16 could not be read so far.
    wide = (declared or "utf-16").lower().startswith(("utf-16", "utf16", "utf-32"))
    return find_encoding(file, path) if wide or not declared else declared


def _pdf(path: Path) -> Converted:
    import pypdfium2

    with pypdfium2.PdfDocument(path) as pdf:
        title = " ".join(pdf.get_metadata_dict().get("Title", "").split())
        pages = []
        for page in pdf:
            with contextlib.closing(page), contextlib.closing(page.get_textpage()) as t:
                pages.append(_plain(t.get_text_bounded()))
    return Converted(title, pages, True)


def _plain(text: str) -> str:
    """Text as PDFium gives it, with words whole that are parted at ends of lines."""
    return re.sub("[\ufffe\x02]\r?\n?", "", text).replace("\r\n", "\n")
