"""Whole runs of stage 3 against a store; given candidates that a store has."""

import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from clara_jax.commands import Interrupted
from clara_jax.convert import load_model
from clara_jax.generate import encode_rows
from clara_jax.search import Store
from clara_jax.train import read_experiment, read_lines, run
from clara_jax.train.__main__ import main
from clara_jax.train.feeds import make_feed
from clara_jax.train.parts import Parts
from clara_jax.train.runner import assemble, first_state
from tests.train.tiny_store import store_maker

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "tiny.py"
CORPUS = (
    "--config.candidates=corpus",
    "--config.data.candidates=6",
    "--config.reinit=compressor,generator,memory,reasoner",
)
GIVEN = CORPUS[2:]


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    values = (str(tmp_path_factory.mktemp("jit")), 0.5, 0)
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, values, strict=True):
        jax.config.update(name, value)
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


def command(workdir, store, *overrides):
    given = (f"--config.workdir={workdir}", f"--config.store={store}", *overrides)
    return [f"--config={CONFIG}:end_to_end", *given]


def read(workdir, store, *overrides):
    return read_experiment(command(workdir, store, *overrides)).runs[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return store_maker(folder, read(folder / "run", "", *GIVEN))


@pytest.fixture(scope="module")
def store(made):
    return made("whole")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, store):
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(read(folder, store.place, *CORPUS))
    return folder


def losses(folder):
    lines = read_lines(folder / "metrics.jsonl")
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_candidates_are_the_nearest_of_all_documents(store, tmp_path):
    parts = assemble(read(tmp_path, store.place, *CORPUS))
    with jax.set_mesh(parts.mesh):
        feed, hook = make_feed(parts, lambda: None, lambda: None)
        assert feed is not None and hook is not None
        hook.prime(first_state(parts)[0])
        batch = next(feed)
        asked = [
            ids[mask].tolist()
            for ids, mask in zip(batch.question.ids, batch.question.mask, strict=True)
        ]
        queries = encode_rows(
            parts.network.with_adapters(parts.start.trainable),
            asked,
            role="reasoner",
            pad_id=parts.tokenizer.pad_id,
            batch_size=4,
        ).reshape(4, -1)
    hook.close()
    table = store.vectors(store.ids).reshape(len(store), -1)
    scores = queries @ (table / np.linalg.norm(table, axis=1, keepdims=True)).T
    nearest = np.argsort(-scores, axis=1)[:, :6]
    np.testing.assert_array_equal(batch.vectors.reshape(4, 6, -1), table[nearest])
    # Every name is told in one document, with which it begins.
    for row, right, tokens in zip(nearest, batch.positives, asked, strict=True):
        words = parts.tokenizer.decode(tokens).split()
        texts = [piece.text.split() for piece in store.pieces(store.ids[row])]
        assert right.tolist() == [text[0] in words for text in texts]
    assert batch.candidates is None and np.all(batch.candidate_mask)


@pytest.mark.slow
def test_the_answer_loss_trains_the_reasoner_on_the_corpus(trained, store):
    assert [step for step, _ in losses(trained)] == [1, 2, 3, 4, 5, 6]
    final = json.loads((trained / "summary.json").read_text())["final"]
    names = ("recall@1", "recall@2", "recall@5", "recall@6", "exact_match", "left_out")
    assert {f"eval/corpus/{name}" for name in names} <= set(final)
    assert not any(name.startswith("eval/selected") for name in final)
    # Every held-out question is about a document of the corpus.
    assert final["eval/corpus/left_out"] == 0
    found = [final[f"eval/corpus/recall@{k}"] for k in (1, 2, 5, 6)]
    assert found == sorted(found)
    adapters = load_model(trained).adapters
    assert adapters is not None
    # The reasoner began as another draw; what is new in it came by gradients alone.
    before = assemble(read(trained, store.place, *CORPUS)).start.trainable
    for name in ("reasoner", "generator"):
        moved = jax.tree.map(
            lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()),
            adapters[name],
            before[name],
        )
        assert min(jax.tree.leaves(moved)) > 0


class Stop:
    """An evaluator that sends this process a signal the first time it runs."""

    def run(self, state):
        os.kill(os.getpid(), signal.SIGTERM)
        yield "stopped", 1.0


@pytest.mark.slow
def test_an_interrupted_run_goes_on_bit_for_bit(
    trained, store, made, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "run"
    config = read(folder, store.place, *CORPUS, "--config.hooks.eval_every=3")
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "evaluators", lambda parts: [Stop()])
        with pytest.raises(Interrupted, match="SIGTERM: step 3 of 6 is saved"):
            run(config)
    # A store that has changed is refused; one that has only moved is not.
    fewer = made("fewer", 10)
    assert main(command(folder, fewer.place, *CORPUS)) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: config field 'store': this run was begun with")
    assert f"rows {len(store)}" in error and "rows 10" in error
    moved = shutil.copytree(store.place, tmp_path / "elsewhere")
    run(read(folder, moved, *CORPUS))
    assert losses(folder) == losses(trained)
    ours, theirs = load_model(folder).adapters, load_model(trained).adapters
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def first_batch(tmp_path, store, *overrides):
    parts = assemble(read(tmp_path, store, *GIVEN, *overrides))
    with jax.set_mesh(parts.mesh):
        feed, hook = make_feed(parts, lambda: None, lambda: None)
        assert feed is not None and hook is None
        return next(feed)


def test_given_candidates_come_from_the_store_where_it_has_them(
    made, store, tmp_path, capsys
):
    cached = first_batch(tmp_path / "cached", "", "--config.data.cache_vectors=True")
    assert "candidate documents" not in capsys.readouterr().err
    whole = first_batch(tmp_path / "whole", store.place)
    count = len(store)
    said = f"{store.place}: has {count} of {count} candidate documents\n"
    assert said in capsys.readouterr().err
    # Nothing is compressed; what the store keeps is rounded to bfloat16.
    assert not (tmp_path / "whole").exists()
    rounded = np.asarray(cached.vectors).astype("bfloat16").astype(np.float32)
    np.testing.assert_array_equal(whole.vectors, rounded)
    for name in ("candidate_mask", "positives", "labels"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(cached, name))
    part = made("part", 9)
    some = first_batch(tmp_path / "part", part.place)
    said = f"{part.place}: has 9 of {count} candidate documents\n"
    assert said in capsys.readouterr().err
    (made_now,) = (tmp_path / "part" / "vectors").iterdir()
    assert len(Store.open(made_now)) == count - 9
    stored = np.all(np.asarray(some.vectors) == rounded, axis=(2, 3))
    alone = np.isclose(some.vectors, cached.vectors, atol=1e-5).all(axis=(2, 3))
    assert np.all(stored | alone) and 0 < stored.sum() < stored.size


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("nowhere", (), "holds no store of document vectors"),
        ("whole", ("--config.seed=7",), "was made by another model: its fingerprint"),
        ("whole", ("--config.data.candidates=99",), "'data.candidates': is 99, but"),
        ("whole", ("--config.data.candidates=1",), "set at least selection.top_k 2"),
        ("whole", ("--config.search=scann",), "has no ScaNN index; build it"),
    ],
)
def test_bad_input_is_one_line(store, tmp_path, capsys, name, overrides, message):
    given = command(
        tmp_path / "r", Path(store.place).parent / name, *CORPUS, *overrides
    )
    assert main(given) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "r").exists()
