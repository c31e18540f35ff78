import json

import pytest
from toy_splits import rows, write_shards

from clara_jax.data import open_records
from clara_jax.errors import ClaraError


def asked(path):
    return [record.questions[0] for record in open_records(path)]


def test_shards_by_split(tmp_path):
    shards = write_shards(tmp_path / "set")
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
