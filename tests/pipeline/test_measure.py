"""What is read, answered and searched for a report."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from toy_folder import DOCUMENTS, QUESTION, write_toy

import clara_jax
from clara_jax.config import RunConfig
from clara_jax.errors import ClaraError
from clara_jax.evaluate import Question
from clara_jax.evaluate.examine import Reader
from clara_jax.pipeline import measure
from clara_jax.train import Experiment

TEXTS = tuple(f"{d.get('title', '')} {d.get('text', d.get('docs'))}" for d in DOCUMENTS)
QUESTIONS = [
    Question(QUESTION, ("Corin",), TEXTS, (0,)),
    Question("Edo Falk studied", ("Gemma",), TEXTS, (1,)),
    Question("Hana Iver born", ("Jory",), TEXTS, (2,)),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = write_toy(tmp_path_factory.mktemp("measure") / "run")
    config = clara_jax.AnswerConfig(max_new_tokens=3, batch_size=2)
    clara = clara_jax.load(folder, config)
    readers = {"tuned_text": Reader(clara, "generator", "gold")}
    return measure.Models(clara, readers)


def write(path, rows):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_held_out_questions_come_from_all_sources_in_turn(tmp_path):
    def rows(name, count):
        common = {"docs": ["a", "b"], "pos_index": [0]}
        return [
            {**common, "question": f"{name}{i}", "answer": "x"} for i in range(count)
        ]

    write(tmp_path / "held_out" / "big.jsonl", rows("b", 9))
    write(tmp_path / "held_out" / "none.jsonl", [])
    write(tmp_path / "held_out" / "small.jsonl", rows("s", 2))
    questions, sources = measure.held_out(tmp_path, 7)
    asked = [q.question for q in questions]
    assert asked == ["b0", "s0", "b1", "s1", "b2", "b3", "b4"]
    assert sources == ["big", "small", "big", "small", "big", "big", "big"]
    with pytest.raises(ClaraError, match="holds no questions"):
        measure.held_out(tmp_path / "elsewhere", 7)


def known(models, folder, corpus=TEXTS):
    store = measure.compress_corpus(models.clara, corpus, folder, None, int)
    return measure.Known(models.clara, corpus, store)


def answer(models, folder, seconds=None, stop=int, sources=("a",) * 12):
    asked = QUESTIONS * 4
    return measure.answer_all(
        models, asked, sources, known(models, folder), folder, seconds, stop
    )


def test_answers_go_on_where_they_were_and_end_with_their_time(models, tmp_path):
    calls = []
    whole = answer(models, tmp_path / "a")
    assert len(whole) == 12 and set(whole[0].answers) == set(models.conditions)
    # No time at all: some are answered; then the rest, the same.
    some = answer(models, tmp_path / "b", 0.0)
    assert 0 < len(some) < 12

    def stop():
        calls.append(1)

    assert answer(models, tmp_path / "b", stop=stop) == whole and calls == [1]
    # Other adapters gave other answers: these are asked anew.
    other = measure.Models(models.before, models.readers)
    assert len(answer(other, tmp_path / "b", 0.0)) == len(some)


def test_documents_are_exchanged_within_a_source(models, tmp_path):
    """With a source of its own each question has no other's documents."""
    alone = answer(models, tmp_path / "a", sources=tuple(map(str, range(12))))
    none = models.clara.answer_from_vectors(
        [q.question for q in QUESTIONS], np.zeros((3, 0, 2, 16), np.float32)
    )
    assert [p.answers["shuffled"] for p in alone[:3]] == none


def test_only_what_is_new_is_compressed(models, tmp_path, monkeypatch):
    corpus = list(TEXTS[:2])
    kept = known(models, tmp_path, corpus)
    seen = []
    compress = type(models.clara).compress

    def watch(clara, texts):
        seen.append(list(texts))
        return compress(clara, texts)

    monkeypatch.setattr(type(models.clara), "compress", watch)
    for _ in range(2):
        vectors = kept([TEXTS[2], TEXTS[0], TEXTS[2]])
    assert seen == [[TEXTS[2]]]
    np.testing.assert_allclose(
        vectors, compress(models.clara, [TEXTS[2], TEXTS[0], TEXTS[2]]), atol=1e-5
    )


