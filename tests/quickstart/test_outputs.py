"""Files of records, which every stage reads, and the report of what was learned."""

import json
from pathlib import Path

import pytest
from toy_stages import example_maker

from clara_jax.config import DataConfig, MemoryConfig
from clara_jax.convert import load_model, write_hf_folder
from clara_jax.data import open_records
from clara_jax.errors import ClaraError
from clara_jax.evaluate import plots
from clara_jax.quickstart import BASE, prepare, report, world
from clara_jax.quickstart.__main__ import main
from clara_jax.quickstart.outputs import random_base, table
from clara_jax.text import ClaraTokenizer, load_tokenizer
from clara_jax.train import expand, load_config, run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = {
    "scp": 30,
    "instruct": 20,
    "end_to_end": 40,
    "held_out": 20,
    "candidates": 5,
    "alike": 2,
}
MEMORY = MemoryConfig(doc_max_length=34, compression_rate=4)
NUMBERS = {
    "questions": 200.0,
    "document_tokens": 27.3,
    "vectors": 6.0,
    "candidates": 20.0,
    "chance/recall@1": 0.05,
    "chance/recall@5": 0.25,
    "chance/exact_match": 0.012,
    "base/text/exact_match": 1.0,
    "before/gold/exact_match": 0.99,
    "after/gold/exact_match": 0.98,
    "before/selected/exact_match": 0.3,
    "before/recall@1": 0.31,
    "before/recall@5": 0.6,
    "after/selected/exact_match": 0.94,
    "after/recall@1": 0.95,
    "after/recall@5": 1.0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("world"), SMALL)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_same_settings_give_the_same_bytes(folder, tmp_path):
    again = prepare(tmp_path, SMALL)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    before = {path: path.stat().st_mtime_ns for path in again.iterdir()}
    prepare(tmp_path, SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in again.iterdir()}


def test_other_settings_are_refused(folder):
    with pytest.raises(ClaraError, match="holds other data"):
        prepare(folder.parent, {**SMALL, "seed": 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scpp": 3}, "quickstart.scpp"),
        ({"records": "all"}, "one of stages, pretraining, encyclopedia"),
        ({"held_out": 0}, "quickstart.held_out.* above 0"),
        ({"alike": -1}, "quickstart.alike.* negative"),
        ({"documents": 21}, "quickstart.documents.* at most 20"),
        ({"alike": 20}, r"above alike \(20\) and at most 200"),
        ({"candidates": 300}, "quickstart.candidates"),
    ],
)
def test_bad_settings(tmp_path, settings, message):
    with pytest.raises(ClaraError, match=message):
        prepare(tmp_path, settings)
    assert not list(tmp_path.iterdir())


def test_no_held_out_name_is_in_training(folder, tmp_path):
    texts = [(folder / f"{s}.jsonl").read_text() for s in ("scp", "instruct")]
    texts += [(folder / "end_to_end.jsonl").read_text()]
    base = prepare(tmp_path, {"records": "pretraining", "pretraining": 200})
    texts += [(base / "pretraining.jsonl").read_text()]
    held = world.NAMES[True]
    for text in texts:
        assert not [name for name in held if name in text]


def test_one_candidate_alone_is_right(folder):
    held = world.NAMES[True]
    for row in rows(folder / "held_out.jsonl"):
        assert len(row["docs"]) == 5
        name = next(name for name in held if name in row["question"])
        right = [i for i, text in enumerate(row["docs"]) if name in text]
        assert right == row["pos_index"]
        assert row["answer"] in row["docs"][right[0]]


def test_the_corpus_holds_every_document_that_is_asked_about_once(folder):
    corpus = rows(folder / "corpus.jsonl")
    assert len(corpus) == len({row["id"] for row in corpus}) == 28 * 28
    texts = {row["text"] for row in corpus}
    assert len(texts) == len(corpus)
    for name in ("end_to_end", "held_out"):
        for row in rows(folder / f"{name}.jsonl"):
            assert texts.issuperset(row["docs"])
    assert texts > {row["text"] for row in rows(folder / "documents.jsonl")}


