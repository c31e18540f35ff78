import functools
import math
import tempfile
from pathlib import Path

import pytest
import spacy
from toy_folder import write_toy

import clara_jax
from clara_jax.data.records import Record
from clara_jax.errors import ClaraError
from clara_jax.evaluate.examine import Prediction
from clara_jax.evaluate.paraphrases import (
    Passage,
    entities_kept,
    entity_finder,
    paraphrase_all,
    paraphrase_markdown,
    paraphrase_scores,
    passages_of,
    rouge_l,
)
from clara_jax.generate import AnswerConfig, Clara
from clara_jax.generate.batched import draw_instructions


@functools.cache
def toy_clara(config):
    with tempfile.TemporaryDirectory() as folder:
        return clara_jax.load(write_toy(Path(folder) / "run"), config)


TEXTS = ["Ada Bell was born in Corin", "Edo Falk studied in Gemma", "rain fell"]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """A spaCy model that knows four names by rule."""
    pipeline = spacy.blank("en")
    known = ("Ada Bell", "Corin", "Edo Falk", "Gemma")
    pipeline.add_pipe("entity_ruler").add_patterns(
        [{"label": "NAME", "pattern": name} for name in known]
    )
    folder = tmp_path_factory.mktemp("spacy") / "names"
    pipeline.to_disk(folder)
    return str(folder)


def test_rouge_is_the_longest_common_subsequence_over_both_lengths():
    found = rouge_l(["the cat sat", "", "dogs"], ["the cat slept there", "x", "dog"])
    # "the cat": 2 of 3 and 2 of 4 words. The stemmer makes one word of the last pair.
    assert found == pytest.approx([2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2), 0.0, 1.0])


def test_entities_are_names_of_the_source_that_the_paraphrase_says(names):
    said = ["In Corin lived ada  bell.", "Gemma", "Ada Bell", "Corinthian"]
    find = entity_finder(names)
    kept = entities_kept(said, find([*TEXTS, TEXTS[0]]))
    assert kept[:2] == [1.0, 0.5] and math.isnan(kept[2]) and kept[3] == 0.0


def test_passages_count_once():
    records = [
        Record(tuple(TEXTS[:2]), ("Who?",), ("Ada",)),
        Record((TEXTS[0],), ("Where?",), ("Corin",)),
        Record((TEXTS[2],), answers=("It rained",), kind="paraphrase"),
    ]
    assert passages_of(records) == [
        Passage((TEXTS[0],), TEXTS[0]),
        Passage((TEXTS[1],), TEXTS[1]),
        Passage((TEXTS[2],), "It rained"),
    ]
    assert len(passages_of(records, limit=1)) == 1


def test_what_is_paraphrased_under_every_condition(monkeypatch):
    read = []

    def told(self, documents, instructions):
        read.append(([list(row) for row in documents], list(instructions)))
        return [" + ".join(row) for row in documents]

    monkeypatch.setattr(Clara, "paraphrase", told)
    clara = toy_clara(AnswerConfig(seed=5))
    passages = [Passage((text,), text) for text in TEXTS]
    (predictions,) = paraphrase_all(clara, passages)
    order = draw_instructions(5, 3)
    alone, others = [[t] for t in TEXTS], [[t] for t in (*TEXTS[1:], TEXTS[0])]
    assert read == [(rows, order) for rows in (alone, [[], [], []], others)]
    assert [p.question for p in predictions] == TEXTS
    expected = {"model": TEXTS[1], "none": "", "shuffled": TEXTS[2]}
    assert predictions[1].answers == expected
    (later,) = paraphrase_all(clara, passages, start=1)
    assert later == predictions[1:]


def test_a_table_of_scores(names):
    clara = toy_clara(AnswerConfig(max_new_tokens=4))
    (predictions,) = paraphrase_all(clara, [Passage((text,), text) for text in TEXTS])
    scores = paraphrase_scores(predictions, entity_finder(names))
    table = paraphrase_markdown(scores, "toy")
    assert "| paraphrases from | ROUGE-L | entities kept |" in table
    assert "| another document's vectors |" in table
    assert "Entities are those of 2 passages; the others have none." in table
    bare = paraphrase_markdown(paraphrase_scores(predictions, None), "toy")
    assert "that takes --spacy-model" in bare and "entities kept" not in bare


def test_models_without_names_are_refused(tmp_path):
    with pytest.raises(ClaraError, match="'nowhere' cannot be loaded"):
        entity_finder("nowhere")
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(ClaraError, match="finds no entities"):
        entity_finder(str(tmp_path / "blank"))


def test_means_leave_out_passages_without_entities(names):
    predictions = [
        Prediction(i, text, (text,), (), {"model": text}, {})
        for i, text in enumerate(TEXTS)
    ]
    scores = paraphrase_scores(predictions, entity_finder(names))["answers"]["model"]
    assert scores["entities"]["mean"] == scores["rouge_l"]["mean"] == 1.0
