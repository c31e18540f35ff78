"""What the datasets library has saved, and what it reads by name from the hub."""

import pytest
from toy_splits import rows, write_shards

from clara_jax.data import open_records
from clara_jax.data.work import checksums, silent
from clara_jax.errors import ClaraError

datasets = pytest.importorskip("datasets")


def asked(path):
    return [record.questions[0] for record in open_records(path)]


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


def test_a_name_of_the_hub_is_read_by_the_datasets_library(tmp_path, monkeypatch):
    shards = write_shards(tmp_path / "set")
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
