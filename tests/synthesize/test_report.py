"""The quickstart's table and picture, and the shipped base."""

import json
import types
from typing import Any

import pytest
from safetensors.numpy import load_file

from clara_jax.config import MemoryConfig
from clara_jax.convert import load_model
from clara_jax.data import open_records
from clara_jax.errors import ClaraError
from clara_jax.evaluate import TextAnswers, curves, questions_of
from clara_jax.generate import AnswerConfig, Clara
from clara_jax.model import Transformer
from clara_jax.synthesize import BASE, prepare, report, write_base
from clara_jax.synthesize.report import table
from clara_jax.synthesize.shipped import SHAPE
from clara_jax.text import ClaraTokenizer

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


def test_table_names_every_number():
    lines = table(NUMBERS)
    assert max(map(len, lines)) <= 80
    after = next(line for line in lines if line.startswith("after stage 3"))
    assert after.split()[-3:] == ["0.940", "0.950", "1.000"]
    assert any("6 vectors (4.5x)" in line for line in lines)


def test_curves(tmp_path):
    for stage in ("scp", "end_to_end"):
        (tmp_path / stage).mkdir()
        lines = [{"step": i, "loss": 1 / i, "token_accuracy": 0.5} for i in (1, 2, 3)]
        if stage == "end_to_end":
            lines.insert(0, {"step": 0, "eval/recall@1": 0.2})
            lines.append({"step": 3, "eval/recall@1": 0.9})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / stage / "metrics.jsonl").write_text(text)
    curves.draw(tmp_path, ("scp", "end_to_end"), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_report_names_a_missing_run(tmp_path):
    with pytest.raises(ClaraError, match="instruct"):
        report(tmp_path, {})


def test_base_round_trip(tmp_path):
    model = load_model(BASE)
    assert model.config == SHAPE
    write_base(model, tmp_path / "base")
    before = load_file(BASE / "model.safetensors")
    after = load_file(tmp_path / "base" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    size = sum(path.stat().st_size for path in BASE.iterdir())
    assert size < 5e6


def test_shipped_base_answers_from_full_text(tmp_path):
    folder = prepare(tmp_path, {"scp": 1, "instruct": 1, "end_to_end": 1})
    questions = questions_of(open_records(folder / "held_out.jsonl"), 32)
    model = load_model(BASE)
    clara = Clara(
        model=Transformer(model.config, model.config.vocab_size),
        backbone={"params": model.params},
        adapters={},
        tokenizer=ClaraTokenizer(model.tokenizer, 8),
        memory=MemoryConfig(doc_max_length=34, compression_rate=4),
        config=AnswerConfig(max_new_tokens=6, batch_size=32),
    )

    nothing: Any = types.SimpleNamespace(trainable={})
    found = dict(TextAnswers(clara, questions).run(nothing))
    assert found["text/exact_match"] >= 0.9