@pytest.mark.parametrize(
    ("stage", "file", "longest"),
    [
        ("scp", "scp", 72),
        ("instruct", "instruct", 36),
        ("instruct", "held_out", 36),
        ("end_to_end", "end_to_end", 36),
    ],
)
def test_stages_read_the_files_uncut(folder, stage, file, longest):
    data = DataConfig(prompt_max_length=longest, question_max_length=12)
    tokenizer = ClaraTokenizer(load_tokenizer(BASE), MEMORY.num_memory)
    make = example_maker(tokenizer, stage, MEMORY, data)
    for record in open_records(folder / f"{file}.jsonl"):
        example = make(record)
        assert example.prompt[-1] == tokenizer.eos_id
        assert all(
            tokenizer.document_length(text) <= MEMORY.doc_max_length
            for text in record.documents
        )


def test_command(tmp_path, capsys):
    few = ["--scp", "3", "--instruct", "2", "--end-to-end", "4", "--held-out", "5"]
    assert main([str(tmp_path), *few]) == 0
    assert "held_out.jsonl: 5 records" in capsys.readouterr().out
    assert main([str(tmp_path), *few, "--seed", "1"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_table_names_every_number():
    lines = table(NUMBERS).splitlines()
    assert max(map(len, lines)) <= 80
    after = next(line for line in lines if line.startswith("after stage 3"))
    assert after.split()[-3:] == ["0.940", "0.950", "1.000"]
    assert any("6 vectors (4.5x)" in line for line in lines)


def test_a_trained_base_takes_the_place_of_the_one_before(tmp_path, capsys):
    write_hf_folder(tmp_path / "lm", load_model(BASE), dtype="float32")
    write_hf_folder(tmp_path / "base", random_base(0), dtype="float32")
    for _ in range(2):
        report(tmp_path, {"records": "pretraining"})
        assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "lm"]
        for path in (tmp_path / "lm").iterdir():
            assert path.read_bytes() == (tmp_path / "base" / path.name).read_bytes()
    assert f"the base is in {tmp_path / 'base'}" in capsys.readouterr().out


def test_curves(tmp_path):
    for stage in ("scp", "end_to_end"):
        (tmp_path / stage).mkdir()
        lines = [{"step": i, "loss": 1 / i, "token_accuracy": 0.5} for i in (1, 2, 3)]
        if stage == "end_to_end":
            lines.insert(0, {"step": 0, "eval/recall@1": 0.2})
            lines.append({"step": 3, "eval/recall@1": 0.9})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / stage / "metrics.jsonl").write_text(text)
    plots.draw(tmp_path, ("scp", "end_to_end"), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_report_names_a_missing_run(tmp_path):
    with pytest.raises(ClaraError, match="instruct"):
        report(tmp_path, {})


@pytest.mark.slow
def test_every_stage_runs_and_is_reported(tmp_path, capsys):
    config = load_config(str(CONFIGS / "quickstart.py"))
    config.workdir = str(tmp_path)
    config.data.batch_size = 8
    config.data.eval_batch_size = 8
    config.quickstart.update({"scp": 40, "instruct": 40, "end_to_end": 40})
    config.quickstart.held_out = 8
    stages = []
    for stage in config.stages:
        stage = stage.to_dict() if hasattr(stage, "to_dict") else dict(stage)
        stage["optim"]["steps"] = 2
        stage["data"].pop("batch_size", None)
        stages.append(stage)
    config.stages = tuple(stages)
    experiment = expand(config)
    prepare(tmp_path, experiment.quickstart)
    for settings in experiment.runs:
        run(settings)
    report(tmp_path, experiment.quickstart)
    shown = capsys.readouterr().out
    assert "python -m clara_jax.answer" in shown and "Recall@5" in shown
    numbers = json.loads((tmp_path / "report.json").read_text())["numbers"]
    assert numbers["base/text/exact_match"] >= 0.9
    assert 0 <= numbers["after/recall@1"] <= 1
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_base_experiment_is_complete():
    experiment = expand(load_config(str(CONFIGS / "quickstart_base.py")))
    (settings,) = experiment.runs
    assert settings.stage == "lm"
    needed = settings.optim.steps * settings.data.batch_size
    assert experiment.quickstart is not None
    assert experiment.quickstart["pretraining"] >= needed
