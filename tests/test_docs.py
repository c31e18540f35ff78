"""The README and the pages of docs/: short, linked rightly, and their Python runs."""

import dataclasses
import itertools
import re
from pathlib import Path

import pytest
from toy_folder import write_toy
from toy_store import toy_pieces, toy_settings, toy_vectors, write_store

from clara_jax.data.formats import FORMATS
from clara_jax.stages import STAGES

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LONGEST = 9_000
MODEL = "runs/quickstart/end_to_end"
"""What the pages load, where the quickstart leaves it."""

STORE = "stores/wiki.lance"
"""A store that pages open, of documents with a year and a team."""

FENCE = re.compile(r"^(```+)(\w*)[^\n]*\n(.*?)^\1 *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?)(?: +#+)? *$", re.MULTILINE)
MODULE = re.compile(r"python3? -m clara_jax\.([\w.]*\w)")
FILE = re.compile(r"(?<![\w/.])(?:configs|launch|tests)/[\w./-]*\w\.\w+")


def every(pages):
    return pytest.mark.parametrize("page", list(pages), ids=name_of)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """Fenced blocks of a language, each with the number of its first line."""
    return [
        (text.count("\n", 0, found.start(3)) + 1, found[3])
        for found in FENCE.finditer(text)
        if found[2] == language
    ]


def prose(text: str) -> str:
    """The text without fenced blocks and code in lines."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).strip().replace(" ", "-")
        names = itertools.chain([slug], (f"{slug}-{i}" for i in itertools.count(1)))
        found.add(next(name for name in names if name not in found))
    return found


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    broken = []
    for link in LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        there = target.exists() and target.is_relative_to(ROOT)
        if there and anchor:
            aim = text if target == page else target.read_text(encoding="utf-8")
            there = anchor in anchors(aim)
        if not there:
            broken.append(link)
    return broken


def missing_names(text: str) -> list[str]:
    """Commands and files that a page names and that do not exist."""
    package = ROOT / "clara_jax"
    commands = {name.replace(".", "/") for name in MODULE.findall(text)}
    missing = {
        f"python -m clara_jax.{name}"
        for name in commands
        if not (package / name / "__main__.py").is_file()
        and not (package / f"{name}.py").is_file()
    }
    files = set(FILE.findall(text))
    return sorted(missing | {name for name in files if not (ROOT / name).is_file()})


def run(page: str, text: str) -> None:
    """Run a page's Python from its first block to its last."""
    namespace = {"__name__": "__main__"}
    for line, code in blocks(text, "python"):
        # As many blank lines before it as make an error name the page's line.
        exec(compile("\n" * (line - 1) + code, page, "exec"), namespace)


def test_the_readme_is_short():
    assert len(README.read_bytes()) <= LONGEST, "move something to docs/"


@every(PAGES)
def test_links_lead_somewhere(page: Path):
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


@every(PAGES)
def test_commands_and_files_exist(page: Path):
    assert missing_names(page.read_text(encoding="utf-8")) == []


@every(p for p in PAGES if blocks(p.read_text(encoding="utf-8"), "python"))
def test_the_python_of_a_page_runs(page: Path, tmp_path, monkeypatch):
    text = page.read_text(encoding="utf-8")
    write_toy(tmp_path / MODEL)
    if STORE in text:
        fields = [
            {"year": 2018 + i, "team": "legal people".split()[i % 2]} for i in range(7)
        ]
        pieces = [
            dataclasses.replace(piece, metadata=own)
            for piece, own in zip(toy_pieces(7), fields, strict=True)
        ]
        write_store(tmp_path / STORE, toy_settings(), toy_vectors(7), pieces, 3)
    monkeypatch.chdir(tmp_path)
    tables = [(table, dict(table)) for table in (STAGES, FORMATS)]
    try:
        run(name_of(page), text)
    finally:
        for table, before in tables:  # what the page has added is taken away
            table.clear()
            table.update(before)


def test_the_readme_is_in_the_test_of_python():
    assert blocks(README.read_text(encoding="utf-8"), "python")


def test_all_pages_are_linked_from_the_readme():
    linked = LINK.findall(README.read_text(encoding="utf-8"))
    found = {(ROOT / link.partition("#")[0]).resolve() for link in linked}
    assert {page for page in PAGES if page != README} <= found


def test_pages_name_no_private_place():
    places = re.compile(r"(?<![\w.])/(?:root|home|work|Users)/\w")
    for page in PAGES:
        assert not places.search(page.read_text(encoding="utf-8")), page


# The checks themselves find what is wrong.


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("[a](README.md)", []),
        ("[a](#there)\n\n## There", []),
        ("[a](#twice-1)\n\n# Twice\n\n# Twice", []),
        ("[a](#not-done-or-code)\n\n# Not done, or `code`?", []),
        ("[a](docs/images/clara.svg) [b](https://example.org/x)", []),
        ("```bash\n[a](nowhere.md)\n```\n`[b](nowhere.md)`", []),
        ("[a](nowhere.md)", ["nowhere.md"]),
        ("![a](docs/images/none.svg)", ["docs/images/none.svg"]),
        ("[a](#twice-2)\n\n# Twice\n\n# Twice", ["#twice-2"]),
        ("[a](#comment)\n```bash\n# comment\n```", ["#comment"]),
        ("[a\nb](setup.py#no-heading)", ["setup.py#no-heading"]),
        ("[a](../outside.md)", ["../outside.md"]),
    ],
)
def test_a_made_up_link_is_judged(text, broken):
    assert broken_links(README, text) == broken


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("python -m clara_jax.train --config=configs/tiny.py:scp", []),
        ("`python -m clara_jax.dance.`", ["python -m clara_jax.dance"]),
        ("see configs/dance.py.", ["configs/dance.py"]),
        ("`launch/dance.sh` and tests/test_docs.py", ["launch/dance.sh"]),
        ("mine/configs/dance.py", []),
    ],
)
def test_a_made_up_name_is_judged(text, missing):
    assert missing_names(text) == missing


def test_blocks_share_names_and_errors_name_their_line():
    text = "\n\n".join(
        [
            "```python\nvalue = 2\n```",
            "```bash\nvalue = 3\n```",
            "```python\nassert value == 2\nraise ValueError(value)\n```",
        ]
    )
    with pytest.raises(ValueError, match="2") as caught:
        run("page.md", text)
    last = caught.traceback[-1]
    assert (str(last.path), last.lineno + 1) == ("page.md", 11)
