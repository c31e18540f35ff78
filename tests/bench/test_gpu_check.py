"""The first check of a GPU, on a CPU: its lines, its file and its failures."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

import gpu_check

from clara_jax.model.attention import causal_attention
from clara_jax.stages import STAGES


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(gpu_check, "VOCAB", 64)


def _run(capsys, tmp_path, *only):
    path = tmp_path / "found.json"
    status = gpu_check.main(["--only", *only, "--json", str(path)])
    lines = capsys.readouterr().out.splitlines()
    return status, lines, json.loads(path.read_text())


def test_every_stage_of_the_table_has_its_checks():
    names = list(gpu_check.Checks(jax.devices()[0]).table())
    wanted = [f"{dtype} {n}" for dtype in ("float32", "bfloat16") for n in STAGES]
    assert names[: len(wanted)] == wanted
    kinds = {name.split()[0] for name in names[len(wanted) :]}
    assert kinds == {"train", "attention", "decode", "search"}


def test_lines_and_file(capsys, tmp_path):
    status, lines, found = _run(capsys, tmp_path, "cudnn", "attention", "search")
    assert status == 0 and found["failed"] == []
    assert lines[0].startswith("device cpu; memory not told; platform cpu")
    assert f"jax {jax.__version__}" in lines[0]
    assert lines[1] == "no accelerator: the CPU is compared with itself"
    assert lines[2].startswith("skipped  train cudnn")
    assert "no NVIDIA GPU" in lines[2]
    assert [row["result"] for row in found["checks"]] == 3 * ["skipped"] + 4 * ["ok"]
    assert "cosines" in lines[5] and "<= 1e-05" in lines[5]
    assert lines[5].endswith(" s") and lines[-1].startswith("7 checks, 0 failed")


def test_a_wrong_loss_fails_and_the_others_go_on(monkeypatch, capsys, tmp_path):
    true = gpu_check.Checks.slopes

    def scaled(self, stage, dtype, precision="highest", device=None):
        value, *rest = true(self, stage, dtype, precision, device)
        return (value if device is self.cpu else 1.01 * value, *rest)

    monkeypatch.setattr(gpu_check.Checks, "slopes", scaled)
    status, lines, found = _run(capsys, tmp_path, "text")
    assert status == 1 and found["failed"] == ["float32 text"]
    assert lines[2].startswith("FAILED   float32 text") and "NOT <= 0.0001" in lines[2]
    assert lines[3].startswith("ok       bfloat16 text")


def test_an_exception_is_one_line_and_the_others_go_on(monkeypatch, capsys, tmp_path):
    def broken(self, *_):
        raise RuntimeError("INTERNAL: no such kernel\nand a page of it")

    monkeypatch.setattr(gpu_check.Checks, "decode", broken)
    status, lines, found = _run(capsys, tmp_path, "decode", "int8")
    assert status == 1 and found["failed"] == ["decode float32", "decode bfloat16"]
    assert "RuntimeError: INTERNAL: no such kernel" in lines[2]
    assert "a page of it" not in "".join(lines)
    assert lines[4].startswith("ok       search int8")


def test_attentions_are_compared(monkeypatch):
    """As on a GPU, with float32 in cuDNN's place, and with one that sees too far."""
    checks = gpu_check.Checks(jax.devices()[0])
    checks.nvidia = True
    exact = functools.partial(causal_attention, attention="xla")

    def wide(*arrays, window):
        found = exact(*(x.astype(jnp.float32) for x in arrays), window=window)
        return found.astype(arrays[0].dtype)

    monkeypatch.setattr(gpu_check, "fused_attention", wide)
    assert checks.attention(128).result() == "ok"
    monkeypatch.setattr(
        gpu_check, "fused_attention", lambda *x, window: exact(*x, window=200)
    )
    assert checks.attention(128).result() == "FAILED"


def test_values_beyond_limits():
    found = gpu_check.Found({"loss": (np.nan, 1.0)}, "note")
    assert found.result() == "FAILED" and found.line() == "loss nan NOT <= 1, note"
    assert gpu_check.largest_gap([[1.0, 4.0], [0.0]], [[1.0, 2.0], [0.0]]) == 1.0
    assert gpu_check.cosine([1.0, 0.0], [1.0, 1.0]) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--only", "everything"), "--only everything: give some of float32, lm"),
        (("--json", "no/such/folder.json"), "error: [Errno 2] No such file"),
    ],
)
def test_mistakes_are_said(arguments, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main(list(arguments))
    assert says in f"{stopped.value} {capsys.readouterr().err}"


@pytest.mark.slow
def test_tokens_that_no_forward_pass_predicts_are_found(monkeypatch):
    true = gpu_check.decode_loop

    def shifted(*given):
        state = true(*given)
        return dataclasses.replace(state, tokens=jnp.roll(state.tokens, 1, axis=1))

    monkeypatch.setattr(gpu_check, "decode_loop", shifted)
    assert gpu_check.Checks(jax.devices()[0]).decode("float32").result() == "FAILED"


@pytest.mark.slow
def test_all_of_it_as_a_command(tmp_path):
    path = tmp_path / "found.json"
    program = [sys.executable, gpu_check.__file__, "--json", str(path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())
    skipped = [r["name"] for r in found["checks"] if r["result"] == "skipped"]
    assert skipped == ["train cudnn", "attention causal", "attention window"]
    lines = done.stdout.splitlines()
    assert len(lines) == len(found["checks"]) + 3
    for name in STAGES:
        assert [line for line in lines if line.startswith(f"ok       float32 {name} ")]
