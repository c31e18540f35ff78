"""Stages own themselves: nothing else compares names, and a new one just works."""

import ast
import dataclasses
from pathlib import Path

import pytest

from clara_jax.clara import Loss, TextLoss
from clara_jax.config import DataConfig, RunConfig
from clara_jax.data import Dialogue, ExampleMaker, Record
from clara_jax.errors import ClaraError
from clara_jax.evaluate import CompressedAnswers
from clara_jax.stages import STAGES, HeldOut, Reads, Stage, find_stage, make_loss
from clara_jax.text import answer_prompt

RUN = {"workdir": "runs/x", "backbone": "random:tiny"}


def comparisons(text: str) -> list[int]:
    """Lines that compare a stage's name with a literal one."""
    lines = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            names = {
                leaf.value
                for side in sides
                for leaf in ast.walk(side)
                if isinstance(leaf, ast.Constant)
            }
            asks = any("stage" in ast.unparse(side).lower() for side in sides)
            if asks and names & set(STAGES):
                lines.append(node.lineno)
    return lines


def test_nothing_else_compares_a_stage_s_name():
    root = Path(__file__).resolve().parents[2]
    files = [
        path
        for folder in ("clara_jax", "configs")
        for path in (root / folder).rglob("*.py")
        if path.parent.name != "stages"
    ]
    found = [
        f"{path.relative_to(root)}:{line}"
        for path in files
        for line in comparisons(path.read_text(encoding="utf-8"))
    ]
    assert len(files) > 50
    assert found == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('if config.stage == "scp": pass', 1),
        ('x = stage in ("scp", "instruct")', 1),
        ('x = [run for run in runs if "end_to_end" != run.stage]', 1),
        ('x = record.kind == "text"', 0),
        ('x = arguments.stage in (name, run.stage) or stage == "stage1"', 0),
    ],
)
def test_a_comparison_is_found(text, count):
    assert len(comparisons(text)) == count


@pytest.mark.parametrize(
    ("stage", "fields", "message"),
    [
        ("stage1", {}, "field 'stage': is 'stage1', but must be one of lm, scp"),
        ("lm", {"store": "s"}, "'store': is set, but stage lm reads no"),
        ("lm", {"quantize": "nf4"}, "'quantize': is 'nf4', but stage lm trains"),
        ("scp", {"candidates": "corpus"}, "'candidates': is 'corpus', which stage scp"),
        ("end_to_end", {"candidates": "corpus"}, "'store': is empty, but cand"),
        (
            "rerank",
            {"candidates": "corpus", "store": "s"},
            "'candidates': is 'corpus', which stage rerank cannot use",
        ),
        (
            "end_to_end",
            {"candidates": "corpus", "store": "s"},
            "'data.candidates': is 0, but .* at least selection.top_k 5",
        ),
    ],
)
def test_settings_that_a_stage_cannot_use(stage, fields, message):
    with pytest.raises(ClaraError, match=message):
        find_stage(RunConfig(stage, **RUN, **fields))


def test_vectors_are_at_hand_where_a_store_or_a_cache_is():
    cached = {"data": DataConfig(cache_vectors=True)}
    stage = STAGES["end_to_end"]
    assert not stage.caches_vectors(RunConfig("end_to_end", **RUN))
    assert stage.caches_vectors(RunConfig("end_to_end", **RUN, store="s"))
    assert stage.caches_vectors(RunConfig("end_to_end", **RUN, **cached))
    assert not STAGES["scp"].caches_vectors(RunConfig("scp", **RUN, **cached))


def test_the_generator_may_stay_frozen():
    config = RunConfig("end_to_end", **RUN)
    frozen = dataclasses.replace(config, train_generator=False)
    assert STAGES["end_to_end"].trained(config) == ("reasoner", "generator")
    assert STAGES["end_to_end"].trained(frozen) == ("reasoner",)
    assert STAGES["end_to_end"].needs(frozen) == {
        *("compressor", "generator", "memory", "reasoner"),
    }


def test_every_stage_is_told_by_its_own_name():
    assert all(name == stage.name for name, stage in STAGES.items())
    assert make_loss("scp", mse_weight=0.5).mse_weight == 0.5


class Topics(Stage):
    """A sixth way to train: say from its vectors what a document is about."""

    name = "topics"
    trains = ("compressor", "memory")
    fresh = ("compressor", "memory", "generator")

    def reads(self, config: RunConfig) -> tuple[Reads, ...]:
        return (
            Reads("documents", "compressor", per_row=2),
            Reads("prompt", "generator"),
        )

    def dialogue(self, make: ExampleMaker, record: Record, draw=None) -> Dialogue:
        make.require_question(record)
        question, answer = make.pair(record, draw)
        documents = record.documents[:2]
        prompt = answer_prompt(make.slots(len(documents)), f"Topic: {question}")
        return Dialogue(prompt, answer, documents, question)

    def loss(self, config: RunConfig) -> Loss:
        return make_loss("scp", mse_weight=0.0)

    def evaluators(self, held_out: HeldOut) -> list:
        answers = CompressedAnswers(held_out.clara, held_out.questions)
        return [*super().evaluators(held_out), answers]


def test_a_sixth_stage_trains_evaluates_and_is_planned(
    monkeypatch, tmp_path, repository, capsys
):
    from clara_jax.plan import programs
    from clara_jax.plan.__main__ import main as plan
    from clara_jax.testing import random_batch
    from clara_jax.train.__main__ import main as train
    from clara_jax.train.hooks import read_lines

    monkeypatch.setitem(STAGES, "topics", Topics())
    batch = random_batch("topics", documents=2)
    assert batch.documents.ids.shape[:2] == (4, 2) and batch.question is None
    workdir = tmp_path / "run"
    tiny = repository / "configs" / "tiny.py"
    command = [
        f"--config={tiny}:instruct",
        "--config.stage=topics",
        f"--config.workdir={workdir}",
        "--config.init_from=",
        "--config.backbone=random:tiny",
        f"--config.tokenizer={repository / 'tests' / 'train' / 'tiny' / 'tokenizer'}",
        "--config.optim.steps=1",
    ]
    assert train(command) == 0
    found = {
        k: v for line in read_lines(workdir / "metrics.jsonl") for k, v in line.items()
    }
    assert found["step"] == 1 and found["loss/answer"] > 0
    assert {"eval/loss", "eval/gold/f1"} <= set(found)
    assert (workdir / "summary.json").exists()
    capsys.readouterr()
    # Here, since a process of its own would not know this file.
    monkeypatch.setattr(programs, "measure_apart", programs.measure)
    assert plan([*command, "--topology=cpu:1", f"--cache={tmp_path / 'plans'}"]) == 0
    assert "stage topics" in capsys.readouterr().out
    assert plan([*command, "--show-sharding"]) == 0
    assert "adapters that learn" in capsys.readouterr().out


def test_a_text_loss_needs_no_memory():
    assert make_loss("text") == TextLoss()
