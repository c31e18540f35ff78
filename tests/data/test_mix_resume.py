"""Mixes that are killed, told to stop, begun anew with other settings, or refused."""

import errno
import io
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import types
from pathlib import Path

import pytest
from toy_mix import (
    HEAD,
    LENGTH,
    SMALL_STEPS,
    SOURCES,
    TOKENIZER,
    make,
    source,
    tree,
    write_recipe,
)
from tqdm import tqdm

from clara_jax.data.__main__ import main
from clara_jax.data.work import Work, open_work
from clara_jax.errors import ClaraError
from clara_jax.files import checksum

DIES = Path(__file__).parents[1] / "dies.py"
MIX = sys.modules["clara_jax.data.mix"]
"""The module, whose name the function has, too."""


def test_the_same_input_makes_the_same_bytes(made, world, tmp_path):
    folder, manifest = made
    assert make(world, tmp_path / "mix") == manifest
    assert tree(tmp_path / "mix") == tree(folder)
    other = HEAD + "seed = 1\n"
    make(world, tmp_path / "other", head=other)
    assert tree(tmp_path / "other") != tree(folder)


def test_a_finished_mix_is_left_alone(world, tmp_path, monkeypatch):
    first = make(world, tmp_path / "mix")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "mix").rglob("*")}
    monkeypatch.setattr(Work, "__init__", lambda *_: pytest.fail("works again"))
    assert make(world, tmp_path / "mix") == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "mix").rglob("*")} == before
    with pytest.raises(ClaraError, match=r"mixed from other settings.*\(pairs\)"):
        make(world, tmp_path / "mix", head=HEAD.replace("pairs = 4", "pairs = 5"))


def test_a_file_that_a_finished_mix_lost(world, tmp_path):
    make(world, tmp_path / "mix")
    (tmp_path / "mix" / "scp.jsonl").unlink()
    with pytest.raises(ClaraError, match=r"mix: scp\.jsonl is missing; delete"):
        make(world, tmp_path / "mix")
    assert (tmp_path / "mix" / "instruct.jsonl").is_file()


def test_inputs_are_read_again_only_where_they_changed(world, tmp_path, monkeypatch):
    copy = tmp_path / "world"
    shutil.copytree(world, copy)
    begun(copy, tmp_path / "mix", monkeypatch)
    read = []

    def counted(path, advance):
        read.append(path.name)
        return checksum(path, advance)

    monkeypatch.setattr("clara_jax.data.work.checksum", counted)
    first = make(copy, tmp_path / "mix")  # goes on
    assert make(copy, tmp_path / "mix") == first and not read
    os.utime(copy / "plain.jsonl", (0, 0))
    assert make(copy, tmp_path / "mix") == first and read == ["plain.jsonl"]
    path = copy / "multi.jsonl"
    path.write_text(path.read_text().replace("both 1", "both 2"))
    with pytest.raises(ClaraError, match=r"\(files of source 'multi'\)"):
        make(copy, tmp_path / "mix")


def test_no_part_is_silent(world, tmp_path):
    bars = []

    def recorded(**options):
        bars.append(tqdm(file=io.StringIO(), **options))
        return bars[-1]

    make(world, tmp_path / "mix", progress=recorded)
    done = {bar.desc.removesuffix(": "): (bar.n, bar.total) for bar in bars}
    parts = ["check inputs", "read single", "overlaps: read", "overlaps"]
    parts += ["overlaps: compare", "split", "plan", "scp.jsonl", "corpus.jsonl"]
    for part in parts:
        assert done[part][0] == done[part][1] > 0, part
    size = sum(path.stat().st_size for path in world.glob("*.jsonl"))
    assert done["check inputs"][1] == size


class Killed(BaseException):
    """Stands for SIGKILL: what is not committed is lost."""


def small_steps(patch):
    for name, value in SMALL_STEPS.items():
        patch.setattr(f"clara_jax.data.{name}", value)


@pytest.fixture(scope="module")
def steps(made, world, tmp_path_factory):
    """How many small steps a mix takes, which makes the same bytes in these."""
    folder = tmp_path_factory.mktemp("steps") / "mix"
    count = 0
    commit = Work.commit

    def counted(work):
        nonlocal count
        count += 1
        commit(work)

    with pytest.MonkeyPatch.context() as patch:
        small_steps(patch)
        patch.setattr(Work, "commit", counted)
        make(world, folder)
    assert tree(folder) == tree(made[0])
    return count


