"""A corpus made into a store: what is in it, interruptions, refusals."""

import errno
import json
import os
import shutil
import signal

import numpy as np
import pytest
from toy_folder import write_toy

import clara_jax
from clara_jax.compress.__main__ import main
from clara_jax.data import Corpus
from clara_jax.search import Job, Store
from tests.compress.command_line import SMALL, error, run, shards

# Besides bfloat16's roundings: float32's, of sums whose terms are of size one.
ROUNDING = 1e-6


def test_the_store_holds_what_the_model_makes_of_the_pieces(whole, model, corpus):
    store = Store.open(whole)
    assert len(store.dataset.get_fragments()) >= 4
    pieces = store.pieces(store.ids)
    assert {piece.id for piece in pieces} == {
        document.id for i in range(23 - 1) for document in Corpus([corpus])[i]
    }
    clara = clara_jax.load(model)
    vectors = clara.compress([piece.text for piece in pieces])
    kept = store.vectors(store.ids)
    np.testing.assert_allclose(kept, vectors, rtol=2**-8, atol=ROUNDING)
    assert (whole / store.settings.model).resolve() == model.resolve()
    assert store.settings.memory == clara.memory


def test_says_what_it_did_and_what_comes_next(model, corpus, tmp_path, capsys):
    store = tmp_path / "store"
    command = ("--model", model, "--corpus", corpus, "--store", store, *SMALL)
    status, out, err = run(capsys, *command)
    assert status == 0
    assert "compressed 23 documents in " in out and "documents/s" in out
    assert "tokens/s" in out and "a piece)" in out
    assert f"clara_jax.answer --store {store}" in out
    assert f"clara_jax.compress index --store {store}" in out
    assert "note: left out, since not documents: picture.png" in err
    assert "22/22" in err and "record" in err
    assert "1 of 39 pieces hold words that the model's tokenizer does not know" in err
    status, out, err = run(capsys, *command)
    assert status == 0 and "nothing to do" in err and "compressed" not in out


def test_stopped_between_shards_it_goes_on_and_ends_the_same(
    model, corpus, whole, tmp_path, capsys, monkeypatch, content_of
):
    store = tmp_path / whole.name
    command = ("--model", model, "--corpus", corpus, "--store", store, *SMALL)
    write, written = Job.write, []

    def twice(self, k, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(k)
        write(self, k, *rest)

    monkeypatch.setattr(Job, "write", twice)
    status, _, err = run(capsys, *command)
    assert status == 130 and "start the same command again to go on" in err
    with pytest.raises(clara_jax.ClaraError, match="not finished"):
        Store.open(store)
    del written[:]
    monkeypatch.setattr(
        Job, "write", lambda self, k, *r: write(self, written.append(k) or k, *r)
    )
    status, _, err = run(capsys, *command)
    fragments = Store.open(store).dataset.get_fragments()
    assert status == 0 and written == list(range(2, len(fragments)))
    assert len(list(store.glob("data/*"))) == len(fragments)
    assert "| 5/22 [00:00<?" in err  # what was there counts
    assert content_of(store) == content_of(whole)


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)]
)
def test_signals_end_it_after_the_batch_at_hand(
    model, corpus, whole, tmp_path, capsys, monkeypatch, content_of, number, expected
):
    store = tmp_path / whole.name
    command = ("--model", model, "--corpus", corpus, "--store", store, *SMALL)
    write = Job.write

    def signalled(self, k, *rest):
        write(self, k, *rest)
        os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Job, "write", signalled)
        status, _, err = run(capsys, *command)
    assert status == expected
    assert f"{signal.Signals(number).name}: {store} is not finished" in err
    assert "shards are left; start the same command again to go on" in err
    assert shards(store) == ["000000.json"]
    assert run(capsys, *command)[0] == 0
    assert content_of(store) == content_of(whole)


def test_a_signal_while_the_corpus_is_read(
    model, corpus, tmp_path, capsys, monkeypatch
):
    read, sent = Corpus._read, []

    def signalled(self, *where, **how):
        if not sent:  # a second one would act at once
            sent.append(where)
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, *where, **how)

    monkeypatch.setattr(Corpus, "_read", signalled)
    status, _, err = run(
        capsys, "--model", model, "--corpus", corpus, "--store", tmp_path / "store"
    )
    assert status == 75 and "SIGTERM" in err
    assert sent == [(0, 0)] and not (tmp_path / "store").exists()


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_codecs_make_smaller_stores_that_stay_as_they_are(
    whole, model, corpus, tmp_path, capsys, codec
):
    store = tmp_path / "store"
    given = ("--model", model, "--store", store)
    assert run(capsys, *given, "--corpus", corpus, "--codec", codec)[0] == 0
    narrow, wide = Store.open(store), Store.open(whole)
    assert narrow.dtype == codec
    np.testing.assert_array_equal(narrow.ids, wide.ids)
    np.testing.assert_allclose(
        narrow.vectors(narrow.ids), wide.vectors(wide.ids), atol=0.6
    )
    (tmp_path / "new.txt").write_text("Ada Bell")
    assert run(capsys, *given, "--corpus", tmp_path / "new.txt", "--add")[0] == 0
    (tmp_path / "new.txt").write_text("Edo Falk")
    again = ("--corpus", tmp_path / "new.txt", "--replace", "--codec", "bfloat16")
    assert f'dtype (was "{codec}", now "bfloat16")' in error(capsys, *given, *again)


def test_whole_documents_lose_their_ends(model, corpus, tmp_path, capsys):
    store = tmp_path / "store"
    status, out, err = run(
        capsys, "--model", model, "--corpus", corpus, "--store", store, "--whole"
    )
    assert status == 0 and "compressed 23 documents in 23 pieces" in out
    assert "note: 4 of 23 documents are longer than the model reads" in err


