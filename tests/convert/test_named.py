"""Models by name: found, loaded, refused, written and used by the commands."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from toy_folder import DOCUMENTS, QUESTION, write_toy

import clara_jax
from clara_jax.answer.__main__ import main as answer
from clara_jax.clara import ROLES
from clara_jax.compress.__main__ import main as compress
from clara_jax.convert import (
    export_adapters,
    load_config,
    load_model,
    shipped_folder,
    shipped_names,
)
from clara_jax.convert import load as module
from clara_jax.convert.__main__ import main as convert
from clara_jax.errors import ClaraError
from clara_jax.evaluate.__main__ import main as evaluate

NAME = "toy-4x"
CARD = "# toy-4x\n\nSixteen sentences; licence: none; scores: none – a toy.\n"
TEXTS = ["Ada Bell was born in Corin", "Edo Falk studied in Gemma"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, its base, and in models/ the run's adapters."""
    place = tmp_path_factory.mktemp("shipped")
    write_toy(place / "run")
    write_toy(place / "base", base=True)
    export_adapters(place / "models" / NAME, load_model(place / "run"), "base", CARD)
    return place


@pytest.fixture(autouse=True)
def models(place, tmp_path, monkeypatch):
    """Names are found in the folder; commands run in one that is empty."""
    monkeypatch.setenv(module.VARIABLE, str(place / "models"))
    monkeypatch.chdir(tmp_path)
    return place / "models"


@pytest.fixture(scope="module")
def documents(place):
    path = place / "documents.jsonl"
    path.write_text("\n".join(map(json.dumps, DOCUMENTS)))
    return path


def _run(capsys, command, *arguments):
    status = command([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


def test_by_name_as_by_path(place, models):
    assert NAME in shipped_names() and shipped_folder(NAME) == models / NAME
    assert load_config(NAME) == load_config(place / "run")
    named, whole = clara_jax.load(NAME), clara_jax.load(place / "run")
    rounded = {
        role: jax.tree.map(lambda x: x.astype("bfloat16").astype(x.dtype), tree)
        for role, tree in whole.network.adapters.items()
    }
    rounded["memory"] = whole.network.adapters["memory"]
    network = dataclasses.replace(whole.network, adapters=rounded)
    rounded = dataclasses.replace(whole, network=network)
    for part in ("compress", "reason"):
        vectors = getattr(named, part)(TEXTS)
        np.testing.assert_array_equal(vectors, getattr(rounded, part)(TEXTS))
        np.testing.assert_allclose(vectors, getattr(whole, part)(TEXTS), atol=0.05)
    assert named.config.eos_ids == whole.config.eos_ids
    asked = [QUESTION], [TEXTS]
    assert named.answer(*asked) == clara_jax.load(models / NAME).answer(*asked)


def test_what_is_written(place, models):
    folder = models / NAME
    assert (folder / "README.md").read_text(encoding="utf-8") == CARD
    assert json.loads((folder / "clara.json").read_text())["backbone"] == "base"
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "clara.json", "special_rows.safetensors"),
        *ROLES,
    }
    for role in ROLES:
        tensors = load_file(folder / role / "adapter_model.safetensors")
        assert {str(tensor.dtype) for tensor in tensors.values()} == {"bfloat16"}
    assert os.listdir(models) == [NAME]


def test_a_model_is_replaced_whole_or_stays(place, tmp_path, monkeypatch):
    model, path = load_model(place / "run"), tmp_path / NAME
    model.adapters.pop("reasoner")
    export_adapters(path, model, "first", "one")
    assert not (path / "reasoner").exists()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("clara_jax.convert.peft.replace_folder", full)
        with pytest.raises(ClaraError, match=rf"^{path}: the disk is full"):
            export_adapters(path, load_model(place / "run"), "second", "two")
    assert (path / "README.md").read_text() == "one"
    export_adapters(path, load_model(place / "run"), "second", "two")
    assert (path / "README.md").read_text() == "two" and (path / "reasoner").is_dir()
    assert os.listdir(tmp_path) == [NAME]
    with pytest.raises(ClaraError, match="is not empty"):
        export_adapters(place / "run", model, "base", CARD)
    with pytest.raises(ClaraError, match="base model without CLaRa adapters"):
        export_adapters(tmp_path / "b", load_model(place / "base"), "base", CARD)