@pytest.mark.parametrize(
    ("share", "after"), [(0.03, True), (0.2, False), (0.5, True), (0.8, False)]
)
def test_killed_at_any_step_it_goes_on(
    made, steps, world, tmp_path, monkeypatch, share, after
):
    small_steps(monkeypatch)
    count, last, commit = 0, int(steps * share), Work.commit

    def dies(work):
        nonlocal count
        count += 1
        if count != last or after:
            commit(work)
        if count == last:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Work, "commit", dies)
        with pytest.raises(Killed):
            make(world, tmp_path / "mix")
    assert not (tmp_path / "mix").exists()
    # Half of a line that was on its way.
    for path in (tmp_path / ".mix.mix").glob("out/*.jsonl"):
        with path.open("ab") as file:
            file.write(b'{"docs": [')
    make(world, tmp_path / "mix")
    assert tree(tmp_path / "mix") == tree(made[0])
    assert not (tmp_path / ".mix.mix").exists()


def begun(world, folder, monkeypatch):
    """A mix that was killed."""
    with monkeypatch.context() as patch:

        def killed(*_):
            raise Killed

        patch.setattr(MIX, "split", killed)
        with pytest.raises(Killed):
            make(world, folder)
    assert folder.with_name(f".{folder.name}.mix").exists()


def test_what_was_begun_is_not_mixed_up(world, tmp_path, monkeypatch):
    copy = tmp_path / "world"
    shutil.copytree(world, copy)
    begun(copy, tmp_path / "mix", monkeypatch)
    with pytest.raises(ClaraError, match=r"\.mix\.mix: was begun.*\(seed\).*delete"):
        make(copy, tmp_path / "mix", head=HEAD + "seed = 3\n")
    with (copy / "plain.jsonl").open("a") as file:
        file.write('{"text": "One more."}\n')
    with pytest.raises(ClaraError, match=r"\(files of source 'plain'\)"):
        make(copy, tmp_path / "mix")


def test_one_process_at_a_time(world, tmp_path):
    with open_work(tmp_path / ".mix.mix") as work:
        work.execute("SELECT 1")
        with pytest.raises(
            ClaraError, match="another process is at work here; wait for its end"
        ):
            make(world, tmp_path / "mix")


def refused(world, tmp_path, capsys, sources=SOURCES, head=HEAD, folder="mix"):
    """The one line of a command that fails."""
    recipe = write_recipe(tmp_path, sources, head)
    TOKENIZER.save(tmp_path / "tokenizer")
    given = ["mix", recipe, tmp_path / folder, "--data", world]
    given += ["--tokenizer", tmp_path / "tokenizer", "--max-length", LENGTH]
    assert main([str(word) for word in given]) == 1
    out, error = capsys.readouterr()
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and not out and "Traceback" not in error
    return lines[0]


def test_errors_are_one_line(world, tmp_path, capsys):
    def said(*arguments, **options):
        return refused(world, tmp_path, capsys, *arguments, **options)

    assert "source 'x': " in said(source("x", "none.jsonl"))
    assert "none.jsonl: no such file" in said(source("x", "none.jsonl"))
    plain = source("plain", "plain.jsonl")
    assert "no record is left for scp.jsonl" in said(plain)
    assert "set scp = 0 in all" in said(plain)
    none = said(source("single", "single.jsonl"), head="held_out = 0\n")
    assert "no held-out questions; raise held_out (0)" in none
    apart = source("a", "single.jsonl", 'split = "train"')
    apart += source("b", "multi.jsonl", 'split = "held_out"', "scp = 0")
    line = said(apart)
    assert "no record is left for held_out_scp.jsonl; raise held_out (0.25)" in line
    both = source("a", "single.jsonl", 'split = "train"')
    both += source("b", "again.jsonl", 'split = "held_out"')
    line = said(both)
    assert f"{world}/single.jsonl:1 (source 'a', split train): its passage" in line
    assert f"is also {world}/again.jsonl:1 (source 'b', split held_out)" in line
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    assert "other: holds something else; name a new" in said(folder="other")
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": true}\n')
    line = said(source("bad", tmp_path / "bad.jsonl"))
    assert f"{tmp_path}/bad.jsonl:2: field 'text' is bool True" in line
    # Nothing is left that could not be finished.
    assert not (tmp_path / ".mix.mix").exists() and not (tmp_path / "mix").exists()
    assert main(["mix", "none.toml", str(tmp_path / "mix")]) == 1
    assert "none.toml: cannot be read" in capsys.readouterr().err