def test_the_model_is_split_over_devices(model, corpus, whole, tmp_path, capsys):
    store = tmp_path / "store"
    given = ("--model", model, "--corpus", corpus, "--store", store)
    assert run(capsys, *given, "--mesh", "fsdp=2,tensor=2", "--no-merge")[0] == 0
    rows = Store.open(whole).ids
    np.testing.assert_allclose(
        Store.open(store).vectors(rows),
        Store.open(whole).vectors(rows),
        rtol=2**-7,
        atol=ROUNDING,
    )
    other = ("--model", model, "--corpus", corpus, "--store", tmp_path / "other")
    assert "--mesh is 'rows=2'" in error(capsys, *other, "--mesh", "rows=2")
    assert "does not fit 8 devices" in error(capsys, *other, "--mesh", "fsdp=3")


def test_quantized_weights_make_a_store_of_their_own(model, corpus, tmp_path, capsys):
    store = tmp_path / "store"
    given = ("--model", model, "--corpus", corpus, "--store", store)
    assert run(capsys, *given, "--quantize", "int8")[0] == 0
    assert Store.open(store).settings.compute == "float32, int8"
    assert "another model" in error(capsys, *given)


def test_another_model_or_corpus_is_refused(whole, model, corpus, tmp_path, capsys):
    from clara_jax.clara import vector_fingerprint

    other = tmp_path / "model"
    shutil.copytree(model, other)
    settings = json.loads((other / "clara.json").read_text())
    settings["lora"]["alpha"] = 9.0
    (other / "clara.json").write_text(json.dumps(settings))
    message = error(capsys, "--model", other, "--corpus", corpus, "--store", whole)
    found = [
        vector_fingerprint(c.network)
        for c in (clara_jax.load(model), clara_jax.load(other))
    ]
    assert all(fingerprint in message for fingerprint in found)
    less = ("--corpus", corpus / "lines.jsonl")
    assert "--add" in error(capsys, "--model", model, *less, "--store", whole)


def test_a_changed_corpus_is_not_gone_on_with(
    model, corpus, tmp_path, capsys, monkeypatch
):
    store, copied = tmp_path / "store", tmp_path / "corpus"
    shutil.copytree(corpus, copied)
    command = ("--model", model, "--corpus", copied, "--store", store, *SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(Job, "commit", lambda self: None)
        assert run(capsys, *command)[0] == 0
    (copied / "more" / "long.md").write_text("Ada Bell")
    message = error(capsys, *command)
    assert str(store) in message and "digest" in message


def test_a_full_disk_is_one_line_and_loses_nothing(
    model, corpus, whole, tmp_path, capsys, monkeypatch, content_of
):
    store = tmp_path / whole.name
    command = ("--model", model, "--corpus", corpus, "--store", store, *SMALL)
    sync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 5:  # the job, and two shards: data and note
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "the disk is full; free space" in error(capsys, *command)
    assert shards(store) == ["000000.json", "000001.json"]
    assert run(capsys, *command)[0] == 0
    assert content_of(store) == content_of(whole)


def test_bad_input(model, corpus, tmp_path, capsys):
    store = tmp_path / "store"
    at = ("--store", store)

    def given(name, text, *more):
        (tmp_path / name).write_text(text)
        return ("--model", model, *at, "--corpus", tmp_path / name, *more)

    assert "a.jsonl:2: 'text' must be a string (--on-error skip" in error(
        capsys, *given("a.jsonl", '{"text": "fine"}\n{"text": true}')
    )
    assert "no documents; left out, since blank: a.txt" in error(
        capsys, *given("a.txt", " ")
    )
    assert "d.jsonl:1: has no field 'body' (fields: text); name" in error(
        capsys, *given("d.jsonl", '{"text": "a"}', "--text-field", "body")
    )
    assert "b.jsonl:2: has the id 'x'" in error(
        capsys, *given("b.jsonl", '{"text": "a", "id": "x"}\n{"text": "b", "id": "x"}')
    )
    (tmp_path / "empty").mkdir()
    assert "holds no files of documents" in error(
        capsys, "--model", model, *at, "--corpus", tmp_path / "empty"
    )
    assert "nowhere: no such file" in error(
        capsys, "--model", model, *at, "--corpus", "nowhere"
    )
    fine = given("fine.txt", "Ada Bell")
    # A wrong model is named before a large corpus is read.
    wrong = given("raw.jsonl", "{")[2:]
    for arguments in (fine[2:], wrong):
        assert "no-model" in error(capsys, "--model", tmp_path / "no-model", *arguments)
    assert "nothing can be added" in error(capsys, *fine, "--add")
    assert "--part is '3/2'" in error(capsys, *fine, "--part", "3/2")
    assert "--corpus is missing" in error(capsys, "--model", model, *at)
    assert "--model is missing" in error(capsys, *fine[2:])
    assert "leave --model and --corpus out" in error(capsys, *fine, "--check")
    assert "store" in error(capsys, *at, "--check")
    assert not store.exists()
    unable = write_toy(tmp_path / "unable", roles=("generator",))
    assert "no compressor" in error(capsys, "--model", unable, *fine[2:])
    base = write_toy(tmp_path / "base", base=True)
    assert "base model" in error(capsys, "--model", base, *fine[2:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--store"),
        (("--store", "s", "--codec", "int3"), "int3"),
        (("--store", "s", "--shard-size", "0"), "'0' is not a number above 0"),
        (("--store", "s", "--add", "--replace"), "not allowed with"),
        (("--store", "s", "--colour", "red"), "unrecognized"),
        (("index",), "--store"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
