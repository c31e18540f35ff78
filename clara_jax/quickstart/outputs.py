"""What the quickstart writes beside its runs: a base, data, and a report at the end.

The base is a tiny language model, trained by ``configs/quickstart_base.py``. Its
tokenizer has one token per word of the encyclopedia, and one for each fixed sentence of
the prompts; ``tests/quickstart/word_tokenizer.py`` builds its file.
"""

import dataclasses
import json
import random
import shlex
import types
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from clara_jax.checkpoint import replace_folder
from clara_jax.config import check_choices, parse, require
from clara_jax.config.parsing import not_negative, positive
from clara_jax.convert import ModelFolder, load_config, load_model, write_hf_folder
from clara_jax.convert.model_folder import folder_beside, new_folder
from clara_jax.data import open_records
from clara_jax.errors import ClaraError
from clara_jax.evaluate import Question, evaluators, plots
from clara_jax.files import read_json, write_json, write_text
from clara_jax.generate import AnswerConfig, Clara
from clara_jax.loading import load
from clara_jax.model import Transformer, init_backbone
from clara_jax.quickstart import world
from clara_jax.text import load_tokenizer

BASE = Path(__file__).parent / "base"
"""Folder of the shipped base, of 156 thousand weights."""

SHOWN = 5
"""Questions printed with their answers."""

