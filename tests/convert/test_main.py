import json
import os
import re
import subprocess
import sys

import pytest

from clara_jax.commands import Terminated
from clara_jax.convert import load_model, write_model_folder
from clara_jax.convert.__main__ import main


def test_hf(tmp_path, llama_values, hf_writer, capsys):
    hf_writer(tmp_path / "hf", llama_values)
    destination = tmp_path / "model"
    assert main(["hf", str(tmp_path / "hf"), str(destination)]) == 0
    said = capsys.readouterr().out
    model = load_model(destination)
    count = 2 * 41 * 16 + 16 + 3 * (2 * 16 + 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24)
    assert f"{count:,} parameters, {4 * count:,} bytes in float32" in said
    assert f"--config.backbone={destination}" in said
    assert main(["hf", str(tmp_path / "hf"), str(destination)]) == 1
    said = capsys.readouterr().err
    assert (
        said
        == f"error: {destination}: is not empty; give a new folder or remove it first\n"
    )
    assert load_model(destination).config == model.config
    half = tmp_path / "half"
    options = ["--dtype", "bfloat16"]
    assert main(["hf", str(tmp_path / "hf"), str(half), *options]) == 0
    assert load_model(half).config.param_dtype == "bfloat16"


def test_bad_input_is_one_line(tmp_path, llama_values, hf_writer, capsys):
    hf_writer(tmp_path / "hf", llama_values)
    weights = tmp_path / "hf" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for form in ("hf", "gguf", "apple", "peft", "to-apple", "to-peft", "to-hf"):
        arguments = [form, str(tmp_path / "hf"), str(tmp_path / "model")]
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
    assert {p.name for p in tmp_path.iterdir()} == {"hf"}


def test_oracle_checkpoint(oracle, tmp_path, capsys):
    source = sorted(oracle.glob("*/stage2"))[0]
    base = source.parent / "base"
    arguments = ["apple", str(source), str(tmp_path / "model"), "--base", str(base)]
    assert main(arguments) == 0
    assert f"--config.init_from={tmp_path / 'model'}" in capsys.readouterr().out
    model = load_model(tmp_path / "model")
    assert set(model.adapters or ()) == {
        "compressor",
        "generator",
        "reasoner",
        "memory",
    }


@pytest.fixture
def clara(tmp_path, clara_maker, llama_values):
    """A CLaRa model folder; only it and its base are there."""
    write_model_folder(tmp_path / "clara", clara_maker(llama_values))
    return str(tmp_path / "clara")


def test_to_apple(tmp_path, clara, capsys):
    out = str(tmp_path / "out")
    assert main(["to-apple", clara, out, "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{out}: ") and "adapters.pth, config.json, dec" in said
    assert main(["apple", out, str(tmp_path / "back")]) == 0
    read = load_model(tmp_path / "back")
    assert read.clara is not None
    assert read.clara.original.adapter_dtype == "bfloat16"


def test_to_peft_and_back(tmp_path, clara):
    out = str(tmp_path / "out")
    assert main(["to-peft", clara, out]) == 0
    assert main(["peft", out, str(tmp_path / "back")]) == 0
    assert load_model(tmp_path / "back").clara == load_model(clara).clara
    one, name = str(tmp_path / "one"), ["--base-name", "who/what"]
    assert main(["to-peft", clara, one, "--role", "reasoner", *name]) == 0
    values = json.loads((tmp_path / "one" / "clara.json").read_text())
    assert values["backbone"] == "who/what"
    assert not (tmp_path / "one" / "generator").exists()
    base = ["--base", str(tmp_path / "base")]
    assert main(["peft", one, str(tmp_path / "other"), *base]) == 0
    assert set(load_model(tmp_path / "other").adapters or ()) == {"memory", "reasoner"}


def test_to_hf(tmp_path, clara):
    options = ["--role", "generator", "--dtype", "bfloat16"]
    assert main(["to-hf", clara, str(tmp_path / "out"), *options]) == 0
    model, read = load_model(clara), load_model(tmp_path / "out")
    assert model.clara is not None
    assert read.config.vocab_size == model.clara.text_vocab + 5 == len(read.tokenizer)
    assert read.config.param_dtype == "bfloat16"
    base = [str(tmp_path / "base"), str(tmp_path / "again")]
    assert main(["to-hf", *base]) == 0
    assert load_model(tmp_path / "again").config == model.config


@pytest.mark.parametrize("form", ["to-apple", "to-peft", "to-hf"])
def test_bad_input_for_writing(tmp_path, clara, capsys, monkeypatch, form):
    role = ["--role", "generator"] if form == "to-hf" else []
    out = str(tmp_path / "out")

    def fails(pattern, source=clara, destination=out, role=role):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert main([form, source, destination, *role]) == 1
        said = capsys.readouterr()
        (line,) = [x for x in said.err.splitlines() if x.startswith("error: ")]
        assert re.search(pattern, line) and said.err.endswith(f"{line}\n")
        assert said.out == ""
        after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert before == after

    fails("base model without CLaRa adapters", source=str(tmp_path / "base"))
    fails("no such folder", source=str(tmp_path / "none"))
    fails("is not empty", destination=clara)
    fails("clara.json: is a file", destination=f"{clara}/clara.json")
    if form == "to-hf":
        fails("choose --role out of compressor, generator, reasoner", role=[])

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clara_jax.convert.tensors.np.ascontiguousarray", full)
    fails("out: the disk is full; free space and try again")
    with pytest.raises(SystemExit):
        main([form, clara, out, "--role", "nobody"])


def test_as_a_command(tmp_path):
    command = [sys.executable, "-m", "clara_jax.convert", "gguf", "none.gguf", "out"]
    run = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1 and run.stdout == ""
    assert run.stderr == "error: none.gguf: there is no such file\n"


def test_full_disk(tmp_path, llama_values, hf_writer, capsys, monkeypatch):
    hf_writer(tmp_path / "hf", llama_values)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clara_jax.convert.model_folder.write_tree", full)
    assert main(["hf", str(tmp_path / "hf"), str(tmp_path / "model")]) == 1
    said = capsys.readouterr().err
    assert f"error: {tmp_path / 'model'}: the disk is full" in said
    assert {p.name for p in tmp_path.iterdir()} == {"hf"}


@pytest.mark.parametrize(
    "arguments",
    [["onnx", "a", "b"], ["hf", "a"], ["hf", "a", "b", "--dt", "bfloat16"]],
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("signal", "status"), [(KeyboardInterrupt, 130), (Terminated, 75)]
)
def test_signals(tmp_path, clara, capsys, monkeypatch, signal, status):
    def stopped(*arguments, **options):
        raise signal

    monkeypatch.setattr("clara_jax.convert.model_folder.write_tree", stopped)
    before = set(tmp_path.iterdir())
    assert main(["hf", str(tmp_path / "base"), str(tmp_path / "out")]) == status
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "interrupted; nothing was written"
    assert set(tmp_path.iterdir()) == before