def test_a_full_disk(world, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("clara_jax.data.work.os", types.SimpleNamespace(fsync=full))
        with pytest.raises(ClaraError, match=r"scp.jsonl: the disk is full"):
            make(world, tmp_path / "mix")
    with monkeypatch.context() as patch:

        class Full(sqlite3.OperationalError):
            sqlite_errorname = "SQLITE_FULL"

        def fails(self):
            raise Full("database or disk is full")

        patch.setattr(Work, "commit", fails)
        with pytest.raises(ClaraError, match=r"work.sqlite: the disk is full"):
            make(world, tmp_path / "mix")
    make(world, tmp_path / "mix")


def test_a_damaged_work_database(world, tmp_path):
    scratch = tmp_path / ".mix.mix"
    scratch.mkdir()
    (scratch / "work.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(ClaraError, match="cannot be used .* delete .* to start anew"):
        make(world, tmp_path / "mix")


def command(world, tmp_path, folder):
    TOKENIZER.save(tmp_path / "tokenizer")
    recipe = write_recipe(tmp_path)
    line = [sys.executable, "-m", "clara_jax.data", "mix", recipe, folder]
    line += ["--data", world, "--tokenizer", tmp_path / "tokenizer"]
    return [str(word) for word in [*line, "--max-length", LENGTH]]


def test_the_command(made, world, tmp_path, capsys, monkeypatch):
    folder, _ = made
    given = command(world, tmp_path, tmp_path / "mix")[3:]
    with monkeypatch.context() as patch:

        def stopped(*_):
            raise KeyboardInterrupt

        patch.setattr(MIX, "plan", stopped)
        assert main(given) == 130
        assert "interrupted; the same command goes on\n" in capsys.readouterr().err
    assert main(given) == 0
    assert "held out" in capsys.readouterr().out
    assert tree(tmp_path / "mix") == tree(folder)
    assert main(given) == 0
    assert "is finished already" in capsys.readouterr().out


def test_a_signal_while_the_database_asks(world, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("clara_jax.data.mix_write.draw", stopped)
        with pytest.raises(KeyboardInterrupt):
            make(world, tmp_path / "mix")
    make(world, tmp_path / "mix")


@pytest.mark.parametrize("name", ["none.gguf", "none"])
def test_no_tokenizer(world, tmp_path, capsys, name):
    given = command(world, tmp_path, tmp_path / "mix")[3:]
    given[given.index("--tokenizer") + 1] = str(tmp_path / name)
    assert main(given) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert error.endswith("a .gguf file with --tokenizer\n")


def dies(world, tmp_path, number, step):
    """A process that is sent a signal at a step; its exit status and what it said."""
    words = command(world, tmp_path, tmp_path / "mix")
    words[1:3] = [str(DIES), str(int(number)), str(step)]
    process = subprocess.run(words, capture_output=True, text=True, timeout=600)
    return process.returncode, process.stderr


@pytest.mark.slow
def test_killed_for_real(made, steps, world, tmp_path):
    folder, _ = made
    for step in (1, 3, steps // 4, steps // 2):
        status, said = dies(world, tmp_path, signal.SIGKILL, step)
        assert status == -signal.SIGKILL, said
    assert not (tmp_path / "mix").exists()
    status, said = dies(world, tmp_path, signal.SIGKILL, steps + 1)
    assert status == 0, said
    assert tree(tmp_path / "mix") == tree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 10])
def test_told_to_stop(world, tmp_path, step):
    status, said = dies(world, tmp_path, signal.SIGTERM, step)
    assert status == 75
    assert said.splitlines()[-1] == "interrupted; the same command goes on"
