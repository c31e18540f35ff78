"""Models of the hub, here a folder: what is asked for, chosen, and said if it fails."""

import fnmatch
import inspect
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import errors
from toy_folder import write_toy

import clara_jax
from clara_jax.answer.__main__ import main as answer
from clara_jax.compress.__main__ import main as compress
from clara_jax.convert import (
    load,
    load_model,
    write_apple_checkpoint,
    write_peft_folder,
)
from clara_jax.convert.__main__ import main as convert
from clara_jax.convert.hub import hub_name
from clara_jax.errors import ClaraError

NAME, BASE = "apple/CLaRa-7B-E2E", "mistralai/Mistral-7B-Instruct-v0.2"
PARTS = ["config.json", "adapters.pth", "decoder_first_last_layers.pth"]


class Hub:
    """A hub whose repositories are folders in `folder`; `asked` are the patterns."""

    def __init__(self, folder, cache):
        self.folder, self.cache, self.asked = folder, cache, []
        self.error: Exception | None = None

    def model_info(self, name):
        if self.error is not None:
            raise self.error
        siblings = [SimpleNamespace(rfilename=path) for path in self._files(name)]
        return SimpleNamespace(siblings=siblings)

    def snapshot_download(self, name, allow_patterns, local_files_only=False):
        if local_files_only:
            if (self.cache / name).is_dir():
                return str(self.cache / name)
            raise errors.LocalEntryNotFoundError("not in the cache")
        self.asked += [(name, pattern) for pattern in allow_patterns]
        for path in self._files(name):
            if any(fnmatch.fnmatch(path, pattern) for pattern in allow_patterns):
                (self.cache / name / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.folder / name / path, self.cache / name / path)
        return str(self.cache / name)

    def _files(self, name):
        place = self.folder / name
        paths = (path for path in place.rglob("*") if path.is_file())
        return sorted(path.relative_to(place).as_posix() for path in paths)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A toy as two checkpoints of the original, as adapters, and its base."""
    place = tmp_path_factory.mktemp("hub")
    write_toy(place / BASE, base=True)
    model = load_model(write_toy(place / "me" / "run"))
    write_peft_folder(place / "me" / "adapters", model, name=BASE)
    for rate in (4, 8):
        folder = place / NAME / f"compression-{rate}"
        write_apple_checkpoint(folder, model, name=f"/mnt/models/{BASE}")
        values = json.loads((folder / "config.json").read_text())
        values |= {"compr_rate": rate, "doc_max_length": 2 * rate}
        (folder / "config.json").write_text(json.dumps(values))
        (folder / "modeling_clara.py").write_text("raise SystemExit")
    (place / NAME / "README.md").write_text("two rates")
    return place


@pytest.fixture
def hub(repositories, tmp_path, monkeypatch):
    hub = Hub(repositories, tmp_path / "cache")
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda _, name: hub.model_info(name)
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.chdir(tmp_path)
    return hub


def test_only_the_rate_asked_for_is_fetched(hub, tmp_path, capsys):
    out = str(tmp_path / "model")
    arguments = ["apple", NAME, out, "--rate", "8", "--base", BASE]
    assert convert(arguments) == 0, capsys.readouterr().err
    apple = [pattern for name, pattern in hub.asked if name == NAME]
    assert apple == [f"compression-8/{part}" for part in PARTS]
    assert [p.name for p in (hub.cache / NAME).iterdir()] == ["compression-8"]
    model = load_model(out)
    assert model.clara is not None and model.clara.memory.compression_rate == 8
    given = [NAME, str(tmp_path / "peft"), "--rate", "4", "--base", BASE]
    assert convert(["to-peft", *given]) == 0
    assert load_model(tmp_path / "peft", base=BASE, rate=4).clara is not None
    clara = clara_jax.load(NAME, rate=4, base=BASE)
    assert clara.memory.compression_rate == 4


def test_a_store_knows_the_rate(hub, tmp_path, capsys):
    Path("a.txt").write_text("Ada was born in Corin.")
    made = ["--model", NAME, "--rate", "8", "--base", BASE, "--corpus", "a.txt"]
    assert compress([*made, "--store", "store"]) == 0, capsys.readouterr().err
    few = ["--max-new-tokens", "2", "Who?"]
    assert answer(["--store", "store", *few]) == 0, capsys.readouterr().err
    assert {name for name, _ in hub.asked} == {NAME, BASE}
    assert not (hub.cache / NAME / "compression-4").exists()


@pytest.mark.parametrize("here", [False, True], ids=["hub", "folder"])
def test_rates_are_named(hub, capsys, here):
    name = str(hub.folder / NAME) if here else NAME
    with pytest.raises(ClaraError) as caught:
        load_model(name)
    assert str(caught.value) == (
        f"{name}: holds models of several compression rates: 4, 8; choose one, such "
        "as --rate 4"
    )
    Path("a.txt").write_text("Ada was born in Corin.")
    given = ["--model", name, "--rate", "16", "--documents", "a.txt", "Who?"]
    assert answer(given) == 1
    assert "no model of rate 16, but of 4, 8; choose one" in capsys.readouterr().err
    with pytest.raises(ClaraError, match=f"on the hub it is {NAME} with --rate 16"):
        load_model(f"{NAME}/compression-16")
    assert hub.asked == []


@pytest.mark.parametrize("form", ["hf", "peft", "gguf"])
def test_other_forms_do_not_ask_for_a_rate(hub, capsys, form):
    original = hub.folder / NAME
    for source in (NAME, original, original / "compression-4"):
        assert convert([form, str(source), "out"]) == 1
        said = capsys.readouterr().err
        assert f"{source}: is a checkpoint of the original CLaRa; use convert" in said


def test_a_damaged_checkpoint_is_not_in_the_way_of_another(hub, tmp_path):
    place = shutil.copytree(hub.folder / NAME, tmp_path / "both")
    (place / "compression-4" / "config.json").unlink()
    base = str(hub.folder / BASE)
    assert load_model(place, rate=8, base=base).clara is not None
    with pytest.raises(ClaraError, match="compression-4/config.json: cannot be read"):
        load_model(place, rate=4, base=base)
    with pytest.raises(ClaraError, match="several compression rates: 4, 8; choose"):
        load_model(place, base=base)


def test_one_rate_is_taken_without_asking(hub, tmp_path):
    name = "apple/One"
    shutil.copytree(hub.folder / NAME / "compression-8", tmp_path / name / "deep")
    for place in (tmp_path / name, tmp_path / name / "deep"):
        model = load_model(place, base=str(hub.folder / BASE))
        assert model.clara is not None and model.clara.memory.compression_rate == 8
        with pytest.raises(ClaraError, match="rate"):
            load_model(place, base=str(hub.folder / BASE), rate=4)
    base, hub.folder = str(hub.folder / BASE), tmp_path
    assert load_model(name, base=base).clara is not None
    shutil.copytree(tmp_path / name / "deep", tmp_path / name / "deeper")
    with pytest.raises(ClaraError, match="holds several checkpoints: deep, deeper; gi"):
        load_model(tmp_path / name)


def test_a_rate_that_a_model_does_not_have(hub):
    for name, why in (
        ("me/run", "has rate 4, not 16; leave --rate out"),
        ("me/adapters", "has rate 4, not 16"),
        (BASE, "is a base model, without a rate"),
    ):
        with pytest.raises(ClaraError, match=why):
            load_model(hub.folder / name, rate=16)
    assert load_model(hub.folder / "me/run", rate=4).clara is not None


def test_the_base_of_somebody_elses_machine(hub):
    with pytest.raises(ClaraError) as caught:
        load_model(NAME, rate=4)
    text = str(caught.value)
    assert "compression-4/config.json: names a base model that is not here" in text
    assert text.endswith(f"give it with --base, such as --base {BASE}")
    assert f"/mnt/models/{BASE}" in text and "\n" not in text
    assert load_model(NAME, rate=4, base=BASE).clara is not None


@pytest.mark.parametrize("name", ["C:\\m\\Mistral-7B-Instruct-v0.2", "phi-4-mini"])
def test_a_base_by_another_kind_of_name(hub, tmp_path, name):
    folder = shutil.copytree(hub.folder / NAME / "compression-4", tmp_path / "model")
    values = json.loads((folder / "config.json").read_text())
    values["decoder_model_name"] = name
    (folder / "config.json").write_text(json.dumps(values))
    hub.error = errors.OfflineModeIsEnabled("offline")
    with pytest.raises(ClaraError, match=r"give it with --base, such as --base \w+/"):
        load_model(folder)
    with pytest.raises(ClaraError) as caught:
        load_model(folder)
    assert "comes with clara_jax" not in str(caught.value)


def test_well_known_names():
    for path, name in (
        ("/mnt/x/Mistral-7B-Instruct-v0.2", BASE),
        ("C:/m/Phi-4-mini-instruct", "microsoft/Phi-4-mini-instruct"),
        ("/c/hub/models--Qwen--Qwen3-0.6B/snapshots/0a1b", "Qwen/Qwen3-0.6B"),
        ("C:\\models\\Mistral-7B-Instruct-v0.2", BASE),
        ("/s/x/phi-4-mini/snapshots/abc/", "microsoft/Phi-4-mini-instruct"),
        ("/mistral-runs/llama-factory/out", ""),
        ("/data/our-own-model", ""),
        (BASE, ""),
        ("", ""),
    ):
        assert hub_name(path) == name


def test_our_own_forms_come_from_the_hub_too(hub):
    assert load_model("me/adapters").clara is not None
    assert load_model("me/run").clara is not None
    (hub.folder / "me/files").mkdir(exist_ok=True)
    (hub.folder / "me/files/some.Q4_0.gguf").touch()
    with pytest.raises(ClaraError, match="hf download me/files some.Q4_0.gguf"):
        load_model("me/files")
    (hub.folder / "me/files/OTHER.GGUF").touch()
    with pytest.raises(ClaraError, match="has OTHER.GGUF, some.Q4_0.gguf: give such"):
        load_model(hub.folder / "me/files")
    with pytest.raises(ClaraError, match="OTHER.GGUF: is truncated or not a GGUF file"):
        load_model(hub.folder / "me/files/OTHER.GGUF")


def test_what_is_no_model(tmp_path):
    (tmp_path / "corpus.jsonl").touch()
    with pytest.raises(ClaraError, match="corpus.jsonl: is a file, but no .gguf file"):
        load_model(tmp_path / "corpus.jsonl")


def test_a_rate_is_a_whole_number(hub):
    find: Any = inspect.unwrap(load._find)  # types are checked in tests only
    with pytest.raises(ClaraError, match="^rate is '4', but must be a whole number"):
        find(hub.folder / NAME, None, "4")


def test_the_cache_serves_without_the_hub(hub):
    load_model(NAME, rate=4, base=BASE)
    hub.error = errors.OfflineModeIsEnabled("offline")
    hub.asked.clear()
    assert load_model(NAME, base=BASE).clara is not None
    assert (NAME, "compression-4/adapters.pth") in hub.asked


def _response(kind, status):
    request = httpx2.Request("GET", "https://hub")
    return kind("no", response=httpx2.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (_response(errors.GatedRepoError, 403), "may have it; ask for access at https"),
        (_response(errors.GatedRepoError, 401), "may have it; ask for access at https"),
        (_response(errors.HfHubHTTPError, 403), "may have it; ask for access at https"),
        (_response(errors.HfHubHTTPError, 401), "does not know your token; log in"),
        (_response(errors.RepositoryNotFoundError, 404), "you may see; check the spel"),
        (_response(errors.RepositoryNotFoundError, 401), "if it is private, log in wi"),
        (_response(errors.HfHubHTTPError, 503), "answers with status 503; check the n"),
        (httpx2.ConnectError("no"), r"cannot be reached .ConnectError.; check the net"),
        (errors.OfflineModeIsEnabled("x"), "is switched off .HF_HUB_OFFLINE.; unset"),
        (errors.HFValidationError("x"), "no names like this; give a folder, or a hub"),
        (OSError(28, "No space"), "gave more than the disk holds; free space, or na"),
    ],
)
def test_what_the_hub_refuses(hub, capsys, error, why):
    hub.error = error
    for form, more in (("hf", []), ("apple", ["--rate", "4"]), ("peft", [])):
        assert convert([form, "who/what", "out", *more]) == 1
        text = capsys.readouterr().err
        assert text.startswith("error: who/what: no such folder, and the Hugging Face")
        assert text.count("\n") == 1
        with pytest.raises(ClaraError, match=why):
            load_model("who/what")
