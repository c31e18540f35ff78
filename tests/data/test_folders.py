import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from clara_jax.data import open_records
from clara_jax.data.work import checksums, silent
from clara_jax.errors import ClaraError

datasets = pytest.importorskip("datasets")


def rows(name, count):
    return [
        {"question": f"{name}{i}?", "answers": ["x"], "docs": ["d"], "level": None}
        for i in range(count)
    ]


def asked(path):
    return [record.questions[0] for record in open_records(path)]


@pytest.fixture
def shards(tmp_path):
    """Make a folder as the hub has them: shards of a split, and another split."""
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "set" / "README.md").write_text("text")
    (tmp_path / "set" / "dataset_infos.json").write_text("{}")
    names = (
        "train-00000-of-00002",
        "train-00001-of-00002",
        "validation-00000-of-00001",
    )
    for name in names:
        table = pa.Table.from_pylist(rows(name[:7], 2))
        pyarrow.parquet.write_table(
            table, tmp_path / "set" / "data" / f"{name}.parquet"
        )
    return tmp_path / "set"


def test_shards_by_split(shards):
    assert asked(shards) == ["train-00?", "train-01?"] * 2
    assert asked(f"{shards}#validation") == ["validat0?", "validat1?"]
    first = open_records(f"{shards}#train")[2].source
    assert first == f"{shards}/data/train-00001-of-00002.parquet: record 1"
    with pytest.raises(ClaraError, match="no split 'dev', only train, validation; nam"):
        open_records(f"{shards}#dev")


def test_configs_are_not_mixed(tmp_path):
    for name in ("a/train/0000", "a/train/0001", "b/train/0000"):
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows(name, 1)[0]))
    assert asked(tmp_path / "a") == ["a/train/00000?", "a/train/00010?"]
    with pytest.raises(
        ClaraError, match="split 'train' in several folders, .*a and .*b"
    ):
        open_records(tmp_path)


def test_files_by_split(tmp_path):
    for name in ("dev.jsonl", ".dev.jsonl", "about.txt"):
        text = "\n".join(json.dumps(row) for row in rows("dev", 2))
        (tmp_path / name).write_text(text)
    assert asked(tmp_path) == ["dev0?", "dev1?"]
    (tmp_path / "test.jsonl").write_text(json.dumps(rows("test", 1)[0]))
    assert asked(f"{tmp_path}#test") == ["test0?"]
    with pytest.raises(ClaraError, match="has no split 'train', only dev, test; name"):
        open_records(tmp_path)


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows(f"{path.stem} ", 1)[0]))


@pytest.mark.parametrize(
    ("names", "split", "asks"),
    [
        (
            ["hotpot_train_v1.1.json", "hotpot_dev_distractor_v1.json"],
            "",
            ["hotpot_train_v1.1"],
        ),
        (
            ["hotpot_train_v1.1.json", "hotpot_dev_distractor_v1.json"],
            "#dev",
            ["hotpot_dev_distractor_v1"],
        ),
        (
            ["musique_ans_v1.0_train.jsonl", "musique_ans_v1.0_dev.jsonl"],
            "#dev",
            ["musique_ans_v1.0_dev"],
        ),
        (["q_v1.0.json", "q_v1.1.json"], "#q_v1.1", ["q_v1.1"]),
        (["q_2019.json", "q_2020.json"], "#q_2020", ["q_2020"]),
        (["q_1.json", "q_2.json", "q_10.json"], "#q", ["q_1", "q_10", "q_2"]),
        (["train.0.json", "train.1.json"], "", ["train.0", "train.1"]),
        (
            ["train-7-of-9.json", "train-8-of-9.json"],
            "",
            ["train-7-of-9", "train-8-of-9"],
        ),
    ],
)
def test_numbers_of_shards_and_other_numbers(tmp_path, names, split, asks):
    make(tmp_path, *names)
    found = [text.split(" ")[0] for text in asked(f"{tmp_path}{split}")]
    assert found == asks


def test_a_word_that_two_files_have_is_refused(tmp_path):
    make(tmp_path, "musique_ans_v1.0_train.jsonl", "musique_full_v1.0_train.jsonl")
    message = "has several splits 'train', musique_ans_v1.0_train, .*; name one as"
    with pytest.raises(ClaraError, match=message):
        open_records(tmp_path)


def test_what_the_datasets_library_saves(tmp_path):
    one = datasets.Dataset.from_list(rows("a", 3))
    both = datasets.DatasetDict(train=one, test=one.select([2]))
    one.save_to_disk(str(tmp_path / "one"), num_shards=2)
    both.save_to_disk(str(tmp_path / "both"))
    assert asked(tmp_path / "one") == asked(tmp_path / "both") == ["a0?", "a1?", "a2?"]
    records = open_records(f"{tmp_path / 'both'}#test")
    assert records[0].source == f"{tmp_path / 'both'}#test: record 1"
    assert [record.questions for record in records] == [("a2?",)]
    with pytest.raises(ClaraError, match="has no split 'dev', only train, test"):
        open_records(f"{tmp_path / 'both'}#dev")
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(ClaraError, match="one: cannot be read as a data set of the da"):
        open_records(tmp_path / "one")


def test_a_name_of_the_hub_is_read_by_the_datasets_library(shards, monkeypatch):
    cache = str(shards.parent / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    assert len(asked(f"hf:{shards}")) == 4
    records = open_records(f"hf:{shards}#validation[:1]")
    assert [r.source for r in records] == [f"hf:{shards}#validation[:1]: record 1"]
    names = [f"hf:{shards}", f"hf:{shards}#train"]
    one, same = checksums(names, silent)[0]
    assert one == same != checksums([shards], silent)[0][0]
    for name, message in (
        (
            f"hf:{shards}#dev",
            r"#dev: cannot be loaded \(Unknown split \"dev\".*CONFIG#SP",
        ),
        (f"hf:{shards}:no#train", r"cannot be loaded \(BuilderConfig 'no' not found"),
        ("hf:", "'hf:' names no data set; write hf:OWNER/NAME"),
        (f"{shards}/none", "no such file or folder; a data set of the hub is named hf"),
    ):
        with pytest.raises(ClaraError, match=message) as caught:
            open_records(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("x doesn't exist"),
            "is not on the hub",
        ),
        (
            datasets.exceptions.DatasetNotFoundError("x is a gated dataset"),
            "is gated: accep",
        ),
        (ConnectionError("Couldn't reach"), "the hub cannot be reached"),
        (RuntimeError("Dataset scripts are no longer supported"), "is a program"),
        (
            ValueError("Config name is missing.\nPick one"),
            "cannot be loaded .Config name",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_line(monkeypatch, error, message):
    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ClaraError, match=f"hf:o/n#train: {message}") as caught:
        open_records("hf:o/n#train")
    assert "\n" not in str(caught.value)


def test_without_the_library_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ClaraError, match=r"pip install 'clara_jax\[datasets\]'"):
        open_records("hf:o/n#train")
