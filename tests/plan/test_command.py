"""The command line: bad input in one line, and what it prints."""

import json
import re

import pytest

from clara_jax.plan.__main__ import main

TINY = "--config=configs/tiny.py:scp"


def told(capsys, monkeypatch, repository, *arguments, status=1):
    """The one line that a mistake leaves."""
    monkeypatch.chdir(repository)
    if status == 2:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
    else:
        assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    return line


CPU = "--topology=cpu:8"
MISTAKES = [
    ([TINY], "no --topology given"),
    ([TINY, "--topology=v9:2x2"], "must be KIND:LAYOUT"),
    ([TINY, CPU, "--mesh=fsdp=3"], "fsdp 3 x tensor 1 does not fit 8 devices"),
    ([TINY, CPU, "--mesh=data=2,fsdp=2"], "does not fit 8 devices"),
    ([TINY, CPU, "--mesh=model=8"], "no axis 'model'"),
    ([TINY, CPU, "--mesh=fsdp=8"], "batch of 4 rows cannot be shared by 8"),
    ([TINY, CPU, "--mesh=fsdp=2", "--config.mesh.fsdp=2"], "give one"),
    ([TINY, CPU, "--config.nothing=1"], "config field 'nothing' is unknown"),
    ([TINY, CPU, "nonsense"], "argument 'nonsense' is unknown"),
    ([TINY, CPU, "--rows=4"], "--rows is of compress and decode"),
    ([TINY, CPU, "--stage=rerank"], "--stage: no 'rerank'"),
    ([TINY, CPU, "--backbone=nobody/knows"], "neither here nor one of tiny"),
    (["--config=configs/tiny.py:all", CPU], "several stages; give --stage"),
    (["--config=none.py", CPU], "config file 'none.py' does not exist"),
    (["--config=configs/quickstart_base.py", CPU], "neither here nor one of"),
    ([TINY, CPU, "--sweep", "--sweep-remat=most"], "'most' is none of none, full"),
    ([TINY, CPU, "--sweep", "--sweep-accumulate=x"], "must be numbers"),
    ([TINY, CPU, "--sweep", "--sweep-meshes=fsdp=5"], "does not fit 8 devices"),
    ([TINY, CPU, "--sweep", "--work=decode"], "--sweep is of training"),
    # Told before anything is compiled.
    ([TINY, CPU, "--cache=/dev/null/x"], "/dev/null/x: cannot be written"),
    ([TINY, CPU, "--sweep", "--out=/dev/null/x"], "/dev/null/x: cannot be written"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_are_told_in_one_line(
    arguments, message, capsys, monkeypatch, repository
):
    assert message in told(capsys, monkeypatch, repository, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --config"),
        ([TINY, "--work=sleep"], "invalid choice: 'sleep'"),
        ([TINY, "--slices=two"], "invalid int value: 'two'"),
    ],
)
def test_arguments_that_argparse_refuses(
    arguments, message, capsys, monkeypatch, repository
):
    line = told(capsys, monkeypatch, repository, *arguments, status=2)
    assert message in line


@pytest.mark.slow
def test_a_plan_as_json_and_as_a_table(capsys, monkeypatch, repository, tmp_path):
    monkeypatch.chdir(repository)
    common = [TINY, "--topology=cpu:4", "--mesh=fsdp=2,tensor=2"]
    common.append(f"--cache={tmp_path}")
    assert main([*common, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mesh"] == {"slice": 1, "data": 1, "fsdp": 2, "tensor": 2}
    assert not found["cached"] and found["programs"][0]["traffic"]["sent"]
    # From the cache: at once, in any other form.
    assert main([*common, "--markdown"]) == 0
    out, err = capsys.readouterr()
    assert "compiling" not in err
    header, rule, line = out.splitlines()
    assert header.count("|") == rule.count("|") == line.count("|")
    assert "fsdp=2,tensor=2" in line
    assert main(common) == 0
    assert "kept from an earlier compilation" in capsys.readouterr().out


def test_what_was_left_open_is_said(capsys, monkeypatch, repository):
    monkeypatch.chdir(repository)
    config = "--config=configs/mistral_7b_end_to_end.py"
    assert main([config, "--show-sharding", "--mesh=fsdp=16"]) == 0
    table = capsys.readouterr().out
    assert "mesh slice 1, data 1, fsdp 16, tensor 1: 16 devices" in table
    # 7,241,732,096 weights of two bytes, and rows; norms and rows are on every device.
    assert "backbone (frozen): 14,483,824,640 bytes, 906,076,160 per device" in table
    vectors = re.search(r"  vectors +(\S+) +(\S+) +(\S+) +(\S+) +(\S+)", table)
    assert vectors is not None and vectors.groups() == (
        "32x20x16x4096",
        "bfloat16",
        "fsdp,-,-,-",
        f"{32 * 20 * 16 * 4096 * 2:,}",
        f"{2 * 20 * 16 * 4096 * 2:,}",
    )
