"""The benchmarks of searching run, and say where the crossover is."""

import csv
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import conditions
import made_up
import numpy as np
import search
import search_growth

pytest.importorskip("scann", reason="wheels for Linux x86-64 only")


def test_the_crossover_is_a_table_and_a_line(capsys):
    given = "--synthetic 300 --shape 2 32 --sizes 900 400 --count 8 --exact-count 2"
    search.main(given.split())
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("300 documents of [2, 32], bfloat16, and perturbed")
    assert told[2].startswith("| documents | method | exact, ms p50 | scann, ms p50")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told[4:6]]
    assert [row[0] for row in rows] == ["400", "900"]
    assert all(float(row[6]) > 0.9 for row in rows)
    assert "the faster one" in told[7]


@pytest.mark.parametrize(
    ("ratios", "says"),
    [
        ([2, 3, 4], "from the smallest size on (10)"),
        (
            [0.1, 0.5, 0.9],
            "exact search is the faster one up to the largest size (1,000)",
        ),
        ([0.1, 0.5, 2.0], "from about 316 documents on"),
    ],
)
def test_the_crossover_lies_between_sizes(ratios, says):
    assert says in search.crossover([10, 100, 1000], ratios)


def test_copies_come_after_the_documents_and_near_them(tmp_path):
    settings = made_up.settings_of(2, 8)
    vectors = made_up.topical(40, 2, 8)
    base = made_up.write(tmp_path / "s", settings, 40, vectors)
    grown = made_up.perturbed(base, noise=0.25)(0, 120).reshape(120, -1)
    np.testing.assert_array_equal(grown[:40], base.vectors(range(40)).reshape(40, -1))
    typical = np.median(np.linalg.norm(grown[:39] - grown[1:40], axis=1))
    for copies in (grown[40:80], grown[80:]):
        away = np.linalg.norm(copies - grown[:40], axis=1)
        assert 0.1 * typical < away.min() and np.median(away) < 0.8 * typical


def test_conditions_are_a_table(capsys):
    conditions.main("--documents 900 --shape 2 16 --count 4".split())
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "900 documents of [2, 16], 4 questions, brute force"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said[4:]]
    assert [row[0] for row in rows] == [
        "all",
        *(f"1 in {share}" for share in ("2", "10", "100", "1,000")),
    ]
    assert all(float(row[1]) > 0.9 for row in rows)


@pytest.mark.slow
def test_growth_is_a_table_a_file_and_a_picture(tmp_path, capsys):
    search_growth.main(
        f"--output {tmp_path} --sizes 300 --shape 2 8 --count 10 --repeat 1".split()
    )
    told = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in told[2:]] == ["300"]
    with (tmp_path / "growth.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["documents"] for row in rows] == ["300"]
    for row in rows:
        assert float(row["recall"]) > 0.9 and float(row["exact_peak_mb"]) > 50
        assert float(row["exact_p50_ms"]) <= float(row["exact_p99_ms"])
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