TABLE = """\
{questions:.0f} questions about names that no stage has seen; answers decoded, exact \
match

the right document is given                    answers
------------------------------------------------------
as full text (the frozen base)              {base/text/exact_match:10.3f}
{read:44}{before/gold/exact_match:10.3f}
  the same, after stage 3                   {after/gold/exact_match:10.3f}
chance                                      {chance/exact_match:10.3f}

{alike:44}   answers  Recall@1  Recall@5
--------------------------------------------------------------------------
before stage 3                              {before/selected/exact_match:10.3f}\
{before/recall@1:10.3f}{before/recall@5:10.3f}
after stage 3 (from the answer loss alone)  {after/selected/exact_match:10.3f}\
{after/recall@1:10.3f}{after/recall@5:10.3f}
chance                                      {chance/exact_match:10.3f}\
{chance/recall@1:10.3f}{chance/recall@5:10.3f}
"""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is written, and how much of it.

    Attributes:
      records: ``stages`` writes records of scp, instruct and end_to_end, held-out ones
        included, the held-out documents and, as ``corpus.jsonl``, all that questions of
        end_to_end are asked about; ``pretraining`` writes text for a base, and an
        untrained one; ``encyclopedia`` writes every entry once, with all its questions
        and a paraphrase, as sources of a mix have them.
      seed: of everything.
      pretraining, scp, instruct: numbers of texts and of training records.
      end_to_end: number of training records; 0 asks for every fact once.
      held_out: held-out questions for each of the stages.
      candidates: C, documents of an end_to_end record.
      alike: how many of the wrong ones share half of the name.
      documents: documents of an instruct record, the right one first.
    """

    records: Literal["stages", "pretraining", "encyclopedia"] = "stages"
    seed: int = 0
    pretraining: int = 20000
    scp: int = 12000
    instruct: int = 6000
    end_to_end: int = 0
    held_out: int = 200
    candidates: int = 20
    alike: int = 16
    documents: int = 1

    def __post_init__(self) -> None:
        check_choices("quickstart", self)
        counts = ("pretraining", "scp", "instruct", "held_out", "documents")
        positive("quickstart", self, *counts)
        not_negative("quickstart", self, "seed", "end_to_end", "alike")
        wrong = f"is {self.documents}, but must be at most 20"
        require(self.documents <= 20, "quickstart.documents", wrong)
        limits = f"must be above alike ({self.alike}) and at most 200"
        wrong = f"is {self.candidates}, but {limits}"
        require(self.alike < self.candidates <= 200, "quickstart.candidates", wrong)


def random_base(seed: int) -> ModelFolder:
    """Make a base of the shipped one's shape, untrained, with its tokenizer.

    With large embeddings (standard deviation 0.25) tokens do not drown in what the
    first layers add: it learns several times faster than from 0.02.
    """
    config, tokenizer = load_config(BASE), load_tokenizer(BASE)
    model = Transformer(config, text_vocab=len(tokenizer))
    params = jax.device_get(init_backbone(model, jax.random.key(seed)))
    shape = (config.vocab_size, config.width)
    table = np.random.default_rng(seed).normal(0.0, 0.25, shape)
    params["embed"]["embedding"] = table.astype(np.float32)
    return ModelFolder(config, params, tokenizer)


def prepare(workdir: str | Path, settings: Mapping[str, Any]) -> Path:
    """Write ``workdir/data`` unless it is there already, and return its path.

    The folder appears whole or not at all, and holds the same bytes for the same
    settings, fields of `Settings`.

    Raises:
      ClaraError: it holds data of other settings, or cannot be written.
    """
    chosen = parse(Settings, settings, "quickstart")
    data = Path(workdir) / "data"
    kept, wanted = data / "settings.json", dataclasses.asdict(chosen)
    if data.exists():
        if not kept.is_file() or read_json(kept) != wanted:
            raise ClaraError(f"{data} holds other data; give another --config.workdir")
        return data
    with new_folder(data) as made:
        for name, rows in _contents(chosen).items():
            with (made / name).open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        if chosen.records == "pretraining":
            write_hf_folder(made / "start", random_base(chosen.seed), dtype="float32")
        write_json(made / kept.name, wanted)
    return data


def _contents(settings: Settings) -> dict[str, Iterable[world.Row]]:
    """Return rows by file name; each file has its own source of chance."""

    def rng(name: str) -> random.Random:
        return random.Random(f"{settings.seed} {name}")

    if settings.records == "pretraining":
        texts = world.pretraining(rng("pretraining"))
        held = world.instruction(rng("held out"), held_out=True)
        return {
            "pretraining.jsonl": islice(texts, settings.pretraining),
            "held_out.jsonl": islice(held, settings.held_out),
        }
    train = world.encyclopedia(rng("encyclopedia"))
    held = world.encyclopedia(rng("held out encyclopedia"), held_out=True)
    both = train + held
    if settings.records == "encyclopedia":
        return {
            "encyclopedia.jsonl": world.covered(rng("questions"), both),
            "paraphrases.jsonl": world.reworded(rng("paraphrases"), both),
        }
    scp = world.compression(rng("scp"))
    instruct = world.instruction(rng("instruct"), settings.documents)
    shape, count = (settings.candidates, settings.alike), len(train)
    ranked = world.ranking(rng("end_to_end"), train, range(count), *shape)
    asked = range(count, len(both))
    held_ranked = world.ranking(rng("held out questions"), both, asked, *shape)
    return {
        "scp.jsonl": islice(scp, settings.scp),
        "instruct.jsonl": islice(instruct, settings.instruct),
        "end_to_end.jsonl": islice(ranked, settings.end_to_end or None),
        "held_out.jsonl": islice(held_ranked, settings.held_out),
        # Without titles, which would become part of the text.
        "documents.jsonl": ({"id": item.name, "text": text} for item, text in held),
        "corpus.jsonl": ({"id": item.name, "text": text} for item, text in both),
    }


def report(workdir: str | Path, settings: Mapping[str, Any]) -> None:
    """Measure what the finished runs have learned, write it down and print it.

    After ``records="stages"``: ``report.json``, ``report.txt`` and ``curves.png`` in
    the folder. After ``"pretraining"``: the backbone as a Hugging Face folder ``base``.

    Raises:
      ClaraError: a run is missing, or nothing can be written.
    """
    workdir, data = Path(workdir), Path(workdir) / "data"
    if settings.get("records") == "pretraining":
        model = load_model(workdir / "lm")
        with folder_beside((workdir / "base").absolute()) as made:
            write_hf_folder(made, model, dtype="float32")
            replace_folder(made, workdir / "base")
        print(f"the base is in {workdir / 'base'}")
        return
    short = AnswerConfig(max_new_tokens=6, batch_size=50)
    before = load(workdir / "instruct", short)
    after = load(workdir / "end_to_end", short)
    questions = evaluators.questions_of(open_records(data / "held_out.jsonl"))
    numbers = _measure(before, after, questions)
    text, examples = table(numbers) + "\n", []
    for asked in questions[:SHOWN]:
        chosen = after.select_and_answer([asked.question], [asked.documents])
        (answer,), document = chosen.answers, asked.documents[chosen.indices[0, 0]]
        gold = asked.gold[0]
        verdict = "" if answer == gold else f"   (it is {gold})"
        text += f"{asked.question}  {answer}{verdict}\n"
        text += f"    from the vectors of: {document}\n"
        item = {"question": asked.question, "answer": answer}
        examples.append({**item, "gold": gold, "document": document})
    write_json(workdir / "report.json", {"numbers": numbers, "examples": examples})
    write_text(workdir / "report.txt", text)
    plots.draw(workdir, ("scp", "instruct", "end_to_end"), workdir / "curves.png")
    print(f"\n{text}\nlearning curves: {workdir / 'curves.png'}\nask your own:")
    model, documents = str(workdir / "end_to_end"), str(data / "documents.jsonl")
    given = ["--model", model, "--documents", documents, questions[-1].question]
    print(f"  python -m clara_jax.answer {shlex.join(given)}")


def _measure(
    before: Clara, after: Clara, questions: Sequence[Question]
) -> dict[str, float]:
    # Stage 3 starts with a copy of the compressor as reasoner.
    start = {"reasoner": before.network.adapters["compressor"]}
    before = before.with_adapters(start)
    documents = {text for question in questions for text in question.documents}
    lengths = [after.tokenizer.document_length(text) for text in documents]
    candidates = len(questions[0].documents)
    found = {
        "questions": float(len(questions)),
        "document_tokens": sum(lengths) / len(lengths),
        "vectors": float(after.memory.num_memory),
        "candidates": float(candidates),
        "chance/recall@1": 1 / candidates,
        "chance/recall@5": min(5 / candidates, 1.0),
        "chance/exact_match": 1 / len(world.FACTS["work"]),
    }
    nothing: Any = types.SimpleNamespace(trainable={})
    for name, evaluator in (
        ("base", evaluators.TextAnswers(before, questions)),
        ("before", evaluators.CompressedAnswers(before, questions)),
        ("before", evaluators.SelectedAnswers(before, questions)),
        ("after", evaluators.CompressedAnswers(after, questions)),
        ("after", evaluators.SelectedAnswers(after, questions)),
    ):
        found |= {f"{name}/{key}": value for key, value in evaluator.run(nothing)}
    return found


def table(numbers: Mapping[str, float]) -> str:
    """Return the numbers of ``report.json`` as a table for people."""
    ratio = f"{numbers['document_tokens'] / numbers['vectors']:.1f}"
    return TABLE.format(
        read=f"as {numbers['vectors']:.0f} vectors ({ratio}x), after stage 2",
        alike=f"one of {numbers['candidates']:.0f}, most share half its name",
        **numbers,
    )
