import json

import numpy
import pyarrow
import pytest
import tensorflow_datasets
from pyarrow import parquet

from clara_jax.data import Record, open_records, write_tfds
from clara_jax.data.__main__ import main
from clara_jax.errors import ClaraError


def write_jsonl(path, count, **fields):
    rows = [
        {"docs": [f"d{i}"], "question": f"q{i}?", "answer": f"a{i}", **fields}
        for i in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_files_follow_each_other(tmp_path):
    first = write_jsonl(tmp_path / "a.jsonl", 3)
    second = tmp_path / "b.jsonl"
    second.write_text('{"text": "t0"}\n{"text": "t1"}\n', encoding="utf-8")
    records = open_records([first, str(second)])
    assert len(records) == 5
    assert [r.documents[0] for r in records] == ["d0", "d1", "d2", "t0", "t1"]
    assert records[3].source == f"{second}:1"
    assert records[-1].documents == ("t1",)
    with pytest.raises(IndexError):
        records[5]


def test_limit(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", 3)
    assert len(open_records(path, limit=2)) == 2
    assert len(open_records(path, limit=9)) == 3
    assert len(list(open_records(path, limit=2))) == 2


def test_bad_lines_wait_until_they_are_asked_for(tmp_path):
    path = tmp_path / "a.jsonl"
    good = json.dumps({"docs": ["d"], "question": "q?", "answer": "a"})
    path.write_text(f"{good}\n{good[:-1]}\n", encoding="utf-8")
    records = open_records(path)
    assert records[0].answers == ("a",)
    with pytest.raises(ClaraError, match=r"a.jsonl:2: is not JSON"):
        records[1]


def test_refusals(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    path = write_jsonl(tmp_path / "a.jsonl", 1)
    with pytest.raises(ClaraError, match="data.format is 'clra'"):
        open_records(path, "clra")
    with pytest.raises(ClaraError, match="no such file"):
        open_records(tmp_path / "none.jsonl")
    with pytest.raises(ClaraError, match="no files"):
        open_records([])
    with pytest.raises(ClaraError, match="is a folder without a data set"):
        open_records(empty)
    with pytest.raises(ClaraError, match=r"a.jsonl:1: field 'context' is missing"):
        open_records(path, "hotpotqa")[0]


def test_tfds_folder_reads_back(tmp_path):
    train = [
        Record((f"d{i}", "ü"), (f"q{i}?",), ("a",), "qa", (1,), ("a", "b"), f"f:{i}")
        for i in range(30)
    ]
    other = [
        Record(("d",), (), ("d",), "paraphrase", (), ("d",)),
        Record(("d",), ("p?", "q?"), ("a", "b"), "qa", (), ("a", "b")),
        Record(("t",), kind="text"),
        Record(
            ("d",),
            ("p?", "q?"),
            ("a", "b"),
            gold=("a", "b"),
            accepted=(("a", "x"), ("b",)),
        ),
        Record(("d",), ("q?",), positives=(0,), missing=1, id="7"),
        Record(("d",), ("q?",), answerable=False),
    ]
    folder = write_tfds({"train": train, "test": other}, tmp_path / "new" / "set")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["set"]
    again = open_records(folder)
    assert len(again) == 30
    for i, record in enumerate(train):
        assert again[i].source == f"{folder}#train: record {i + 1}"
        assert again[i].__dict__ | {"source": ""} == record.__dict__ | {"source": ""}
    assert [r.kind for r in open_records(f"{folder}#test")] == [
        "paraphrase",
        "qa",
        "text",
        "qa",
        "qa",
        "qa",
    ]
    for i in (3, 4, 5):
        again = open_records(f"{folder}#test")[i]
        assert again.__dict__ | {"source": ""} == other[i].__dict__
    assert open_records(f"{folder}#test")[1].pair(1) == ("q?", "b", ("b",))
    with pytest.raises(ClaraError, match="has no split 'dev', only train, test"):
        open_records(f"{folder}#dev")
    with pytest.raises(ClaraError, match="exists already"):
        write_tfds({"train": train}, folder)


def test_records_of_every_format_go_through_a_tfds_folder(tmp_path, capsys):
    several = [
        {"question": "p?", "answer": ["x", "y"]},
        {"question": "q?", "contexts": ["", "c"], "answers": "z"},
    ]
    first, other = tmp_path / "a.jsonl", tmp_path / "b.parquet"
    first.write_text("\n".join(map(json.dumps, several)))
    rows = [
        {"docs": ["a", "b"], "question": "q?", "answers": ["x"], "pos_index": [1]},
        {"docs": ["c"], "answers": ["z"], "data_type": "paraphrase", "level": 3},
    ]
    rows[0] |= {"data_type": "qa", "level": None}
    parquet.write_table(pyarrow.Table.from_pylist(rows), other)
    folder = tmp_path / "set"
    assert main([str(first), f"test={other}", str(folder)]) == 0
    assert (
        "note: 1 blank documents, of 1 records, are left out" in capsys.readouterr().err
    )
    assert [(r.documents, r.pair()) for r in open_records(folder)] == [
        ((), ("p?", "x", ("x", "y"))),
        (("c",), ("q?", "z", ("z",))),
    ]
    for source, copy in zip(
        open_records(other), open_records(f"{folder}#test"), strict=True
    ):
        assert copy.__dict__ | {"source": source.source} == source.__dict__


def test_tfds_folders_of_others_are_read(tmp_path):
    features = tensorflow_datasets.features
    answers = {"text": features.Text(), "answer_start": numpy.int32}
    names = dict.fromkeys(("id", "context", "question"), features.Text())
    info = tensorflow_datasets.core.DatasetInfo(
        builder=tensorflow_datasets.core.dataset_info.DatasetIdentity(
            name="squad",
            version=tensorflow_datasets.core.Version("1.0.0"),
            data_dir=str(tmp_path),
            module_name=__name__,
        ),
        features=features.FeaturesDict(
            {**names, "answers": features.Sequence(answers)}
        ),
        disable_shuffling=True,
    )
    writer = tensorflow_datasets.core.SequentialWriter(
        info, 10, file_format="array_record"
    )
    writer.initialize_splits(["dev"])
    given = {"id": "7", "context": "c", "question": "q?"}
    for texts in (["x", "y"], []):
        found = [{"text": text, "answer_start": 0} for text in texts]
        writer.add_examples({"dev": [{**given, "answers": found}]})
    writer.close_all()
    records = open_records(tmp_path)
    assert records.formats == ("squad",) and records[0].gold == ("x", "y")
    assert records[0].id == "7" and records[0].documents == ("c",)
    assert not records[1].answerable


def test_tables_and_encodings(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_bytes(
        'question,answers,docs\nOù?,"[""né"", ""x""]",1984\n'.encode("cp1252")
    )
    record = open_records(path)[0]
    assert record.pair() == ("Où?", "né", ("né", "x")) and record.documents == ("1984",)
    told = "read as cp1252, since not UTF-8; if this is wrong, name it with --encoding"
    assert capsys.readouterr().err == f"note: {path}: {told}\n"
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"question": "Où?"}'.encode("cp1252"))
    assert open_records(path, encoding="cp1252")[0].questions == ("Où?",)
    assert capsys.readouterr().err == ""
    asked = "Où est né l'élève, et à quel âge a-t-il été reçu à l'école?"
    path.write_bytes(f'{{"question": "{asked}"}}'.encode("cp1252"))
    assert open_records(path)[0].questions == (asked,)
    assert capsys.readouterr().err == f"note: {path}: {told}\n"
    for encoding in ("utf-8", "utf-16", "utf-16-le"):
        path.write_bytes('{"question": "Où?"}'.encode(encoding))
        assert open_records(path)[0].questions == ("Où?",)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["a.txt", "a.xlsx", "a.txt.gz"])
def test_files_of_other_endings(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"PK\x03\x04\x00\x00 text\xff\n")
    with pytest.raises(
        ClaraError, match=rf"{name}: holds no .* ends in .jsonl, .*.tsv"
    ):
        open_records(path)


def test_an_ending_does_not_matter_to_json(tmp_path):
    path = write_jsonl(tmp_path / "a.txt", 2)
    assert len(open_records(path)) == 2
    path.write_text("")
    with pytest.raises(ClaraError, match=r"a.txt: holds no records$"):
        open_records(path)


def test_command_writes_a_tfds_folder(tmp_path, capsys):
    first = write_jsonl(tmp_path / "a.jsonl", 4)
    second = write_jsonl(tmp_path / "b.jsonl", 2)
    folder = tmp_path / "set"
    assert main([str(first), f"test={second}", str(folder)]) == 0
    assert "train 4, test 2 records" in capsys.readouterr().out
    assert len(open_records(folder)) == 4
    assert main([str(first), str(folder)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_bad_record_leaves_no_folder(tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", 2)
    path.write_text(path.read_text() + '\n{"docs": [""]}\n', encoding="utf-8")
    assert main([str(path), str(tmp_path / "set")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}:3: ")
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl"]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("x")])
def test_a_failed_write_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, error):
    records = open_records([write_jsonl(tmp_path / "a.jsonl", 3)])

    def full(*arguments, **options):
        raise error

    writer = tensorflow_datasets.core.SequentialWriter
    monkeypatch.setattr(writer, "add_examples", full)
    with pytest.raises(ClaraError, match="tfds: (the disk is full|cannot be written)"):
        write_tfds({"train": records}, tmp_path / "tfds")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("name", ["all", "1st", "a-b"])
def test_split_names(tmp_path, name):
    records = open_records([write_jsonl(tmp_path / "a.jsonl", 3)])
    with pytest.raises(ClaraError, match=f"'{name}' is not a name for a split"):
        write_tfds({name: records}, tmp_path / "tfds")


def test_half_a_surrogate_is_no_text(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", 1, gold_answer=["a \ud800"])
    with pytest.raises(ClaraError, match=r"a.jsonl:1: holds half of a surrogate"):
        open_records([path])[0]
