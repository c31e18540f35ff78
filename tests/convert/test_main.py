import os
import subprocess
import sys

import pytest

from clara_jax.convert import load_model
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
    for form in ("hf", "gguf", "apple"):
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

    monkeypatch.setattr("clara_jax.convert.folder.write_tree", full)
    assert main(["hf", str(tmp_path / "hf"), str(tmp_path / "model")]) == 1
    said = capsys.readouterr().err
    assert f"error: {tmp_path / 'model'}: the disk is full" in said
    assert {p.name for p in tmp_path.iterdir()} == {"hf"}


def test_unknown_form(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["onnx", "a", "b"])
    assert caught.value.code == 2
    assert "invalid choice" in capsys.readouterr().err
