"""Documents of offices, converted by packages that are not ours."""

import importlib.metadata
import json
import zipfile

import pytest

from clara_jax.data import Corpus, office_files
from clara_jax.errors import ClaraError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "clara_jax" / "converted"


def pdf(*pages: str) -> bytes:
    """A PDF file with a line of text on each page."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET"
        objects += [
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * i} 0 R >>",
            f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        ]
    data, places = b"%PDF-1.4\n", []
    for i, text in enumerate(objects, 1):
        places.append(len(data))
        data += f"{i} 0 obj\n{text}\nendobj\n".encode()
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size = len(objects) + 1
    end = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n"
    end += f"<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(data)}\n%%EOF\n"
    return data + end.encode()


def test_pages_of_a_pdf_file_are_its_places(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf("Page one.", "", "The third page."))
    corpus = Corpus([tmp_path])
    assert [(d.id, d.title, d.source, d.text, d.metadata) for d in corpus[0]] == [
        ("a.pdf", "a.pdf", "a.pdf, page 1", "Page one.", {"page": 1}),
        (
            "a.pdf",
            "a.pdf",
            "a.pdf, page 3",
            "The third page.",
            {"page": 3},
        ),
    ]
    assert corpus.notes == ["left out, since blank: a.pdf, page 2"]
    assert corpus.fields == {"page": "int"}


def test_slides(tmp_path):
    pptx = pytest.importorskip("pptx", reason="needs the extra documents")
    slides = pptx.Presentation()
    for i in (1, 2):
        slide = slides.slides.add_slide(slides.slide_layouts[1])
        slide.shapes.title.text = f"Title {i}"
        slide.placeholders[1].text = f"body {i}"
    slides.save(tmp_path / "a.pptx")
    documents = Corpus([tmp_path]).all()
    assert [(d.source, d.text) for d in documents] == [
        ("a.pptx, page 1", "# Title 1\nbody 1"),
        ("a.pptx, page 2", "# Title 2\nbody 2"),
    ]


def zipped(path, **files):
    with zipfile.ZipFile(path, "w") as file:
        for name, text in files.items():
            file.writestr(name.replace("__", "/").replace("_", "."), text)


WORD = """<w:document
xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">
<w:body><w:p><w:r><w:t>In Word</w:t></w:r></w:p></w:body></w:document>"""
CONTAINER = (
    '<container><rootfiles><rootfile full-path="o.opf"/></rootfiles></container>'
)
PACKAGE = """<package xmlns="http://www.idpf.org/2007/opf"
xmlns:dc="http://purl.org/dc/elements/1.1/">
<metadata><dc:title>Book</dc:title></metadata>
<manifest><item id="a" href="a.xhtml"/></manifest>
<spine><itemref idref="a"/></spine></package>"""


def test_other_files(tmp_path):
    (tmp_path / "a.html").write_text(
        "<html><head><title>T &amp; U</title><script>no()</script></head>"
        "<body><h1>Head</h1><p>Caf\u00e9 <b>bold</b></p></body></html>",
        encoding="utf-8",
    )
    zipped(tmp_path / "b.docx", word__document_xml=WORD)
    book = {"META-INF__container_xml": CONTAINER, "o_opf": PACKAGE}
    zipped(tmp_path / "c.epub", a_xhtml="<p>In a book</p>", **book)
    page = '<html><meta charset="shift_jis"><body><p>日本語</p></body></html>'
    (tmp_path / "d.htm").write_bytes(page.encode("shift_jis"))
    (tmp_path / "e.html").write_bytes("<p>Où est l’été?</p>".encode("cp1252"))
    found = {d.id: d for d in Corpus([tmp_path]).all()}
    assert (found["a.html"].title, found["a.html"].text) == (
        "T & U",
        "# Head\n\nCafé **bold**",
    )
    assert found["b.docx"].text == "In Word"
    assert (found["d.htm"].text, found["e.html"].text) == ("日本語", "Où est l’été?")
    assert found["c.epub"].title == "Book" and "In a book" in found["c.epub"].text


def test_a_file_is_converted_once(tmp_path, monkeypatch, cache):
    (tmp_path / "a.pdf").write_bytes(pdf("Page one."))
    before = Corpus([tmp_path]).all()
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(office_files, "_converted", pytest.fail)
    assert Corpus([tmp_path]).all() == before
    # What is kept is damaged, or was made by another version.
    monkeypatch.undo()
    (kept,) = cache.iterdir()
    for text in ("{", json.dumps({"version": "0", "title": "", "pages": ["x"]})):
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent.parent))
        kept.write_text(text)
        assert Corpus([tmp_path]).all() == before


def test_files_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4 nothing")
    (tmp_path / "b.docx").write_bytes(b"PK nothing")
    (tmp_path / "c.txt").write_text("fine")
    with pytest.raises(ClaraError) as caught:
        Corpus([tmp_path])
    assert str(caught.value).count("cannot be read as .") == 2
    with pytest.raises(
        ClaraError, match=r"old.doc: .doc is not read; save it as .docx"
    ):
        (tmp_path / "old.doc").write_bytes(b"\xd0\xcf\x11\xe0")
        Corpus([tmp_path / "old.doc"])

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ClaraError, match=r"pip install 'clara_jax\[documents\]'"):
        Corpus([tmp_path])