def test_what_is_here_goes_before_names(place, tmp_path, monkeypatch):
    os.symlink(place / "base", tmp_path / NAME)
    assert load_model(NAME).clara is None
    (tmp_path / NAME).unlink()
    assert load_model(NAME).clara is not None
    # The variable's folder goes before the package's.
    monkeypatch.setattr(module, "SHIPPED", place / "models")
    monkeypatch.delenv(module.VARIABLE)
    assert shipped_names() == (NAME,)
    other = tmp_path / "other" / NAME
    export_adapters(other, load_model(place / "run"), str(place / "base"), CARD)
    monkeypatch.setenv(module.VARIABLE, str(other.parent))
    assert shipped_names() == (NAME,) and shipped_folder(NAME) == other
    (other / "clara.json").unlink()
    assert shipped_folder(NAME) == place / "models" / NAME


def test_unknown_names(monkeypatch, models, tmp_path):
    there = ", ".join(shipped_names())
    for name in ("toy-5x", "gpt2", "Toy-4x"):
        for read in (clara_jax.load, load_config):
            with pytest.raises(ClaraError) as caught:
                read(name)
            assert str(caught.value) == (
                f"{name}: no such folder, and the Hugging Face hub is switched off "
                "(HF_HUB_OFFLINE); no model of that name comes with clara_jax; there "
                f"are: {there}"
            )
    with pytest.raises(ClaraError) as caught:
        load_model("nobody/toy-4x")
    assert "clara_jax" not in str(caught.value)
    monkeypatch.delenv(module.VARIABLE)
    monkeypatch.setattr(module, "SHIPPED", tmp_path / "none")
    assert shipped_names() == ()
    with pytest.raises(ClaraError, match="there are: none in this version$"):
        load_model(NAME)
    monkeypatch.setenv(module.VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ClaraError, match="no such folder; CLARA_JAX_MODELS must"):
        load_model(NAME)


def test_a_base_that_holds_adapters_is_refused(models):
    with pytest.raises(ClaraError, match="toy-4x: holds adapters itself, not a base"):
        load_model(NAME, base=NAME)


def test_answers_and_stores(documents, tmp_path, capsys):
    few = ("--max-new-tokens", 3)
    given = _run(
        capsys, answer, "--model", NAME, "--documents", documents, *few, QUESTION
    )
    assert f"question: {QUESTION}" in given and "  2. " in given
    made = ("--model", NAME, "--corpus", documents, "--store", "store")
    _run(capsys, compress, *made)
    assert f"question: {QUESTION}" in _run(
        capsys, answer, "--store", "store", *few, QUESTION
    )
    assert os.listdir(tmp_path) == ["store"]
    status = answer(["--model", NAME, QUESTION])
    assert status == 1 and "toy-4x holds no documents.jsonl" in capsys.readouterr().err


def test_converts_by_name(place, tmp_path, capsys):
    _run(capsys, convert, "peft", NAME, "whole")
    found = load_model(tmp_path / "whole")
    assert found.clara is not None and found.clara.backbone == "backbone"


def test_measures_into_a_folder_here(models, tmp_path, capsys):
    row = {"docs": TEXTS, "question": QUESTION, "answer": "Corin", "pos_index": [0]}
    data = tmp_path / "test.jsonl"
    data.write_text(json.dumps(row))
    arguments = ("--model", NAME, "--data", data, "--top-k", 1, "--baselines", "")
    arguments += ("--max-new-tokens", 2)
    out = _run(capsys, evaluate, *arguments)
    assert f"written to evaluation/{NAME}/test_normal" in out
    assert f"{NAME} on test.jsonl" in out
    assert (
        not (tmp_path / NAME).exists() and not (models / NAME / "evaluation").exists()
    )
    head = (tmp_path / f"evaluation/{NAME}/test_normal/predictions.jsonl").read_text()
    settings = json.loads(head.splitlines()[0])["settings"]
    assert settings["model"] == os.path.realpath(models / NAME)
    weights = models / NAME / "reasoner" / "adapter_model.safetensors"
    assert settings["trained"] >= weights.stat().st_mtime_ns
    # Other adapters under the same name make other predictions.
    os.utime(weights, ns=(0, settings["trained"] + 10**9))
    assert evaluate([str(argument) for argument in arguments]) == 1
    assert "(trained changed)" in capsys.readouterr().err