def test_a_corpus_is_compressed_as_far_as_there_is_time(models, tmp_path, monkeypatch):
    module = importlib.import_module("clara_jax.train.document_vectors")
    monkeypatch.setattr(module, "CHUNK", 1)
    corpus = [*TEXTS, "nothing of this kind"]
    given = (models.clara, corpus, tmp_path)
    some = measure.compress_corpus(*given, 0.0, int)
    assert len(some) == 1
    # A command that goes on has the same; without a deadline, all.
    assert len(measure.compress_corpus(*given, 100.0, int)) == 1
    whole = measure.compress_corpus(*given, None, int)
    assert whole.strings(whole.ids, "text") == corpus
    np.testing.assert_allclose(
        whole.vectors(whole.ids), models.clara.compress(corpus), atol=1e-5
    )


def test_a_corpus_is_searched_by_both_reasoners_and_by_words(models, tmp_path):
    corpus = [*TEXTS, "nothing of this kind"]
    found = measure.corpus_recall(models, QUESTIONS, known(models, tmp_path, corpus))
    assert found is not None
    assert (found["passages"], found["of"], found["questions"]) == (4, 4, 3)
    assert found["rankings"]["bm25"]["recall@1"]["mean"] == 1.0
    clara = models.clara
    vectors = clara.compress(corpus).reshape(4, -1)
    for name, model in (("model", clara), ("before", models.before)):
        rows = model.reason([q.question for q in QUESTIONS]).reshape(3, -1)
        norms = np.linalg.norm(vectors, axis=1)
        best = np.argmax(rows @ vectors.T / norms, axis=1)
        right = np.mean(best == np.arange(3))
        recall = found["rankings"][name]["recall@1"]
        assert recall["mean"] == pytest.approx(right)
        assert recall["low"] <= recall["mean"] <= recall["high"]
    # Questions whose gold document is not there do not count.
    some = measure.corpus_recall(models, QUESTIONS, known(models, tmp_path, corpus[1:]))
    assert some is not None and some["questions"] == 2
    none = measure.corpus_recall(models, QUESTIONS, known(models, tmp_path, corpus[3:]))
    assert none is None


def test_the_corpus_is_distinct_and_can_be_cut(tmp_path):
    write(
        tmp_path / "corpus.jsonl",
        [{"id": str(i), "text": f"t{i // 2}"} for i in range(8)],
    )
    assert measure.corpus_of(tmp_path, 0) == ["t0", "t1", "t2", "t3"]
    assert measure.corpus_of(tmp_path, 3) == ["t0", "t1", "t2"]


def test_a_report_needs_a_reasoner():
    runs = (RunConfig("scp", "somewhere", "some base"),)
    experiment = Experiment(Path("w"), runs, report={"questions": 3})
    with pytest.raises(ClaraError, match="'report': there is no stage end_to_end"):
        clara_jax.pipeline.check(experiment)
    runs = (RunConfig("end_to_end", "somewhere", "some base"),)
    experiment = Experiment(Path("w"), runs, report={"questions": 3})
    with pytest.raises(ClaraError, match="there is no group mix"):
        clara_jax.pipeline.check(experiment)


def test_a_report_is_made_of_all_of_it(models, tmp_path, monkeypatch, capsys):
    run = RunConfig("end_to_end", str(tmp_path / "end_to_end"), "some base")
    common = {"docs": list(TEXTS), "answer": "Corin", "pos_index": [0]}
    write(tmp_path / "mix/held_out/toy.jsonl", [{**common, "question": QUESTION}])
    corpus = [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)]
    write(tmp_path / "mix/corpus.jsonl", corpus)
    (tmp_path / "mix/manifest.json").write_text("{}")
    summary = {"steps": 3, "tokens": 9, "tokens_per_s": 2.0, "wall_seconds": 5.0}
    summary |= {"device": {"count": 1}, "versions": {}}
    write(tmp_path / "end_to_end/summary.json", [summary])
    write(tmp_path / "end_to_end/config.json", [{"backbone": "some base"}])
    monkeypatch.setattr(measure.Models, "of", lambda runs, settings: models)
    given = (tmp_path, {"questions": 5}, (run,), tmp_path / "mix")
    clara_jax.pipeline.report(*given)
    text = (tmp_path / "report.md").read_text()
    assert text in capsys.readouterr().out and "Recall@5 of 3" in text
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["corpus"]["passages"] == 3 and facts["questions"]["answered"] == 1
